"""Single files as BFL and ComfyUI write them: which parts of FLUX a file holds, and their tensors under our names.

They are safetensors or GGUF. A file is read by its header first, without torch, so that a wrong one is refused before
anything is loaded. Tensors are converted one after the other from the file. Those of 8 bits may have a scale beside
them, as in ComfyUI's.
What it does not know: settings, what the networks are used for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fluxserve.engine import bfl, gguf_file, header
from fluxserve.engine.header import Stored
from fluxserve.errors import CheckpointRefused

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]

#: Part -> where an all-in-one file of ComfyUI keeps it, and how names of it begin.
PARTS = {
    "transformer": ("model.diffusion_model.", ("double_blocks.", "single_blocks.")),
    "vae": ("vae.", ("decoder.conv_in.", "decoder.mid.")),
    "text_encoder": ("text_encoders.clip_l.transformer.", ("text_model.",)),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.", ("encoder.block.",)),
}
_PREFIXES = (*(prefix for prefix, _ in PARTS.values()), "text_encoders.")
#: Names of which one is enough to know that a file is something else, and what it is.
_STRANGERS = (
    (r"lora_|\.lora\.|\.lokr_|\.hada_", "a LoRA, which changes a transformer and is none"),
    (r"controlnet", "a ControlNet, which steers a transformer and is none"),
    (r"distilled_guidance_layer", "a transformer of Chroma"),
    (r"(^|\.)joint_blocks\.", "Stable Diffusion 3"),
    (r"(^|\.)(input|output)_blocks\.\d", "Stable Diffusion (1, 2 or XL)"),
    (r"^(enc\.|dec\.)?blk\.\d", "a language model or a text encoder in llama.cpp's layout, which is not read"),
    (r"(^|\.)(transformer|down|up)_blocks\.", "in diffusers layout, so its place is in a folder with its config.json"),
)
#: Kept beside the weights by ComfyUI; none of it changes what they are.
_UNREAD = re.compile(
    r"(^|\.)(scaled_fp8|spiece_model|position_ids|logit_scale|text_projection\.weight|embed_tokens\.weight)$"
    r"|\.(scale_input|input_scale|comfy_quant)$"
)
_SCALE = re.compile(r"\.(scale_weight|weight_scale)$")
_FORMATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}) | {
    name for name, _, _ in gguf_file.FORMATS.values()
}
_NAMED_AT_MOST = 3


class _Content(Protocol):
    """An open file."""

    def get_tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of a checkpoint in a single file; `tensors` and `scales` by the names that follow `prefix`.

    `scales`: name of a tensor -> name of the number, or numbers for its rows, that it is to be multiplied by.
    """

    part: str
    file: Path
    prefix: str
    tensors: Mapping[str, Stored] = field(repr=False)
    scales: Mapping[str, str] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of its weights in the file."""
        return sum(tensor.size for tensor in self.tensors.values())

    @property
    def is_quantized(self) -> bool:
        """Whether its numbers are worked out from blocks of others."""
        return any(one.dtype in gguf_file.QUANTIZED for one in self.tensors.values())

    @property
    def names(self) -> bfl.Names:
        """How the layers of a transformer are called: as those of its family."""
        return bfl.FLUX2 if bfl.FLUX2.sign in self.tensors else bfl.FLUX1

    def shape(self, name: str) -> Shape:
        """Of a tensor that `check` has found to be there."""
        return self.tensors[name].shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """What follows from a transformer's names and shapes; `norm`: see `bfl`.

    `latents`: channels of an image token; `reads`: of what it reads at its place, more where it reads pictures too.
    """

    latents: int
    reads: int
    tokens: int
    pooled: int
    head: int
    inner: int
    double: int
    single: int
    guidance_embeds: bool
    norm: str


def pieces(file: Path) -> Mapping[str, Piece]:
    """The parts that the file holds, by part. Raises CheckpointMissing or CheckpointRefused."""
    tensors, calls_itself = _read(file)
    for pattern, what in _STRANGERS:
        if any(re.search(pattern, name) for name in tensors):
            raise CheckpointRefused(f"{file} is {what}. Name a file that holds a part of FLUX in BFL's layout.")
    found = {part: piece for part in PARTS if (piece := _piece(file, part, tensors))}
    if not found:
        raise CheckpointRefused(
            f"{file} holds no part of FLUX in BFL's or ComfyUI's layout, but {_some(tensors) or 'nothing'}"
            f"{calls_itself and f' ({calls_itself!r}, as it says)'}. "
            "Name a file with a transformer, an autoencoder or a text encoder."
        )
    return found


def check_transformer(piece: Piece) -> Widths:
    """Raise CheckpointRefused unless it is a whole transformer of its family; else what follows from its shapes."""
    names = set(piece.tensors)
    double, single = (bfl.count_blocks(names, f"{kind}_blocks") for kind in ("double", "single"))
    guidance = any(name.startswith("guidance_in.") for name in names)
    norm = "weight" if any(name.endswith("_norm.weight") for name in names) else "scale"
    wanted = bfl.transformer(max(double, 1), max(single, 1), guidance=guidance, norm=norm, names=piece.names)
    _check_names(piece, wanted)
    for name, tensor in piece.tensors.items():
        is_matrix = name.endswith(".weight") and not name.endswith("_norm.weight")
        if len(tensor.shape) != (2 if is_matrix else 1):
            raise CheckpointRefused(
                f"{piece.file} is not a transformer of {piece.names.title}: {name} has shape {tensor.shape}."
            )
    inner, reads = piece.shape("img_in.weight")
    latents = piece.shape("final_layer.linear.weight")[0]
    if reads != latents and piece.names is bfl.FLUX2:
        raise CheckpointRefused(f"{piece.file} reads more than latents, and no published weights of FLUX.2 do.")
    return Widths(
        latents=latents,
        reads=reads,
        tokens=piece.shape("txt_in.weight")[1],
        pooled=piece.shape(bfl.FLUX1.sign)[1] if piece.names is bfl.FLUX1 else 0,
        head=piece.shape(f"double_blocks.0.img_attn.norm.query_norm.{norm}")[0],
        inner=inner,
        double=double,
        single=single,
        guidance_embeds=guidance,
        norm=norm,
    )


def transformer_config(widths: Widths) -> Mapping[str, int | bool]:
    """What diffusers' transformer is made with, as far as tensors tell; FLUX.2's knows no pooled texts."""
    return {
        "in_channels": widths.reads,
        "out_channels": widths.latents,
        "num_layers": widths.double,
        "num_single_layers": widths.single,
        "attention_head_dim": widths.head,
        "num_attention_heads": widths.inner // widths.head,
        "joint_attention_dim": widths.tokens,
        "pooled_projection_dim": widths.pooled,
        "guidance_embeds": widths.guidance_embeds,
    }


def destinations(piece: Piece) -> Mapping[str, bfl.Destination]:
    """Where each of its tensors goes in the networks' classes."""
    if piece.part == "transformer":
        widths = check_transformer(piece)
        return bfl.transformer(
            widths.double, widths.single, guidance=widths.guidance_embeds, norm=widths.norm, names=piece.names
        )
    if piece.part == "vae":
        return bfl.autoencoder(piece.tensors)
    return {name: bfl.Destination((name,)) for name in piece.tensors}


def check_shapes(piece: Piece, shapes: Mapping[str, Shape]) -> None:
    """Raise CheckpointRefused unless its tensors are those of a network with these `shapes`, by diffusers' names."""
    left = dict(shapes)
    for name, place in destinations(piece).items():
        _check_no_more(piece, [name] if any(one not in left for one in place.names) else [])
        wanted = [left.pop(one) for one in place.names]
        taken = sum(shape[0] for shape in wanted), *wanted[0][1:]
        has = piece.shape(name)
        # A convolution that sees one pixel may be a linear layer there.
        if has[: len(taken)] != taken or set(has[len(taken) :]) - {1}:
            raise CheckpointRefused(
                f"{piece.file} does not fit the base: {piece.prefix}{name} has shape {has}, and {taken} is wanted. "
                "Name a file and a base that belong together."
            )
    _check_all(piece, left)


def check_readable(piece: Piece) -> None:
    """Raise CheckpointRefused where a package is missing here that reads the file's numbers."""
    if gguf_file.is_one(piece.file):
        gguf_file.check_installed(piece.file)


def tensors(piece: Piece, device: str, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    """Its tensors on the device under diffusers' names and in their shapes, one after the other."""
    places = destinations(piece)
    with _opened(piece.file, device) as opened:
        for name in piece.tensors:
            tensor = opened.get_tensor(piece.prefix + name)
            if name in piece.scales:
                tensor = scaled(tensor, opened.get_tensor(piece.prefix + piece.scales[name]))
            yield from cut(tensor, places[name], shapes)


def _read(file: Path) -> tuple[Mapping[str, Stored], str]:
    """The file's tensors, and what it says that it holds, where files of its kind say that."""
    if not gguf_file.is_one(file):
        return header.read(file), ""
    found = gguf_file.read(file)
    return found.tensors, found.architecture


def _opened(file: Path, device: str) -> AbstractContextManager[_Content]:
    from safetensors import safe_open

    # Apple's GPUs hold no numbers of 8 bits.
    there = "cpu" if device == "mps" else device
    if gguf_file.is_one(file):
        return gguf_file.opened(file, there)
    content: AbstractContextManager[_Content] = safe_open(file, framework="pt", device=there)
    return content


def scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """In float32; the scale is one number, or one for each row."""
    per_row = scale.float().reshape(-1, *(1,) * (tensor.ndim - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return tensor.float() * per_row


def cut(tensor: Tensor, place: bfl.Destination, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    """What becomes of a tensor, by name."""
    if place.swapped:
        tensor = tensor.float().roll(len(tensor) // 2, 0)  # GPUs cannot turn rows of 8 bits
    parts: Iterable[Tensor] = tensor.split([shapes[name][0] for name in place.names])  # type: ignore[no-untyped-call]
    yield from ((name, part.reshape(shapes[name])) for name, part in zip(place.names, parts, strict=True))


def _piece(file: Path, part: str, everything: Mapping[str, Stored]) -> Piece | None:
    """The part in the file under ComfyUI's prefix, or else without any; None where it is not there."""
    prefix, beginnings = PARTS[part]
    for start in (prefix, ""):
        inside = {
            name.removeprefix(start): one
            for name, one in everything.items()
            if (name.startswith(start) if start else not name.startswith(_PREFIXES))
        }
        if any(name.startswith(beginnings) for name in inside):
            return _sorted_out(Piece(part=part, file=file, prefix=start, tensors=inside, scales={}))
    return None


def _sorted_out(piece: Piece) -> Piece:
    """Weights apart from scales and from what is not read; raises CheckpointRefused for numbers that are not known."""
    read = {name: one for name, one in piece.tensors.items() if not _UNREAD.search(name)}
    scales = {_SCALE.sub(".weight", name): name for name in read if _SCALE.search(name)}
    _check_no_more(piece, set(scales) - set(piece.tensors))
    weights = {name: one for name, one in read.items() if not _SCALE.search(name)}
    strange = sorted({one.dtype for one in read.values()} - _FORMATS)
    in_blocks = [name for name, scale in scales.items() if not _is_scale(piece.tensors[name], piece.tensors[scale])]
    strange += [f"blocks with scales of their own ({_some(in_blocks)})"] if in_blocks else []
    if strange:
        raise CheckpointRefused(
            f"{piece.file} holds numbers in {', '.join(strange)}, which are not read: "
            "get it in BF16, F16 or in 8 bits as F8_E4M3 or F8_E5M2."
        )
    return Piece(part=piece.part, file=piece.file, prefix=piece.prefix, tensors=weights, scales=scales)


def _is_scale(tensor: Stored, scale: Stored) -> bool:
    """Whether it is one number, or one for each row."""
    return math.prod(scale.shape) in (1, *tensor.shape[:1])


def _check_names(piece: Piece, wanted: Collection[str]) -> None:
    _check_all(piece, [name for name in wanted if name not in piece.tensors])
    _check_no_more(piece, set(piece.tensors) - set(wanted))


def _check_all(piece: Piece, missing: Collection[str]) -> None:
    if missing:
        raise CheckpointRefused(
            f"{piece.file} is not a whole {piece.part} of {piece.names.title}: {len(missing)} tensors are missing, "
            f"such as {_some(missing)}. Download it again, or name another file."
        )


def _check_no_more(piece: Piece, strange: Collection[str]) -> None:
    if strange:
        raise CheckpointRefused(
            f"{piece.file} is not the {piece.part} of {piece.names.title}: it also holds {_some(sorted(strange))}. "
            "Name another file."
        )


def _some(names: Collection[str]) -> str:
    """A few of them; a file may name its tensors as it likes, so neither endless nor with a terminal's commands."""
    return ", ".join(name.encode("unicode_escape").decode()[:100] for name in list(names)[:_NAMED_AT_MOST])
