"""LoRA files: small changes of a transformer's linear layers, for the pictures that ask for them and no others.

A file holds two thin matrices for each layer that it changes (arXiv 2106.09685): what a layer makes of x becomes
W x + strength * alpha / rank * up down x. The weights stay as they are, so nothing has to be put back exactly, and
whoever asks for no LoRA draws as if there were none. Layers may be called as diffusers and PEFT, BFL and ComfyUI, or
kohya call them; where one of theirs is several of ours, each of these gets its rows of `up`.
What it does not know: requests, folders, which pictures share a pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fluxserve.engine import bfl, header
from fluxserve.errors import CheckpointRefused

if TYPE_CHECKING:
    from torch import Tensor, device, dtype
    from torch.nn import Linear, Module

#: What a layer's path in a transformer follows: PEFT's, diffusers', ComfyUI's, kohya's.
_PREFIX = re.compile(
    r"^(base_model\.model\.)?(transformer\.|(model\.)?diffusion_model\.|lora_unet_|lora_transformer_)?"
)
#: All spellings of the two matrices, PEFT's with or without the name of an adapter.
_MATRIX = re.compile(r"^(?P<layer>.+)\.(?:lora_(?P<side>[AB])(?:\.\w+)?|lora[._](?P<old>down|up))\.weight$")
_ALPHA, _WEIGHT = ".alpha", ".weight"
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_MATRIX_AXES = 2
_FORMATS = frozenset({"F32", "F16", "BF16"})
_NAMED_AT_MOST = 3
#: Layers of text encoders, which are left as they are.
_OF_TEXTS = re.compile(r"^(base_model\.model\.)?(text_encoder|lora_te)")
#: Names of which one is enough to know a file of another layout or kind, and what to do about it.
_STRANGERS = (
    (r"\.processor\.", "in the layout of XLabs", "Convert it to"),
    (r"\.lokr_|\.hada_|lora_magnitude_vector|\.dora_scale", "a LoKr, a LoHa or a DoRA", "Name a plain LoRA in"),
    (r"\.lora_B(\.\w+)?\.bias$|\.diff(_b)?$", "one that changes biases too", "Name one without them in"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is added to one layer: `down` (rank, width in) and `up` (width out, rank), this times alpha / rank."""

    down: Tensor
    up: Tensor

    def to(self, device: device, dtype: dtype) -> Change:
        """The same on a device, in its numbers."""
        return Change(down=self.down.to(device, dtype), up=self.up.to(device, dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A file's changes by the path of their layer in the transformer; `leaves_texts`: it has others that are not made.

    These are changes of text encoders.
    """

    changes: Mapping[str, Change]
    leaves_texts: bool = False

    @property
    def byte_count(self) -> int:
        """What it takes of memory."""
        return sum(change.down.nbytes + change.up.nbytes for change in self.changes.values())


class _Told(msgspec.Struct, frozen=True):
    """What a file says of itself where it holds no alphas."""

    r: int | None = msgspec.field(name="transformer.r", default=None)
    alpha: float | None = msgspec.field(name="transformer.lora_alpha", default=None)


def check(file: Path) -> Mapping[str, Mapping[str, str]]:
    """Layer -> "down", "up" and perhaps "alpha" -> name of the tensor in the file; looks at its header only.

    A layer is called as in the file, without what comes before its path. Text encoders are passed over.
    Raises CheckpointMissing, or CheckpointRefused for whatever is no whole LoRA of a transformer.
    """
    stored = {name: one for name, one in header.read(file).items() if not _OF_TEXTS.match(name)}
    for pattern, what, remedy in _STRANGERS:
        if any(re.search(pattern, name) for name in stored):
            raise CheckpointRefused(f"{file} is {what}. {remedy} diffusers' or kohya's layout (safetensors).")
    layers: dict[str, dict[str, str]] = {}
    for name in stored:
        layer, side = _place(file, name)
        if side in layers.setdefault(layer, {}):
            raise CheckpointRefused(f"{file} holds more than one LoRA. Name a file that holds one.")
        layers[layer][side] = name
    halves = [layer for layer, sides in layers.items() if not {"down", "up"} <= sides.keys()]
    if not layers or halves:
        raise CheckpointRefused(f"{file} is no whole LoRA: {_some(halves) or 'it is empty'}. Download it again.")
    for layer, sides in layers.items():
        down, up = stored[sides["down"]], stored[sides["up"]]
        if len(down.shape) != _MATRIX_AXES or len(up.shape) != _MATRIX_AXES or not 0 < down.shape[0] == up.shape[1]:
            raise CheckpointRefused(f"{file}: the matrices of {layer} do not fit each other.")
        if not {down.dtype, up.dtype} <= _FORMATS:
            raise CheckpointRefused(f"{file}: {layer} is kept as {down.dtype}; {', '.join(sorted(_FORMATS))} are read.")
    return layers


def load(file: Path, transformer: Module, device: device, dtype: dtype) -> Lora:
    """Its changes; raises like `check`, and where they do not fit."""
    from safetensors import SafetensorError

    layers, linear = check(file), _linear_layers(transformer)
    try:
        return _load(file, layers, linear, device, dtype)
    except (SafetensorError, ValueError, RuntimeError):  # sizes, numbers or metadata that contradict each other
        raise CheckpointRefused(f"{file} is damaged: its header does not fit its content. Get it again.") from None


def _load(
    file: Path, layers: Mapping[str, Mapping[str, str]], linear: Mapping[str, Linear], device: device, dtype: dtype
) -> Lora:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        told, places = _told(content.metadata() or {}), _places(linear)
        strangers = [layer for layer in layers if layer not in places]
        if strangers:
            raise CheckpointRefused(f"{file} was made for another transformer: here is no {_some(strangers)}.")
        changes: dict[str, Change] = {}
        for layer, sides in layers.items():
            found = _changes(
                file,
                {name: linear[name] for name in places[layer].names},
                _change({side: content.get_tensor(sides[side]) for side in sides}, told).to(device, dtype),
                swapped=places[layer].swapped,
            )
            if found.keys() & changes.keys():
                raise CheckpointRefused(f"{file} changes {_some(found)} twice. Name a file that holds one LoRA.")
            changes |= found
        return Lora(changes=changes, leaves_texts=any(_OF_TEXTS.match(name) for name in header.read(file)))


@contextmanager
def applied(transformer: Module, lora: Lora | None, strength: float) -> Iterator[None]:
    """Inside, the transformer draws with these changes, `strength` times as large; one thread at a time."""
    if lora is None:
        yield
        return
    linear = _linear_layers(transformer)
    usual = {layer: linear[layer].__dict__.get("forward") for layer in lora.changes}
    try:
        for layer, change in lora.changes.items():
            setattr(linear[layer], "forward", partial(_changed, linear[layer].forward, change, strength))  # noqa: B010
        yield
    finally:
        for layer, forward in usual.items():
            if forward is None:
                linear[layer].__dict__.pop("forward", None)
            else:
                setattr(linear[layer], "forward", forward)  # noqa: B010


def _changed(usual: Callable[[Tensor], Tensor], change: Change, strength: float, rows: Tensor) -> Tensor:
    from fluxserve.engine.apart import multiply

    thin = multiply(rows, change.down.to(rows.dtype))
    return usual(rows) + strength * multiply(thin, change.up.to(rows.dtype))


def _place(file: Path, name: str) -> tuple[str, str]:
    """The layer that a tensor belongs to, and which of its tensors it is."""
    bare = _PREFIX.sub("", name)
    if bare.endswith(_ALPHA):
        return bare.removesuffix(_ALPHA), "alpha"
    found = _MATRIX.match(bare)
    if found is None:
        raise CheckpointRefused(f"{file} is no LoRA in a layout that is read: it holds {name[:100]!r}.")
    return found["layer"], _SIDES[found["side"] or found["old"]]


def _told(metadata: Mapping[str, str]) -> _Told:
    try:
        return msgspec.json.decode(metadata.get("lora_adapter_metadata", "{}"), type=_Told)
    except msgspec.MsgspecError:
        return _Told()


def _change(tensors: Mapping[str, Tensor], told: _Told) -> Change:
    """As the file has it, its scale in `up`."""
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    alpha = (
        float(tensors["alpha"])
        if "alpha" in tensors
        else rank
        if told.alpha is None
        else told.alpha * rank / (told.r or rank)
    )
    return Change(down=down, up=up.float() * (alpha / rank))


def _changes(file: Path, layers: Mapping[str, Linear], change: Change, *, swapped: bool) -> Mapping[str, Change]:
    """Each layer's rows of it, one after the other; `swapped`: see `bfl.Destination`."""
    (width_in,), rows = {one.in_features for one in layers.values()}, [one.out_features for one in layers.values()]
    if (change.up.shape[0], change.down.shape[1]) != (sum(rows), width_in):
        raise CheckpointRefused(
            f"{file} was made for another transformer: {_some(layers)} is {width_in} to {sum(rows)} here, "
            f"{change.down.shape[1]} to {change.up.shape[0]} there."
        )
    up = change.up.roll(len(change.up) // 2, 0) if swapped else change.up
    parts: Sequence[Tensor] = up.split(rows)  # type: ignore[no-untyped-call]
    return {layer: Change(down=change.down, up=part) for layer, part in zip(layers, parts, strict=True)}


def _places(linear: Collection[str]) -> Mapping[str, bfl.Destination]:
    """Where a layer of a file is here, by each spelling of its path: diffusers', BFL's, and kohya's of either."""
    names = bfl.FLUX1 if any(layer.startswith(bfl.FLUX1.embedded) for layer in linear) else bfl.FLUX2
    double, single = (bfl.count_blocks(linear, f"{kind}transformer_blocks") for kind in ("", "single_"))
    theirs = {
        name.removesuffix(_WEIGHT): bfl.Destination(
            tuple(layer.removesuffix(_WEIGHT) for layer in place.names), swapped=place.swapped
        )
        for name, place in bfl.transformer(double, single, guidance=True, names=names).items()
        if name.endswith(_WEIGHT)
    }
    dotted = {layer: bfl.Destination((layer,)) for layer in linear} | {
        name: place for name, place in theirs.items() if all(layer in linear for layer in place.names)
    }
    return {name.replace(".", "_"): place for name, place in dotted.items()} | dotted


def _linear_layers(transformer: Module) -> Mapping[str, Linear]:
    from torch.nn import Linear

    return {name: layer for name, layer in transformer.named_modules() if isinstance(layer, Linear)}


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(sorted(names)[:_NAMED_AT_MOST]) + more
