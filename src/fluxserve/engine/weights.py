"""Weights from safetensors files into the published network classes, on one device, in one number format.

Local files only, no code from a checkpoint. Nothing is initialised that the files then replace.
What it does not know: what the networks are used for.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from fluxserve.engine import depth, layout, preparation, redux, single_file
from fluxserve.engine.beside import NOTHING, Beside
from fluxserve.engine.depth import Depth
from fluxserve.engine.device import Runtime
from fluxserve.engine.preparation import Preparation
from fluxserve.engine.redux import Redux
from fluxserve.engine.single_file import Piece
from fluxserve.errors import CheckpointRefused, OutOfMemory

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, FluxTransformer2DModel
    from torch import Tensor
    from transformers import CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase, T5EncoderModel

logger = logging.getLogger(__name__)
#: A filter of a convolution: channels out, channels in, height, width.
_FILTER_AXES = 4
_Network = TypeVar("_Network", bound="torch.nn.Module")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The loaded parts of a FLUX.1 checkpoint."""

    transformer: FluxTransformer2DModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: PreTrainedTokenizerBase
    tokenizer_2: PreTrainedTokenizerBase
    device: torch.device
    redux: Redux | None = None
    depth: Depth | None = None


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


def _load(folder: Path, runtime: Runtime, pieces: Mapping[str, Piece], beside: Beside) -> Parts:
    index = layout.read_index(folder)
    return Parts(
        transformer=_network(folder, "transformer", index, runtime, pieces),
        vae=_network(folder, "vae", index, runtime, pieces),
        text_encoder=_text_encoder(folder, "text_encoder", index, runtime, pieces),
        text_encoder_2=_text_encoder(folder, "text_encoder_2", index, runtime, pieces),
        tokenizer=_tokenizer(folder, "tokenizer", index),
        tokenizer_2=_tokenizer(folder, "tokenizer_2", index),
        device=runtime.torch_device,
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
    _fill(head, _tensors_of(folder / redux.HEAD_FILE, runtime), runtime)
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


def _network(
    folder: Path, part: str, index: layout.Index, runtime: Runtime, pieces: Mapping[str, Piece]
) -> torch.nn.Module:
    """A network of diffusers, made without memory first, so that each tensor goes straight to its place."""
    import diffusers
    import torch

    network_class = getattr(diffusers, index.class_of(part))
    known = inspect.signature(network_class.__init__).parameters
    config = json.loads((folder / part / "config.json").read_bytes())
    if part == "transformer" and part in pieces:
        config |= single_file.transformer_config(single_file.check_transformer(pieces[part]))
    with torch.device("meta"):
        network: torch.nn.Module = network_class(**{name: value for name, value in config.items() if name in known})
    if part in pieces:
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        single_file.check_shapes(pieces[part], shapes)
        _fill(network, single_file.tensors(pieces[part], runtime.device, shapes), runtime)
    else:
        _fill(network, _tensors(folder, part, runtime), runtime)
    return _for_inference(network)


def _tensors(folder: Path, part: str, runtime: Runtime) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a part of the folder, one after the other."""
    for file in layout.weight_files(folder, part):
        yield from _tensors_of(folder / file, runtime)


def _tensors_of(file: Path, runtime: Runtime) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    with safe_open(file, framework="pt", device=runtime.device) as opened:
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


def _text_encoder(
    folder: Path, part: str, index: layout.Index, runtime: Runtime, pieces: Mapping[str, Piece]
) -> PreTrainedModel:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    encoder_class = getattr(transformers, index.class_of(part))
    if part in pieces:
        encoder = _text_encoder_in(pieces[part], encoder_class, folder / part, runtime)
    else:
        encoder = encoder_class.from_pretrained(
            folder / part, dtype=runtime.torch_dtype, local_files_only=True, use_safetensors=True
        )
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


def _tokenizer(folder: Path, part: str, index: layout.Index) -> PreTrainedTokenizerBase:
    import transformers

    return getattr(transformers, index.class_of(part)).from_pretrained(folder / part, local_files_only=True)
