"""Weights from safetensors files into the published network classes, on one device, in one number format.

Local files only, no code from a checkpoint. Nothing is initialised that the files then replace.
What it does not know: what the networks are used for.
"""

from __future__ import annotations

import inspect
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fluxserve.engine import layout
from fluxserve.engine.device import Runtime
from fluxserve.errors import CheckpointRefused, OutOfMemory

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny, FluxTransformer2DModel
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


def load(folder: Path, runtime: Runtime) -> Parts:
    """Load every part; raises CheckpointRefused where the files do not fit each other, OutOfMemory."""
    import torch

    try:
        return _load(folder, runtime)
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemory(f"There is not enough memory on {runtime.device} for {folder}.") from None
    except Exception:
        logger.exception("Loading failed", extra={"action": "load_failed", "folder": str(folder)})
        raise CheckpointRefused(f"{folder} cannot be loaded: its files do not fit each other; see the log.") from None


def _load(folder: Path, runtime: Runtime) -> Parts:
    index = layout.read_index(folder)
    return Parts(
        transformer=_network(folder, "transformer", index, runtime),
        vae=_network(folder, "vae", index, runtime),
        text_encoder=_text_encoder(folder, "text_encoder", index, runtime),
        text_encoder_2=_text_encoder(folder, "text_encoder_2", index, runtime),
        tokenizer=_tokenizer(folder, "tokenizer", index),
        tokenizer_2=_tokenizer(folder, "tokenizer_2", index),
        device=runtime.torch_device,
    )


def _network(folder: Path, part: str, index: layout.Index, runtime: Runtime) -> torch.nn.Module:
    """A network of diffusers, made without memory first, so that each tensor goes straight to its place."""
    import diffusers
    import torch
    from safetensors.torch import load_file

    network_class = getattr(diffusers, index.class_of(part))
    known = inspect.signature(network_class.__init__).parameters
    config = json.loads((folder / part / "config.json").read_bytes())
    with torch.device("meta"):
        network: torch.nn.Module = network_class(**{name: value for name, value in config.items() if name in known})
    tensors = {
        name: tensor.to(runtime.torch_dtype)
        for file in layout.weight_files(folder, part)
        for name, tensor in load_file(folder / file, device=runtime.device).items()
    }
    network.load_state_dict(tensors, assign=True)
    return _settled(network)


def _text_encoder(folder: Path, part: str, index: layout.Index, runtime: Runtime) -> PreTrainedModel:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    encoder = getattr(transformers, index.class_of(part)).from_pretrained(
        folder / part, dtype=runtime.torch_dtype, local_files_only=True, use_safetensors=True
    )
    return _settled(encoder.to(runtime.torch_device))


def _settled(network: _Network) -> _Network:
    """For inference only, each tensor on a CPU in memory of its own, filters with their channels last.

    Convolutions over channels that lie last take a quarter less time there. A tensor mapped from a file lies where
    the file has it, and kernels take other paths, with other last bits, for memory that is not aligned: the same
    weights in other files would draw other pixels.
    """
    import torch

    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.device.type == "cpu":
            order = torch.channels_last if tensor.ndim == _FILTER_AXES else torch.preserve_format
            tensor.data = tensor.data.clone(memory_format=order)
    return network.eval().requires_grad_(requires_grad=False)


def _tokenizer(folder: Path, part: str, index: layout.Index) -> PreTrainedTokenizerBase:
    import transformers

    return getattr(transformers, index.class_of(part)).from_pretrained(folder / part, local_files_only=True)
