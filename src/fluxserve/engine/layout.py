"""A folder in diffusers layout: which files have to be there, which must not, and what the small ones say.

`fluxserve.toml` (see `Card`) is ours: what the layout's own files cannot say. Errors name the file and what to do.
What it does not know: where folders are found, models, tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from fluxserve.engine.families import FAMILIES, Family
from fluxserve.errors import CheckpointMissing, CheckpointRefused

#: Latents of an image token: it is a patch of 2 x 2.
PATCH_AREA = 4
CARD_FILE = "fluxserve.toml"
INDEX_FILE = "model_index.json"
#: Files that run code when they are loaded, or are code.
REFUSED_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".py"})
_FOUR_LEVELS = (64,) * 4
_Config = TypeVar("_Config", bound=msgspec.Struct)
_Side = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Sentence = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
_Word = Annotated[str, msgspec.Meta(pattern=r"^[^\WA-Z]+$")]
_Part = tuple[str | None, str | None]


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`fluxserve.toml`; every field is optional.

    `native_sizes` are the sizes that the networks learnt, [width, height] in pixels; without it, or where it is empty,
    any size is drawn. `cfg_scale` above 1 predicts each step with and without the prompt.
    `draws` says in a few words what they learnt to draw; `warnings` holds, for each sentence that a result then
    carries, the words of a prompt that call for it, in lower case.
    """

    name: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    license: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    native_sizes: tuple[tuple[_Side, _Side], ...] = ()
    cfg_scale: Annotated[float, msgspec.Meta(ge=1, le=100)] | None = None
    draws: str = ""
    warnings: dict[_Sentence, tuple[_Word, ...]] = {}


class Index(msgspec.Struct, frozen=True):
    """`model_index.json`: each part is [library, class]. `is_distilled`: FLUX.2 [klein] needs no true guidance."""

    pipeline: str = msgspec.field(name="_class_name")
    is_distilled: bool = False
    transformer: _Part = (None, None)
    vae: _Part = (None, None)
    text_encoder: _Part = (None, None)
    text_encoder_2: _Part = (None, None)
    tokenizer: _Part = (None, None)
    tokenizer_2: _Part = (None, None)

    def class_of(self, part: str) -> str:
        """The name of the class that `part` names."""
        return str(getattr(self, part)[1])

    @property
    def family(self) -> Family:
        """What the pipeline's folders have in common; it has to be one that is known."""
        return FAMILIES[self.pipeline]


class Transformer(msgspec.Struct, frozen=True):
    """`transformer/config.json`; the axes say how the width of a head is shared by the rotations."""

    guidance_embeds: bool | None = None
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    in_channels: int = 64
    joint_attention_dim: int = 4096


class Clip(msgspec.Struct, frozen=True):
    """`text_encoder/config.json`."""

    hidden_size: int = 512


class T5(msgspec.Struct, frozen=True):
    """`text_encoder_2/config.json`."""

    d_model: int = 512


class LanguageModel(msgspec.Struct, frozen=True):
    """`text_encoder/config.json` of a language model; one that also sees pictures tells of texts in the last field."""

    hidden_size: int = 0
    num_hidden_layers: int = 0
    text_config: LanguageModel | None = None

    @property
    def of_texts(self) -> LanguageModel:
        """The part of it that reads texts."""
        return self.text_config or self


class Tokenizer(msgspec.Struct, frozen=True):
    """A tokenizer's `tokenizer_config.json`; the length is in tokens and may be absurdly large.

    `chat_template`: how a language model is spoken to, where no file of its own says so.
    """

    model_max_length: float = 512
    chat_template: msgspec.Raw = msgspec.Raw()


class Vae(msgspec.Struct, frozen=True):
    """`vae/config.json`: AutoencoderKL names its levels in the first field, AutoencoderTiny at least in the second."""

    block_out_channels: tuple[int, ...] = ()
    decoder_block_out_channels: tuple[int, ...] | None = None
    latent_channels: int = 4

    @property
    def factor(self) -> int:
        """Pixels to a latent, one way: each level but the last halves the picture."""
        return 1 << (len(self.widths) - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, that of full size first."""
        return self.block_out_channels or self.decoder_block_out_channels or _FOUR_LEVELS


class _Shards(msgspec.Struct, frozen=True):
    """`*.safetensors.index.json`: which file holds which tensor."""

    weight_map: dict[str, str]


def read_index(folder: Path) -> Index:
    """What the folder says it is, after checking that it holds nothing that could run code."""
    index = read_json(folder / INDEX_FILE, Index)
    refused = sorted(
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.suffix.lower() in REFUSED_SUFFIXES
    )
    if refused:
        raise CheckpointRefused(
            f"{folder} holds files that could run code: {', '.join(refused[:5])}. "
            "Only safetensors are loaded: remove them, or use a folder without."
        )
    return index


def check_parts(folder: Path, index: Index, without: Collection[str] = ()) -> None:
    """Raise CheckpointRefused for a part of another class, CheckpointMissing for a file that is not there.

    `without`: parts whose weights lie elsewhere.
    """
    for name, part in index.family.parts.items():
        library, class_name = getattr(index, name)
        if library not in ("diffusers", "transformers") or class_name not in part.classes:
            raise CheckpointRefused(f"{folder}: {name} is {class_name}, not one of {', '.join(sorted(part.classes))}.")
    missing = [name for name in _needed(folder, index.family, without) if not (folder / name).is_file()]
    if missing:
        raise CheckpointMissing(f"{folder} is incomplete: {', '.join(missing)} missing. Download the whole checkpoint.")


def weight_files(folder: Path, family: Family, part: str) -> tuple[str, ...]:
    """The safetensors files of a part, by their paths inside the folder: one, or the shards its index lists."""
    single = f"{part}/{family.parts[part].kind.value}.safetensors"
    shards = folder / f"{single}.index.json"
    if not shards.is_file():
        return (single,)
    names = sorted(set(read_json(shards, _Shards).weight_map.values()))
    if any("/" in name or not name.endswith(".safetensors") for name in names):
        raise CheckpointRefused(f"{shards} lists files that are not safetensors beside it.")
    return tuple(f"{part}/{name}" for name in names)


def used_files(folder: Path, without: Collection[str] = ()) -> tuple[str, ...]:
    """Every file that decides what is drawn, by its path inside the folder, sorted; `without`: see `check_parts`."""
    family = read_json(folder / INDEX_FILE, Index).family
    files = [file for part in (*family.parts, "scheduler") for file in (folder / part).iterdir() if file.is_file()]
    unread = {file for file in files if file.suffix == ".safetensors"} - {
        folder / name for part in family.networks if part not in without for name in weight_files(folder, family, part)
    }
    return tuple(sorted(str(file.relative_to(folder)) for file in files if file not in unread))


def read_card(folder: Path) -> Card:
    """The folder's own card, or an empty one."""
    path = folder / CARD_FILE
    if not path.is_file():
        return Card()
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Card)
    except msgspec.MsgspecError:
        raise CheckpointRefused(f"{path} cannot be read: it may hold {', '.join(Card.__struct_fields__)}.") from None


def read_json(path: Path, kind: type[_Config]) -> _Config:
    """One of the layout's small files; raises CheckpointMissing or CheckpointRefused."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError:
        raise CheckpointMissing(f"There is no {path}: this is not a whole checkpoint in diffusers layout.") from None
    except msgspec.MsgspecError:
        raise CheckpointRefused(f"{path} is not what a checkpoint in diffusers layout holds there.") from None


def _needed(folder: Path, family: Family, without: Collection[str]) -> Iterator[str]:
    """Every file that has to be there, by its path inside the folder."""
    yield "scheduler/scheduler_config.json"
    for part in family.tokenizers:
        yield f"{part}/tokenizer_config.json"
    for part in family.networks:
        yield f"{part}/config.json"
        if part not in without:
            yield from weight_files(folder, family, part)
