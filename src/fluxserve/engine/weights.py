"""Weights from safetensors and GGUF files into the published network classes, on one device, in one number format.

Local files only, no code from a checkpoint. Nothing is initialised that the files then replace.
What it does not know: what the networks are used for.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from fluxserve.engine import depth, header, layout, preparation, published, redux, single_file
from fluxserve.engine.beside import NOTHING, Beside
from fluxserve.engine.depth import Depth
from fluxserve.engine.device import Runtime
from fluxserve.engine.families import Family, Kind
from fluxserve.engine.means import Stage
from fluxserve.engine.needs import is_block_matrix
from fluxserve.engine.plans import RESIDENT, Plan
from fluxserve.engine.preparation import Preparation
from fluxserve.engine.recovery import is_out_of_memory
from fluxserve.engine.redux import Redux
from fluxserve.engine.single_file import Piece
from fluxserve.engine.speed import PLAIN, Speed
from fluxserve.errors import CheckpointRefused, OutOfMemory

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from fluxserve.engine.eight_bits import Eighths

logger = logging.getLogger(__name__)
#: What helps where a folder's files do not belong together.
_REMEDY = "Copy or download the folder again, or name one whose parts were made for each other."
#: A filter of a convolution: channels out, channels in, height, width.
_FILTER_AXES = 4
_Network = TypeVar("_Network", bound="torch.nn.Module")
_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The loaded parts of a checkpoint; each is an attribute by the name that its family gives it."""

    family: Family
    device: torch.device
    by_name: Mapping[str, PreTrainedModel | PreTrainedTokenizerBase | torch.nn.Module]
    redux: Redux | None = None
    depth: Depth | None = None
    plan: Plan = RESIDENT
    speed: Speed = PLAIN
    #: Its language model is kept whole, if it has one: it answers too.
    writes: bool = False

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
    folder: Path,
    runtime: Runtime,
    pieces: Mapping[str, Piece] = MappingProxyType({}),
    beside: Beside = NOTHING,
    *,
    at_random: bool = False,
) -> Parts:
    """Load every part, those of `pieces` from there, and what is `beside`.

    `at_random`: of the folder's files only the headers are read, and numbers drawn for the tensors that they name.
    Raises CheckpointRefused where files do not fit, OutOfMemory.
    """
    import torch

    try:
        return _load(folder, runtime, pieces, beside, at_random=at_random)
    except (CheckpointRefused, torch.AcceleratorError):  # a device that stopped working is no fault of files
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"There is not enough memory on {runtime.device} for {folder}.") from None
        logger.exception("Loading failed", extra={"action": "load_failed", "folder": str(folder)})
        raise CheckpointRefused(
            f"{folder} cannot be loaded: its files do not fit each other; see the log. {_REMEDY}"
        ) from None


def import_classes(folder: Path) -> None:
    """Import what a folder's parts are made of, which takes seconds, once in a process. Raises CheckpointRefused."""
    import diffusers
    import transformers

    index = layout.read_index(folder)
    for name, part in index.family.parts.items():
        getattr(diffusers if part.kind is Kind.DIFFUSERS else transformers, index.class_of(name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where parts are read from, and for where."""

    folder: Path
    index: layout.Index
    pieces: Mapping[str, Piece]
    runtime: Runtime
    at_random: bool

    def place_of(self, part: str) -> _Place:
        """Where the part goes."""
        return _Place.of(self.index.family.parts[part].stage, self.runtime)

    def tensors_of(self, part: str) -> Iterator[tuple[str, Tensor]]:
        """Those of the folder's files, at home."""
        place, files = self.place_of(part), layout.weight_files(self.folder, self.index.family, part)
        return _random(self.folder, files, place) if self.at_random else _tensors(self.folder, files, place)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where weights go: the memory that is their `home`, the device that computes with them, and in which numbers."""

    home: torch.device
    device: torch.device
    dtype: torch.dtype
    eighths: Eighths | None

    @classmethod
    def of(cls, stage: Stage, runtime: Runtime) -> _Place:
        """For the networks of a stage."""
        return cls(
            home=runtime.home_of(stage),
            device=runtime.torch_device,
            dtype=runtime.torch_dtype,
            eighths=("int8" if runtime.plan.int8 else "float8") if runtime.plan.holds_eighths(stage) else None,
        )


def _load(folder: Path, runtime: Runtime, pieces: Mapping[str, Piece], beside: Beside, *, at_random: bool) -> Parts:
    index = layout.read_index(folder)
    if runtime.plan.int8:
        from fluxserve.engine import eight_bits

        eight_bits.check_int8()
    source = _Source(folder=folder, index=index, pieces=pieces, runtime=runtime, at_random=at_random)
    family = source.index.family
    read = {Kind.DIFFUSERS: _network, Kind.TRANSFORMERS: _text_encoder, Kind.TOKENIZER: _tokenizer}
    loaded = {name: _part(read[part.kind], source, name) for name, part in family.parts.items()}
    return Parts(
        family=family,
        device=runtime.torch_device,
        by_name=loaded,
        redux=None if beside.redux is None else _redux(beside.redux, runtime),
        depth=None if beside.depth is None else _depth(beside.depth, runtime),
        plan=runtime.plan,
        speed=runtime.speed,
        writes=runtime.writes,
    )


def _part(read: Callable[[_Source, str], _Part], source: _Source, part: str) -> _Part:
    """The part, or a refusal that names it; what single files refuse names them by itself."""
    import torch

    try:
        return read(source, part)
    except (CheckpointRefused, torch.AcceleratorError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.exception("A part could not be loaded", extra={"action": "load_failed", "part": part})
        place = source.pieces[part].file if part in source.pieces else source.folder / part
        raise CheckpointRefused(f"The {part} in {place} cannot be loaded; see the log. {_REMEDY}") from None


def _redux(folder: Path, runtime: Runtime) -> Redux:
    import torch
    from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
    from transformers import SiglipVisionModel

    config = json.loads((folder / redux.HEAD / "config.json").read_bytes())
    known = ("redux_dim", "txt_in_features")
    with torch.device("meta"):
        head = ReduxImageEncoder(**{name: config[name] for name in known if name in config})
    place = _Place.of(Stage.ENCODE, runtime)
    _fill(head, _tensors(folder, (redux.HEAD_FILE,), place), place, f"{folder / redux.HEAD_FILE}")
    encoder = _whole(SiglipVisionModel, folder / redux.ENCODER, runtime.torch_dtype)
    return Redux(
        encoder=_for_inference(_settled(encoder, place)),
        head=_for_inference(head),
        preparation=layout.read_json(folder / redux.PREPARED, Preparation),
    )


def _depth(folder: Path, runtime: Runtime) -> Depth:
    import transformers

    network = _whole(getattr(transformers, depth.class_of(folder)), folder, runtime.torch_dtype)
    return Depth(
        network=_for_inference(_settled(network, _Place.of(Stage.ENCODE, runtime))),
        preparation=layout.read_json(folder / preparation.FILE, Preparation),
    )


def blank(folder: Path, index: layout.Index, part: str, piece: Piece | None = None) -> torch.nn.Module:
    """A network of diffusers without numbers, as the folder says, or the file that holds it."""
    import diffusers
    import torch

    network_class = getattr(diffusers, index.class_of(part))
    known = inspect.signature(network_class.__init__).parameters
    config = json.loads((folder / part / "config.json").read_bytes())
    if part == "transformer" and piece is not None:
        config |= single_file.transformer_config(single_file.check_transformer(piece))
    with torch.device("meta"):
        network: torch.nn.Module = network_class(**{name: value for name, value in config.items() if name in known})
    return network


def _network(source: _Source, part: str) -> torch.nn.Module:
    """A network of diffusers, made without memory first, so that each tensor goes straight to its place."""
    place, piece = source.place_of(part), source.pieces.get(part)
    network = blank(source.folder, source.index, part, piece)
    if piece is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        single_file.check_shapes(piece, shapes)
        # Where numbers are worked out from others, the device that computes is the quicker one.
        source_device = place.device if piece.is_quantized else place.home
        _fill(network, single_file.tensors(piece, str(source_device), shapes), place, f"{piece.file}")
    else:
        _fill(network, source.tensors_of(part), place, f"The {part} in {source.folder / part}")
    return _for_inference(network)


def _random(folder: Path, files: Iterable[str], place: _Place) -> Iterator[tuple[str, Tensor]]:
    """For every tensor that the headers of the folder's files name, numbers drawn at its home."""
    for file in files:
        for name, stored in header.read(folder / file).items():
            yield name, published.normal(name, stored.shape, place.home, place.dtype)


def _tensors(folder: Path, files: Iterable[str], place: _Place) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the folder's files, one after the other."""
    from safetensors import safe_open

    for file in files:
        with safe_open(folder / file, framework="pt", device=str(place.home)) as opened:
            for name in opened.keys():  # noqa: SIM118 - not a mapping
                yield name, opened.get_tensor(name)


def _fill(network: torch.nn.Module, tensors: Iterable[tuple[str, Tensor]], place: _Place, what: str) -> None:
    """Put each tensor in its place as it comes: nothing holds all of them twice.

    Raises CheckpointRefused for a misfit, which says `what` does not fit its config.
    """
    left = network.state_dict()
    for name, tensor in tensors:
        wanted = left.pop(name, None)
        if wanted is None:
            raise CheckpointRefused(f"{what} does not fit its config.json, which knows no tensor {name}. {_REMEDY}")
        if wanted.shape != tensor.shape:
            shapes = f"{list(tensor.shape)} and not {list(wanted.shape)}"
            raise CheckpointRefused(f"{what} does not fit its config.json: {name} is {shapes}. {_REMEDY}")
        _put(network, name, tensor.to(place.home, place.dtype), place)
    if left:
        raise _lacking(what, left)


def _lacking(what: str, names: Iterable[str]) -> CheckpointRefused:
    missing = sorted(names)
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return CheckpointRefused(f"{what} lacks the tensor {missing[0]}{more}. {_REMEDY}")


def _whole(network_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A network of transformers from a folder that lacks nothing: chance would fill what is missing."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    network, report = network_class.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    if report["missing_keys"]:
        raise _lacking(f"{folder}", report["missing_keys"])
    return network


def _put(network: torch.nn.Module, name: str, tensor: Tensor, place: _Place) -> None:
    import torch

    path, _, leaf = name.rpartition(".")
    module = network.get_submodule(path)
    if place.eighths is not None and isinstance(module, torch.nn.Linear) and is_block_matrix(name, tensor.ndim):
        from fluxserve.engine import eight_bits

        eight_bits.hold(module, tensor, place.eighths)
        return
    own = _owned(tensor, place)
    is_parameter = isinstance(getattr(module, leaf), torch.nn.Parameter)
    setattr(module, leaf, torch.nn.Parameter(own, requires_grad=False) if is_parameter else own)


def _text_encoder(source: _Source, part: str) -> PreTrainedModel:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    folder, place = source.folder, source.place_of(part)
    encoder_class = getattr(transformers, source.index.class_of(part))
    if part in source.pieces:
        encoder = _text_encoder_in(source.pieces[part], encoder_class, folder / part, place)
    elif source.at_random:
        encoder, report = _text_encoder_of(dict(source.tensors_of(part)), encoder_class, folder / part, place)
        if report["missing_keys"]:
            raise _lacking(f"The {part} in {folder / part}", report["missing_keys"])
    else:
        encoder = _whole(encoder_class, folder / part, place.dtype)
    return _for_inference(_settled(encoder, place))


def _settled(network: _Network, place: _Place) -> _Network:
    """At home, each tensor in memory of its own."""
    settled = network.to(place.home)
    for tensor in (*settled.parameters(), *settled.buffers()):
        tensor.data = _owned(tensor.data, place)
    return settled


def _text_encoder_in(
    piece: Piece, encoder_class: type[PreTrainedModel], config: Path, place: _Place
) -> PreTrainedModel:
    """From a single file, with the folder's config; raises CheckpointRefused where they do not fit each other."""
    shapes = {name: tensor.shape for name, tensor in piece.tensors.items()}
    # Nothing else holds these, so that each is given up as the next is put in memory of its own.
    tensors = {name: tensor.to(place.dtype) for name, tensor in single_file.tensors(piece, str(place.home), shapes)}
    encoder, report = _text_encoder_of(tensors, encoder_class, config, place)
    misfits = sorted(map(str, (*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"])))
    if misfits:
        raise CheckpointRefused(
            f"The {piece.part} in {piece.file} does not fit {config}: {', '.join(misfits[:3])}. "
            "Name a base with the same text encoders, or the file that belongs to it."
        )
    return encoder


def _text_encoder_of(
    tensors: dict[str, Tensor], encoder_class: type[PreTrainedModel], config: Path, place: _Place
) -> tuple[PreTrainedModel, Mapping[str, Collection[str]]]:
    """And what transformers reports of how they fit."""
    loaded: tuple[PreTrainedModel, Mapping[str, Collection[str]]] = encoder_class.from_pretrained(
        None,
        config=encoder_class.config_class.from_pretrained(config, local_files_only=True),
        state_dict=tensors,
        dtype=place.dtype,
        output_loading_info=True,
    )
    return loaded


def _owned(tensor: Tensor, place: _Place) -> Tensor:
    """The tensor in memory of its own, filters for a CPU with their channels last.

    Convolutions over channels that lie last take a quarter less time there. A tensor mapped from a file lies where
    the file has it, and kernels take other paths, with other last bits, for memory that is not aligned: the same
    weights in other files would draw other pixels.
    """
    import torch

    if tensor.device.type == "cpu":
        is_filter = place.device.type == "cpu" and tensor.ndim == _FILTER_AXES
        order = torch.channels_last if is_filter else torch.preserve_format
        return tensor.clone(memory_format=order)
    return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor


def _for_inference(network: _Network) -> _Network:
    return network.eval().requires_grad_(requires_grad=False)


def _tokenizer(source: _Source, part: str) -> PreTrainedTokenizerBase:
    return read_tokenizer(source.folder, source.index, part)


def read_tokenizer(folder: Path, index: layout.Index, part: str) -> PreTrainedTokenizerBase:
    """Of a processor its tokenizer only: the rest is for pictures, and wants packages that nothing here needs."""
    import transformers

    name = index.class_of(part)
    tokenizer_class = getattr(transformers, "AutoTokenizer" if name.endswith("Processor") else name)
    return tokenizer_class.from_pretrained(folder / part, local_files_only=True)
