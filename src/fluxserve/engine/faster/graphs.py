"""Passes of few tokens recorded once and replayed: a GPU is then asked for one thing, not for hundreds of kernels.

A record reads and writes memory at fixed places. Its inputs are copied there; where a weight lies elsewhere than when
it was recorded, because it was moved or exchanged, it is recorded anew. The kernels are those of the pass as it is.
What it does not know: pictures, which sizes are warmed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxserve.engine.faster.switch import Learning, Switch
from fluxserve.engine.moving import tensors_of
from fluxserve.engine.networks.shortcuts import Remembered, Rotation

if TYPE_CHECKING:
    from torch.nn import Module

#: Tokens of pictures and texts in a pass, over which kernels take longer than asking for them.
MOST_TOKENS = 4096
#: Records at once; the one that was not used for longest goes first.
_MOST_RECORDS = 48
#: Passes before one is recorded: libraries prepare themselves in the first.
_BEFORE = 2
#: Makes passes that are recorded: it runs one, and answers what replays it and what that writes to.
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """`places`: where each weight was; `inputs`: what is read, by name, and `angles`; `replay` writes `output`."""

    places: tuple[int, ...]
    inputs: Mapping[str, Tensor]
    angles: Sequence[Rotation]
    replay: Callable[[], None]
    output: Tensor


def record_passes(transformer: Module, switch: Switch, recorder: Recorder | None = None) -> None:
    """From now on passes of shapes that were learnt are replayed; others are made as they are."""
    remembered: Remembered = transformer.pos_embed.forward  # type: ignore[assignment,union-attr]
    recorded = Recorded(transformer, switch, remembered, recorder or _on_gpu)
    switch.forget = recorded.forget
    setattr(transformer, "forward", recorded)  # noqa: B010 - a module's own forward comes first


class Recorded:
    """Implements the transformer's forward."""

    def __init__(self, transformer: Module, switch: Switch, angles: Remembered, recorder: Recorder) -> None:
        self._forward: Callable[..., Any] = transformer.forward
        self._weights = list(tensors_of(transformer))
        self._switch = switch
        self._angles = angles
        self._recorder = recorder
        self._records: OrderedDict[Hashable, _Record] = OrderedDict()
        self._known: set[Hashable] = set()

    def __call__(self, **inputs: Any) -> Any:
        """As the transformer is called, with names only."""
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        key = tuple((name, tuple(one.shape), one.dtype) for name, one in tensors.items())
        if self._switch.learns is not Learning.NOTHING and _tokens(tensors) <= MOST_TOKENS:
            self._known.add(key)
        if not self._switch.on or key not in self._known:
            return self._forward(**inputs)
        record = self._records.get(key)
        places = tuple(weight.data_ptr() for weight in self._weights)
        if record is None or record.places != places:
            self._records.pop(key, None)  # what it held can be used for the next
            record = self._record(inputs, tensors, places)
            self._keep(key, record)
        self._records.move_to_end(key)
        for name, one in record.inputs.items():
            one.copy_(tensors[name])
        record.replay()
        return (record.output.clone(),)

    def forget(self) -> None:
        """Every record; shapes that were learnt are recorded again when they come."""
        self._records.clear()

    def _record(self, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor], places: tuple[int, ...]) -> _Record:
        own = {name: one.clone() for name, one in tensors.items()}
        call: Callable[[], Tensor] = lambda: self._forward(**{**inputs, **own})[0]  # noqa: E731
        with self._angles.heard() as angles:
            for _ in range(_BEFORE):
                angles.clear()
                call()
        with self._angles.saying(angles):
            replay, output = self._recorder(call)
        return _Record(places=places, inputs=own, angles=angles, replay=replay, output=output)

    def _keep(self, key: Hashable, record: _Record) -> None:
        self._records[key] = record
        while len(self._records) > _MOST_RECORDS:
            self._records.popitem(last=False)


def _tokens(tensors: Mapping[str, Tensor]) -> int:
    """Of all rows."""
    pictures, texts = tensors["hidden_states"], tensors["encoder_hidden_states"]
    return pictures.shape[0] * (pictures.shape[1] + texts.shape[1])


def _on_gpu(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    graph = torch.cuda.CUDAGraph()
    # Other threads read prompts and decode meanwhile: only this thread is held to what can be recorded.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        output = call()
    return graph.replay, output
