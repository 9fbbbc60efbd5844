"""Weights from safetensors files into the published network classes, on one device, in one number format.

Local files only, no code from a checkpoint. Nothing is initialised that the files then replace.
What it does not know: what the networks are used for.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from fluxserve.engine import depth, layout, preparation, redux, single_file
from fluxserve.engine.beside import NOTHING, Beside
from fluxserve.engine.depth import Depth
from fluxserve.engine.device import Runtime
from fluxserve.engine.families import Family, Kind
from fluxserve.engine.means import Stage
from fluxserve.engine.preparation import Preparation
from fluxserve.engine.redux import Redux
from fluxserve.engine.single_file import Piece
from fluxserve.errors import CheckpointRefused, OutOfMemory

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
#: A filter of a convolution: channels out, channels in, height, width.
_FILTER_AXES = 4
_Network = TypeVar("_Network", bound="torch.nn.Module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The loaded parts of a checkpoint; each is an attribute by the name that its family gives it."""

    family: Family
    device: torch.device
    by_name: Mapping[str, PreTrainedModel | PreTrainedTokenizerBase | torch.nn.Module]
    redux: Redux | None = None
    depth: Depth | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in self.by_name:
            raise AttributeError(f"Checkpoints of {self.family.title} have no {name}.")
        return self.by_name[name]

    def networks_of(self, stage: Stage) -> Sequence[torch.nn.Module]:
        """Those that `stage` uses."""
        networks = [self.by_name[name] for name in self.family.networks_of(stage)]
        if stage is Stage.ENCODE:
            networks += () if self.redux is None else self.redux.modules
            networks += () if self.depth is None else (self.depth.network,)
        return networks


def load(
    folder: Path, runtime: Runtime, pieces: Mapping[str, Piece] = MappingProxyType({}), beside: Beside = NOTHING
) -> Parts:
    """Load every part, those of `pieces` from there, and what is `beside`.

    Raises CheckpointRefused where files do not fit, OutOfMemory.
    """
    import torch

    try:
        return _load(folder, runtime, pieces, beside)
    except CheckpointRefused:
        raise
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemory(f"There is not enough memory on {runtime.device} for {folder}.") from None
    except Exception:
        logger.exception("Loading failed", extra={"action": "load_failed", "folder": str(folder)})
        raise CheckpointRefused(f"{folder} cannot be loaded: its files do not fit each other; see the log.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where parts are read from, and for where."""

    folder: Path
    index: layout.Index
    pieces: Mapping[str, Piece]
    runtime: Runtime


def _load(folder: Path, runtime: Runtime, pieces: Mapping[str, Piece], beside: Beside) -> Parts:
    source = _Source(folder=folder, index=layout.read_index(folder), pieces=pieces, runtime=runtime)
    family = source.index.family
    read = {Kind.DIFFUSERS: _network, Kind.TRANSFORMERS: _text_encoder, Kind.TOKENIZER: _tokenizer}
    loaded = {name: read[part.kind](source, name) for name, part in family.parts.items()}
    return Parts(
        family=family,
        device=runtime.torch_device,
        by_name=loaded,
        redux=None if beside.redux is None else _redux(beside.redux, runtime),
        depth=None if beside.depth is None else _depth(beside.depth, runtime),
    )


def _redux(folder: Path, runtime: Runtime) -> Redux:
    import torch
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipVisionModel

    config = json.loads((folder / redux.HEAD / "config.json").read_bytes())
    known = ("redux_dim", "txt_in_features")
    with torch.device("meta"):
        head = ReduxImageEncoder(**{name: config[name] for name in known if name in config})
    _fill(head, _tensors(folder, (redux.HEAD_FILE,), runtime), runtime)
    encoder = SiglipVisionModel.from_pretrained(
        folder / redux.ENCODER, dtype=runtime.torch_dtype, local_files_only=True, use_safetensors=True
    )
    return Redux(
        encoder=_for_inference(_settled(encoder, runtime)),
        head=_for_inference(head),
        preparation=layout.read_json(folder / redux.PREPARED, Preparation),
    )


def _depth(folder: Path, runtime: Runtime) -> Depth:
    import transformers

    network = getattr(transformers, depth.class_of(folder)).from_pretrained(
        folder, dtype=runtime.torch_dtype, local_files_only=True, use_safetensors=True
    )
    return Depth(
        network=_for_inference(_settled(network, runtime)),
        preparation=layout.read_json(folder / preparation.FILE, Preparation),
    )


def _network(source: _Source, part: str) -> torch.nn.Module:
    """A network of diffusers, made without memory first, so that each tensor goes straight to its place."""
    import diffusers
    import torch

    folder, runtime, piece = source.folder, source.runtime, source.pieces.get(part)
    network_class = getattr(diffusers, source.index.class_of(part))
    known = inspect.signature(network_class.__init__).parameters
    config = json.loads((folder / part / "config.json").read_bytes())
    if part == "transformer" and piece is not None:
        config |= single_file.transformer_config(single_file.check_transformer(piece))
    with torch.device("meta"):
        network: torch.nn.Module = network_class(**{name: value for name, value in config.items() if name in known})
    if piece is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        single_file.check_shapes(piece, shapes)
        _fill(network, single_file.tensors(piece, runtime.device, shapes), runtime)
    else:
        _fill(network, _tensors(folder, layout.weight_files(folder, source.index.family, part), runtime), runtime)
    return _for_inference(network)


def _tensors(folder: Path, files: Iterable[str], runtime: Runtime) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's files, one after the other."""
    from safetensors import safe_open

    for file in files:
        with safe_open(folder / file, framework="pt", device=runtime.device) as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                yield name, opened.get_tensor(name)


def _fill(network: torch.nn.Module, tensors: Iterable[tuple[str, Tensor]], runtime: Runtime) -> None:
    """Put each tensor in its place as it comes: nothing holds all of them twice. Raises ValueError for a misfit."""
    import torch

    left = network.state_dict()
    for name, tensor in tensors:
        place = left.pop(name, None)
        if place is None or place.shape != tensor.shape:
            raise ValueError(name, tensor.shape, None if place is None else place.shape)
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        own = _owned(tensor.to(runtime.torch_device, runtime.torch_dtype))
        is_parameter = isinstance(getattr(module, leaf), torch.nn.Parameter)
        setattr(module, leaf, torch.nn.Parameter(own, requires_grad=False) if is_parameter else own)
    if left:
        raise ValueError("missing", sorted(left))


def _text_encoder(source: _Source, part: str) -> PreTrainedModel:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder, runtime = source.folder, source.runtime
    encoder_class = getattr(transformers, source.index.class_of(part))
    if part in source.pieces:
        encoder = _text_encoder_in(source.pieces[part], encoder_class, folder / part, runtime)
    else:
        encoder, report = encoder_class.from_pretrained(
            folder / part,
            dtype=runtime.torch_dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        if report["missing_keys"]:  # it would be drawn with what chance put there
            raise ValueError("missing", sorted(report["missing_keys"]))
    return _for_inference(_settled(encoder, runtime))


def _settled(network: _Network, runtime: Runtime) -> _Network:
    """On the device, each tensor in memory of its own."""
    settled = network.to(runtime.torch_device)
    for tensor in (*settled.parameters(), *settled.buffers()):
        tensor.data = _owned(tensor.data)
    return settled


def _text_encoder_in(
    piece: Piece, encoder_class: type[PreTrainedModel], config: Path, runtime: Runtime
) -> PreTrainedModel:
    """From a single file, with the folder's config; raises CheckpointRefused where they do not fit each other."""
    shapes = {name: tensor.shape for name, tensor in piece.tensors.items()}
    encoder, report = encoder_class.from_pretrained(
        None,
        config=encoder_class.config_class.from_pretrained(config, local_files_only=True),
        # Nothing else holds these, so that each is given up as the next is put in memory of its own.
        state_dict={
            name: tensor.to(runtime.torch_dtype) for name, tensor in single_file.tensors(piece, runtime.device, shapes)
        },
        dtype=runtime.torch_dtype,
        output_loading_info=True,
    )
    misfits = sorted(map(str, (*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"])))
    if misfits:
        raise CheckpointRefused(
            f"The {piece.part} in {piece.file} does not fit {config}: {', '.join(misfits[:3])}. "
            "Name a base with the same text encoders, or the file that belongs to it."
        )
    return encoder


def _owned(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own, filters on a CPU with their channels last.

    Convolutions over channels that lie last take a quarter less time there. A tensor mapped from a file lies where
    the file has it, and kernels take other paths, with other last bits, for memory that is not aligned: the same
    weights in other files would draw other pixels.
    """
    import torch

    if tensor.device.type == "cpu":
        order = torch.channels_last if tensor.ndim == _FILTER_AXES else torch.preserve_format
        return tensor.clone(memory_format=order)
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _for_inference(network: _Network) -> _Network:
    return network.eval().requires_grad_(requires_grad=False)


def _tokenizer(source: _Source, part: str) -> PreTrainedTokenizerBase:
    """Of a processor its tokenizer only: the rest is for pictures, and wants packages that nothing here needs."""
    import transformers

    name = source.index.class_of(part)
    tokenizer_class = getattr(transformers, "AutoTokenizer" if name.endswith("Processor") else name)
    return tokenizer_class.from_pretrained(source.folder / part, local_files_only=True)
