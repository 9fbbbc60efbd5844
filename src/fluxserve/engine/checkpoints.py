"""Checkpoints: what a setting's value points at, and what it can draw.

Needs no torch, so the API process may ask; never the network.
What it does not know: tensors, devices, and whether a licence was accepted.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from fluxserve import mini
from fluxserve.catalogue import MODELS, ModelSpec, Size
from fluxserve.catalogue.recipes import Control, Fill, Recipe
from fluxserve.catalogue.sizes import fit_area
from fluxserve.engine import fitting, layout, single_file
from fluxserve.engine.beside import NOTHING, Beside
from fluxserve.engine.families import FAMILIES, LICENSES_TO_ACCEPT, Family
from fluxserve.engine.native_sizes import NativeSizes, nearest
from fluxserve.engine.sampling import NoiseSchedule
from fluxserve.engine.single_file import Piece
from fluxserve.errors import CheckpointMissing, CheckpointRefused, ConfigurationError, UnknownSetting
from fluxserve.settings import MINI, Composed, Settings

_COMMON = (Size(256, 256), Size(512, 512), Size(768, 1024), Size(1024, 768), Size(1024, 1024))
#: Of the published API for pictures of prompts.
_USUAL_GUIDANCE = 3.5
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
#: What the transformer reads beside latents and words: nothing more, pictures as tokens that stand beside the latents,
#: a masked picture and its mask as channels, or a picture of edges or depths as channels.
Reads = Literal["nothing", "references", "masked", "control"]
_NO_REDUX = "Without a Redux folder beside the weights (redux) image_prompt is left out, and a warning says so."
_NO_DEPTH = (
    "Without a network that sees depth beside the weights (depth) control_image is refused: send preprocessed_image."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A sound folder in diffusers layout. `vae_factor`: pixels to a latent, one way; `text_length`: tokens.

    `pieces`: part -> where its weights lie, of those parts that are not taken from the folder, which is called `base`.

    `native`: the sizes it learnt, empty where any is drawn; `draws` and `warnings`: see `layout.Card`.
    """

    path: Path
    name: str
    family: Family
    license: str | None
    native: NativeSizes
    cfg_scale: float
    guidance_embeds: bool
    reads: Reads
    text_length: int
    vae_factor: int
    schedule: NoiseSchedule
    draws: str
    warnings: Mapping[str, Collection[str]]
    pieces: Mapping[str, Piece]
    base: str
    beside: Beside

    @property
    def origin(self) -> tuple[Path, ...]:
        """The folder, and the files that parts are taken from: two checkpoints differ in these or are the same."""
        return self.path, *self.beside.folders, *sorted({piece.file for piece in self.pieces.values()})

    @property
    def license_needed(self) -> str | None:
        """The licence that has to be accepted before these weights are used, if any."""
        return self.license if self.license in LICENSES_TO_ACCEPT else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on disk."""
        parts = [part for part in self.family.networks if part not in self.pieces]
        files = [self.path / file for part in parts for file in layout.weight_files(self.path, self.family, part)]
        single = sum(piece.size for piece in self.pieces.values())
        return sum(file.stat().st_size for file in files) + single + self.beside.weight_bytes

    @property
    def token_side(self) -> int:
        """Pixels to an image token, one way: a patch of 2 x 2 latents."""
        return 2 * self.vae_factor

    def most_guidance(self, recipe: Recipe) -> float:
        """How much guidance a recipe is drawn with at most.

        Weights for masks and for structures learnt it on a scale of their own, up to 100. Others, asked to do the same,
        have to be asked as they are for a picture of a prompt.
        """
        made_for = {"masked": Fill, "control": Control}.get(self.reads)
        is_stranger = isinstance(recipe, Fill | Control) and (made_for is None or not isinstance(recipe, made_for))
        return _USUAL_GUIDANCE if is_stranger else math.inf

    def does_otherwise(self, spec: ModelSpec) -> Sequence[str]:
        """What it does with pictures that `spec` takes and it did not learn to read, in a sentence each."""
        told = [spec.plainly] if spec.plainly and self.reads == "nothing" else []
        if spec.param("image_prompt") is not None and self.beside.redux is None:
            told.append(_NO_REDUX)
        if spec.takes_depths and self.reads == "control" and self.beside.depth is None:
            told.append(_NO_DEPTH)
        return told

    @property
    def rows_per_picture(self) -> int:
        """Rows of a forward pass: two with true guidance, with and without the prompt."""
        return 2 if self.cfg_scale > 1 else 1

    def tokens_at(self, drawn: Size) -> int:
        """What a picture takes of a token budget: its own tokens and its text's, in each row."""
        return self.rows_per_picture * (drawn.area // self.token_side**2 + self.text_length)

    def describe(self) -> str:
        """One line for people: what draws, under which licence, what and at which sizes."""
        guided = "" if self.guidance_embeds else "; guidance changes nothing"
        line = f"{self.name} (licence: {self.license or 'not stated'}{guided})"
        told = (self.draws, self._sizes(), self._references(), self._composition())
        return f"{line}: {'; '.join(filter(None, told))}"

    def warnings_for(self, prompt: str) -> tuple[str, ...]:
        """What whoever asked for `prompt` should be told: it names something that these weights do not draw."""
        words = set(re.findall(r"\w+", prompt.lower()))
        return tuple(warning for warning, about in self.warnings.items() if not words.isdisjoint(about))

    def _composition(self) -> str:
        taken = [f"{piece.part} from {piece.file.name}" for piece in self.pieces.values()]
        rest = [f"the rest from {self.base}"] if taken else []
        return ", ".join((*taken, *rest, *self.beside.words))

    def _references(self) -> str:
        return f"reads up to {self.family.references} pictures beside the prompt" if self.family.references else ""

    def _sizes(self) -> str:
        if not self.native:
            return "draws at the size asked for"
        shapes = sorted(self.native, key=lambda size: size.ratio)
        learnt = " to ".join(dict.fromkeys((str(shapes[0]), str(shapes[-1]))))
        return f"draws at {learnt}, larger pictures are enlarged, the edges of other shapes continued"


def plan(settings: Settings) -> Mapping[str, Checkpoint]:
    """The checkpoint of every model: what `settings.models` says, else mini. Raises ConfigurationError."""
    planned, refused = plan_in_part(settings)
    for error in refused:
        raise error
    return planned


def plan_in_part(settings: Settings) -> tuple[Mapping[str, Checkpoint], Sequence[ConfigurationError]]:
    """The checkpoint of every model that has a sound one, and what is wrong with others. Raises UnknownSetting."""
    unknown = sorted(set(settings.models) - set(MODELS))
    if unknown:
        raise UnknownSetting(f"[models] names {', '.join(unknown)}; the models are {', '.join(MODELS)}.")
    values = {model: settings.models.get(model, MINI) for model in MODELS}
    found: dict[str | Composed, Checkpoint] = {}
    refused: list[ConfigurationError] = []
    for value in dict.fromkeys(values.values()):
        try:
            found[value] = find(value)
        except (CheckpointMissing, CheckpointRefused) as error:
            refused.append(error)
    return {model: found[value] for model, value in values.items() if value in found}, refused


def find(value: str | Composed, environ: Mapping[str, str] = os.environ) -> Checkpoint:
    """The checkpoint a setting's value means: `mini`, a folder, or `org/name` in the local hub cache, or files on one.

    Raises CheckpointMissing where something is not there, CheckpointRefused where something must not be there.
    """
    if isinstance(value, str):
        return read(*_folder(value, environ))
    beside = Beside(
        redux=None if value.redux is None else _folder(value.redux, environ)[0],
        depth=None if value.depth is None else _folder(value.depth, environ)[0],
    )
    return read(*_folder(value.base, environ), _pieces(value.files), beside)


def read(
    folder: Path, name: str, pieces: Mapping[str, Piece] = MappingProxyType({}), beside: Beside = NOTHING
) -> Checkpoint:
    """Check the folder, and how `pieces` and what is `beside` fit it; it is called `name`, unless its card has one.

    A card tells of the folder's transformer, so it is not read where that is taken from a file.
    """
    index = layout.read_index(folder)
    if index.pipeline not in FAMILIES:
        raise CheckpointRefused(f"{folder} holds a {index.pipeline}; this engine draws {', '.join(FAMILIES)}.")
    family = index.family
    layout.check_parts(folder, index, without=pieces)
    fitting.check(folder, index, pieces)
    if beside.folders and "text_encoder_2" not in family.parts:
        raise CheckpointRefused(f"{folder} holds {family.title}, which reads pictures itself: name nothing beside it.")
    if beside.folders:
        beside.check(layout.read_json(folder / "text_encoder_2/config.json", layout.T5).d_model)
    card = layout.Card() if "transformer" in pieces else layout.read_card(folder)
    transformer = layout.read_json(folder / "transformer/config.json", layout.Transformer)
    guidance_embeds = family.guidance_embeds if transformer.guidance_embeds is None else transformer.guidance_embeds
    tokenizer = layout.read_json(folder / family.tokenizer / "tokenizer_config.json", layout.Tokenizer)
    vae_factor = layout.read_json(folder / "vae/config.json", layout.Vae).factor
    schedule = layout.read_json(folder / "scheduler/scheduler_config.json", family.schedule)
    if not schedule.is_supported:
        raise CheckpointRefused(f"{folder} uses a noise schedule that this engine does not draw with.")
    base = name
    name = pieces["transformer"].file.stem if "transformer" in pieces else card.name or name
    known = family.license_of(name, guidance_embeds, transformer.joint_attention_dim)
    return Checkpoint(
        path=folder,
        name=name,
        family=family,
        license=card.license.lower() if card.license else known,
        native=_native_sizes(folder, card, 2 * vae_factor),
        cfg_scale=card.cfg_scale or (1.0 if index.is_distilled else family.cfg_scale),
        guidance_embeds=guidance_embeds,
        reads=_reads(folder, index, pieces),
        text_length=int(min(family.longest_text[guidance_embeds], tokenizer.model_max_length)),
        vae_factor=vae_factor,
        schedule=schedule,
        draws=card.draws,
        warnings=card.warnings,
        pieces=pieces,
        base=base,
        beside=beside,
    )


def _reads(folder: Path, index: layout.Index, pieces: Mapping[str, Piece]) -> Reads:
    """What the transformer's width says; only the pipeline's name tells Kontext from weights that read nothing more."""
    vae = layout.read_json(folder / "vae/config.json", layout.Vae)
    latents, mask = layout.PATCH_AREA * vae.latent_channels, layout.PATCH_AREA * vae.factor**2
    source = folder
    if "transformer" in pieces:
        source = pieces["transformer"].file
        width = single_file.check_transformer(pieces["transformer"]).reads
    else:
        width = layout.read_json(folder / "transformer/config.json", layout.Transformer).in_channels
    found: dict[int, Reads] = {
        2 * latents: "control",
        2 * latents + mask: "masked",
        latents: "references" if index.family.references else "nothing",
    }
    if width not in found:
        raise CheckpointRefused(
            f"{source} has a transformer that reads {width} channels; this engine draws with such as read {latents} "
            f"(latents), {2 * latents} (and a control picture) or {2 * latents + mask} (and a masked picture)."
        )
    return found[width]


def common_sizes(checkpoint: Checkpoint) -> list[Size]:
    """What common sizes are drawn at, smallest first: what is warmed and tested at the start."""
    return sorted({drawn_size(checkpoint, size) for size in _COMMON}, key=lambda size: (size.area, size.width))


def drawn_size(checkpoint: Checkpoint, size: Size) -> Size:
    """The size the networks draw at for a picture of `size`; its sides are multiples of two latents."""
    if not checkpoint.native:
        return fit_area(size.area, size.ratio, multiple=checkpoint.token_side)
    return nearest(checkpoint.native, size)


def _folder(value: str, environ: Mapping[str, str]) -> tuple[Path, str]:
    """Where the value points to, and what to call it."""
    if value == MINI:
        return mini.folder(), MINI
    folder = _path(value)
    if folder.is_dir():
        return folder.resolve(), folder.resolve().name
    if folder.is_file():
        raise CheckpointRefused(
            f"{value} is a file, and has no tokenizers: name it beside a folder in diffusers layout that has the rest, "
            f'like {{base = "FOLDER", files = ["{value}"]}}.'
        )
    if _REPOSITORY.fullmatch(value):
        return _snapshot(value, environ), value.rpartition("/")[2]
    raise CheckpointMissing(f"There is no checkpoint folder {value}: name an existing folder, org/name, or mini.")


def _path(value: str) -> Path:
    """As a shell would read it. Raises CheckpointMissing for what can be no path here."""
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise CheckpointMissing(f"{value!r} names no file or folder: there is no such home.") from None
    if "\0" in value:
        raise CheckpointMissing(f"{value!r} names no file or folder.")
    return path


def _pieces(files: Collection[str]) -> Mapping[str, Piece]:
    """Every part that the files hold. Raises CheckpointRefused for a part that two files hold."""
    found: dict[str, Piece] = {}
    for file in files:
        for part, piece in single_file.pieces(_path(file).absolute()).items():
            if part in found:
                raise CheckpointRefused(f"Both {found[part].file} and {file} hold a {part}: name one of them.")
            found[part] = piece
    return {part: found[part] for part in single_file.PARTS if part in found}


def _native_sizes(folder: Path, card: layout.Card, multiple: int) -> NativeSizes:
    for width, height in card.native_sizes:
        if width % multiple or height % multiple:
            raise CheckpointRefused(
                f"{folder / layout.CARD_FILE}: these networks draw sides in multiples of {multiple}, "
                f"not native_sizes of {width} x {height}."
            )
    return tuple(Size(width, height) for width, height in card.native_sizes)


def _snapshot(repository: str, environ: Mapping[str, str]) -> Path:
    """The folder of the repository's main branch in the local hub cache, laid out as huggingface_hub does."""
    cache = environ.get("HF_HUB_CACHE") or Path(
        environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface", "hub"
    )
    home = Path(cache).expanduser() / f"models--{repository.replace('/', '--')}"
    try:
        commit = (home / "refs/main").read_text().strip()
    except OSError:
        commit = ""
    folder = home / "snapshots" / commit
    if not commit or not folder.is_dir():
        raise CheckpointMissing(
            f"{repository} is neither a folder nor in the hub cache {cache}: download it with "
            f"`hf download {repository}`, or name a local folder."
        )
    return folder
