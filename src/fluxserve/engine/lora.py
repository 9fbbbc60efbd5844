"""LoRA files: small changes of a transformer's linear layers, for the pictures that ask for them and no others.

A file in diffusers' or PEFT's layout holds two thin matrices for each layer that it changes (arXiv 2106.09685): what a
layer makes of x becomes W x + strength * alpha / rank * up down x. The weights stay as they are, so nothing has to be
put back exactly, and whoever asks for no LoRA draws as if there were none.
What it does not know: requests, folders, which pictures share a pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fluxserve.engine import header
from fluxserve.errors import CheckpointRefused

if TYPE_CHECKING:
    from torch import Tensor, device, dtype
    from torch.nn import Linear, Module

_PREFIX = re.compile(r"^(base_model\.model\.)?(transformer\.)?")
#: Both spellings of the two matrices, PEFT's with or without the name of an adapter.
_MATRIX = re.compile(r"^(?P<layer>.+)\.(?:lora_(?P<side>[AB])(?:\.\w+)?|lora\.(?P<old>down|up))\.weight$")
_ALPHA = ".alpha"
_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
_MATRIX_AXES = 2
_FORMATS = frozenset({"F32", "F16", "BF16"})
_NAMED_AT_MOST = 3
#: Names of which one is enough to know a file of another layout or kind, and what to do about it.
_STRANGERS = (
    (r"^lora_(unet|te|transformer)|(^|\.)(double|single)_blocks\.", "in the layout of kohya or BFL", "Convert it to"),
    (r"\.lokr_|\.hada_|lora_magnitude_vector|\.dora_scale", "a LoKr, a LoHa or a DoRA", "Name a plain LoRA in"),
    (r"^(base_model\.model\.)?text_encoder", "one that changes text encoders too", "Name one without them in"),
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
    """A file's changes by the path of their layer in the transformer."""

    changes: Mapping[str, Change]

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

    Raises CheckpointMissing, or CheckpointRefused for whatever is no whole LoRA of a transformer in this layout.
    """
    stored = header.read(file)
    for pattern, what, remedy in _STRANGERS:
        if any(re.search(pattern, name) for name in stored):
            raise CheckpointRefused(f"{file} is {what}. {remedy} diffusers' layout (safetensors).")
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
        told = _told(content.metadata() or {})
        strangers = [layer for layer in layers if layer not in linear]
        if strangers:
            raise CheckpointRefused(f"{file} was made for another transformer: here is no {_some(strangers)}.")
        changes = {
            layer: _change(
                file, layer, linear[layer], {side: content.get_tensor(sides[side]) for side in sides}, told
            ).to(device, dtype)
            for layer, sides in layers.items()
        }
    return Lora(changes=changes)


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
        raise CheckpointRefused(f"{file} is no LoRA in diffusers' layout: it holds {name}.")
    return found["layer"], _SIDES[found["side"] or found["old"]]


def _told(metadata: Mapping[str, str]) -> _Told:
    try:
        return msgspec.json.decode(metadata.get("lora_adapter_metadata", "{}"), type=_Told)
    except msgspec.MsgspecError:
        return _Told()


def _change(file: Path, layer: str, linear: Linear, tensors: Mapping[str, Tensor], told: _Told) -> Change:
    down, up = tensors["down"], tensors["up"]
    rank = down.shape[0]
    if (up.shape[0], down.shape[1]) != (linear.out_features, linear.in_features):
        raise CheckpointRefused(
            f"{file} was made for another transformer: {layer} is {linear.in_features} to {linear.out_features} here, "
            f"{down.shape[1]} to {up.shape[0]} there."
        )
    alpha = (
        float(tensors["alpha"])
        if "alpha" in tensors
        else rank
        if told.alpha is None
        else told.alpha * rank / (told.r or rank)
    )
    return Change(down=down, up=up.float() * (alpha / rank))


def _linear_layers(transformer: Module) -> Mapping[str, Linear]:
    from torch.nn import Linear

    return {name: layer for name, layer in transformer.named_modules() if isinstance(layer, Linear)}


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return ", ".join(sorted(names)[:_NAMED_AT_MOST]) + more
