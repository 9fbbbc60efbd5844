"""Folders of the published shapes without their numbers: what can be planned, counted and measured before a download.

The configs are the published ones, the tensors those of the published classes. Their files have headers and holes, and
take no disk, unless numbers are asked for. How fast networks are does not depend on what their numbers are, as long as
these are no zeros. Prompts are read by other tokenizers, which makes no difference either: texts are filled up.
What it does not know: devices, how anything is measured.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fluxserve import mini
from fluxserve.engine.families import FAMILIES, Kind

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Module

#: Numbers in files, as they were published.
_FORMAT, _BYTES = "BF16", 2
_DEVIATION = 0.02
_MATRIX_AXES = 2
#: Tensors that are the same as another one, which is in the file: T5's, and a language model's where it says so.
_T5_TIED, _TIED = "encoder.embed_tokens.weight", "lm_head.weight"
_TEXT_LENGTH, _CLIP_LENGTH = 512, 77

_Config = Mapping[str, object]
_HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_QWEN = {"vocab_size": 151936, "num_hidden_layers": 36, **_HEADS}
_QWEN_4B = _QWEN | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
_QWEN_8B = _QWEN | {"hidden_size": 4096, "intermediate_size": 12288}
_MISTRAL = {
    "text_config": {
        "model_type": "mistral", "hidden_size": 5120, "intermediate_size": 32768, "num_hidden_layers": 40,
        "vocab_size": 131072, **_HEADS,
    },
    "vision_config": {
        "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    },
}  # fmt: skip
_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_T5 = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_LEVELS = 4
_KL = {
    "down_block_types": ["DownEncoderBlock2D"] * _LEVELS, "up_block_types": ["UpDecoderBlock2D"] * _LEVELS,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16,
    "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1159, "scaling_factor": 0.3611,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A published checkpoint: its name, its pipeline, and the configs of its networks by part.

    An encoder without a config is mini's own. `references`: pictures it reads beside the one it draws, when measured.
    """

    title: str
    pipeline: str
    configs: Mapping[str, _Config | None]
    steps: int
    is_distilled: bool = False
    references: int = 0

    def classes(self) -> Mapping[str, str]:
        """The class of each network."""
        others = {"AutoencoderTiny"}
        family = FAMILIES[self.pipeline]
        return {part: next(iter(sorted(family.parts[part].classes - others))) for part in family.networks}


def _flux1(transformer: _Config) -> Mapping[str, _Config | None]:
    return {"transformer": transformer, "vae": _KL, "text_encoder": _CLIP, "text_encoder_2": _T5}


def _flux2(transformer: _Config, encoder: _Config) -> Mapping[str, _Config | None]:
    return {"transformer": transformer, "vae": {}, "text_encoder": encoder}


_DEV = Shape(title="FLUX.1-dev", pipeline="FluxPipeline", configs=_flux1({"guidance_embeds": True}), steps=28)
#: By the word of the command line. `thin` is FLUX.1 at its real width, with few blocks and mini's encoders.
SHAPES: Mapping[str, Shape] = {
    "flux-dev": _DEV,
    "flux-schnell": replace(
        _DEV, title="FLUX.1-schnell", configs=_flux1({"guidance_embeds": False}), steps=4
    ),
    "kontext": replace(_DEV, title="FLUX.1-Kontext-dev", pipeline="FluxKontextPipeline", references=1),
    "flux-2-dev": Shape(
        title="FLUX.2-dev", pipeline="Flux2Pipeline", configs=_flux2({"guidance_embeds": True}, _MISTRAL), steps=50
    ),
    "klein-4b": Shape(
        title="FLUX.2-klein-4B",
        pipeline="Flux2KleinPipeline",
        configs=_flux2(
            {
                "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
                "guidance_embeds": False,
            },
            _QWEN_4B,
        ),
        steps=4,
        is_distilled=True,
    ),
    "klein-9b": Shape(
        title="FLUX.2-klein-9B",
        pipeline="Flux2KleinPipeline",
        configs=_flux2(
            {
                "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
                "guidance_embeds": False,
            },
            _QWEN_8B,
        ),
        steps=4,
        is_distilled=True,
    ),
    "thin": replace(
        _DEV,
        title="thin",
        configs={
            "transformer": {
                "guidance_embeds": True, "num_layers": 1, "num_single_layers": 2, "joint_attention_dim": 192,
                "pooled_projection_dim": 192,
            },
            "vae": _KL | {"block_out_channels": [16, 16, 32, 32], "layers_per_block": 1, "norm_num_groups": 16},
            "text_encoder": None,
            "text_encoder_2": None,
        },
        steps=4,
    ),
}  # fmt: skip


def build(folder: Path, name: str, *, numbers: bool = False) -> Path:
    """A folder of the shape in diffusers' layout; `numbers`: with random ones, which take as much disk as those."""
    shape = SHAPES[name]
    if shape.pipeline.startswith("Flux2"):
        _small_files_of_flux2(folder, shape)
    else:
        _small_files_of_flux1(folder, shape)
    for part, network in networks(name).items():
        _write(folder / part, network, numbers=numbers)
    return folder


def made(name: str, part: str) -> Module:
    """One network, with the numbers that its class begins with, where torch makes tensors."""
    shape = SHAPES[name]
    return _network(part, shape.classes()[part], shape.configs[part])


def networks(name: str) -> dict[str, Module]:
    """By part, without numbers."""
    import torch

    with torch.device("meta"):
        return {part: made(name, part) for part in SHAPES[name].classes()}


def normal(name: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Random numbers for a tensor: what comes out of a layer is about as large as what goes in; factors are about 1."""
    import torch

    drawn = torch.randn(tuple(shape), device=device, dtype=dtype)
    if name.endswith("num_batches_tracked"):
        return torch.ones_like(drawn)
    if len(shape) >= _MATRIX_AXES:
        return drawn.mul_(1 / math.sqrt(math.prod(shape[1:])))
    is_factor = name.endswith(("weight", "running_var"))
    return drawn.mul_(_DEVIATION).add_(1 if is_factor else 0)


def _network(part: str, class_name: str, config: _Config | None) -> Module:
    import diffusers
    import transformers

    if hasattr(diffusers, class_name):
        made: Module = getattr(diffusers, class_name)(**(config or {}))
    else:
        made_by = getattr(transformers, class_name)
        kind = made_by.config_class
        made = made_by(kind.from_pretrained(mini.folder() / part) if config is None else kind(**config))
    return made.eval()


def _write(folder: Path, network: Module, *, numbers: bool) -> None:
    """Its config, and one safetensors file that says where each tensor lies."""
    config: Any = network.config
    folder.mkdir(parents=True, exist_ok=True)
    is_of_transformers = hasattr(config, "to_json_file")
    if is_of_transformers:
        config.to_json_file(folder / "config.json")
    else:
        network.save_config(folder)  # type: ignore[operator]
    tied = {_T5_TIED, *((_TIED,) if getattr(config, "tie_word_embeddings", False) else ())}
    shapes = {name: tuple(one.shape) for name, one in network.state_dict().items() if name not in tied}
    kind = Kind.TRANSFORMERS if is_of_transformers else Kind.DIFFUSERS
    with (folder / f"{kind.value}.safetensors").open("wb") as file:
        end = _write_header(file, shapes)
        if numbers:
            _write_numbers(file, shapes)
        file.truncate(end)


def _write_header(file: BinaryIO, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Answers the length of the whole file."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + _BYTES * math.prod(shape)
        header[name] = {"dtype": _FORMAT, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    file.write(len(text).to_bytes(8, "little") + text)
    return file.tell() + end


def _write_numbers(file: BinaryIO, shapes: Mapping[str, tuple[int, ...]]) -> None:
    import torch

    for name, shape in shapes.items():
        drawn = normal(name, shape, torch.device("cpu"), torch.float32).to(torch.bfloat16)
        file.write(drawn.view(torch.int16).numpy().tobytes() if drawn.ndim else bytes(_BYTES))


def _small_files_of_flux1(folder: Path, shape: Shape) -> None:
    """Mini's own, but for what its transformer and its autoencoder are."""
    shutil.copytree(mini.folder(), folder, ignore=shutil.ignore_patterns("fluxserve.toml", "*.safetensors"))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": shape.pipeline, "vae": ["diffusers", shape.classes()["vae"]]}
    (folder / "model_index.json").write_text(json.dumps(index))
    lengths = {"tokenizer_2": _TEXT_LENGTH}
    if shape.configs["text_encoder"] is not None:  # mini's own reads no longer texts than it learnt
        lengths["tokenizer"] = _CLIP_LENGTH
    for tokenizer, length in lengths.items():
        config = folder / tokenizer / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_max_length": length}))


def _small_files_of_flux2(folder: Path, shape: Shape) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    is_dev = shape.pipeline == "Flux2Pipeline"
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(folder / "scheduler")
    tokenizer = byte_tokenizer("right" if is_dev else "left", MISTRAL_TEMPLATE if is_dev else QWEN_TEMPLATE)
    tokenizer.save_pretrained(folder / "tokenizer")
    index: dict[str, object] = {"_class_name": shape.pipeline, "is_distilled": shape.is_distilled}
    index |= dict(_libraries(shape))
    index |= {
        "tokenizer": ["transformers", type(tokenizer).__name__],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def _libraries(shape: Shape) -> Iterator[tuple[str, list[str]]]:
    kinds = {part: FAMILIES[shape.pipeline].parts[part].kind for part in shape.configs}
    for part, name in shape.classes().items():
        yield part, ["diffusers" if kinds[part] is Kind.DIFFUSERS else "transformers", name]


#: As those of Qwen3 and Mistral, in short: a string or a list of pieces, and whether to think first.
QWEN_TEMPLATE = (
    "{% for m in messages %}[BOS]{{ m.role }}: {{ m.content }}[END]{% endfor %}"
    "{% if add_generation_prompt %}[BOS]assistant: {% if not enable_thinking %}no thoughts{% endif %}{% endif %}"
)
MISTRAL_TEMPLATE = (
    "[BOS]{% for m in messages %}{{ m.role }}: {% for piece in m.content %}{{ piece.text }}{% endfor %}[END]"
    "{% endfor %}"
)
WORDS = ("[PAD]", "[BOS]", "[END]", "[IMG]")


def byte_tokenizer(side: str, template: str, length: int = _TEXT_LENGTH) -> Any:
    """A token for each byte, and `WORDS`: a tokenizer of transformers that fills up at this side to `length`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: number for number, word in enumerate((*WORDS, *alphabet))}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="[PAD]",  # noqa: S106 - of a text
        bos_token="[BOS]",  # noqa: S106
        eos_token="[END]",  # noqa: S106
        additional_special_tokens=["[IMG]"],
        padding_side=side,
        model_max_length=length,
    )
    tokenizer.chat_template = template
    return tokenizer
