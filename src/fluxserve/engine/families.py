"""The families of open weights: what a folder of each pipeline class has to hold, and what that means for drawing.

Data only, without torch: how a family draws is in `networks`.
What it does not know: files on disk, tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from fluxserve.engine import bfl
from fluxserve.engine.means import Stage
from fluxserve.engine.sampling import EmpiricalSchedule, NoiseSchedule

FLUX1_DEV_LICENSE, FLUX2_DEV_LICENSE, KLEIN_9B_LICENSE = "flux-1-dev", "flux-2-dev", "flux-2-klein-9b"
#: Licences that someone has to accept before the weights are used.
LICENSES_TO_ACCEPT = frozenset({FLUX1_DEV_LICENSE, FLUX2_DEV_LICENSE, KLEIN_9B_LICENSE})
#: By the names under which they were published: what the weights themselves do not tell.
_PUBLISHED = {
    "FLUX.1-dev": FLUX1_DEV_LICENSE,
    "FLUX.1-schnell": "apache-2.0",
    "flux1-schnell": "apache-2.0",
    "FLUX.2-klein-4B": "apache-2.0",
    "FLUX.2-klein-base-4B": "apache-2.0",
}
#: What the transformer of [klein] 9B reads of a token: three layers of Qwen3-8B. That of 4B reads 7680.
_KLEIN_9B_TEXT = 12288


class Kind(Enum):
    """How a part is read: a network of diffusers, one of transformers, or a tokenizer. The value names its weights."""

    DIFFUSERS = "diffusion_pytorch_model"
    TRANSFORMERS = "model"
    TOKENIZER = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a folder: the stage that uses it, and the classes it may name: any other would be drawn wrongly."""

    kind: Kind
    stage: Stage
    classes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the folders of one pipeline class have in common.

    `draws`: "module:Class", imported when used. `schedule`: how its scheduler's config is read. `tokenizer`: the one
    that decides how many tokens a prompt has; of them it learnt `longest_text`, by whether the transformer has a
    guidance embedding, which `guidance_embeds` says where its config does not. `text_layers`: those of the text encoder
    whose rows stand side by side, where it is not the last one's alone. `license_of` answers for a name of weights,
    whether there is such an embedding, and how wide the transformer's texts are. `cfg_scale`: true guidance, unless the
    weights are distilled or a card says otherwise. `references`: how many pictures it learnt to read beside its own.
    `in_files`: the parts that may lie in single files, whose layers have these `names`.
    """

    title: str
    draws: str
    parts: Mapping[str, Part]
    schedule: type[NoiseSchedule]
    tokenizer: str
    longest_text: Mapping[bool, int]
    guidance_embeds: bool
    license_of: Callable[[str, bool, int], str | None]
    names: bfl.Names
    in_files: frozenset[str]
    text_layers: tuple[int, ...] = ()
    cfg_scale: float = 1.0
    references: int = 0

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts that have weights."""
        return tuple(name for name, part in self.parts.items() if part.kind is not Kind.TOKENIZER)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The parts that have none."""
        return tuple(name for name in self.parts if name not in self.networks)

    def networks_of(self, stage: Stage) -> tuple[str, ...]:
        """Those that `stage` uses."""
        return tuple(name for name in self.networks if self.parts[name].stage is stage)


def _part(kind: Kind, stage: Stage, *classes: str) -> Part:
    return Part(kind=kind, stage=stage, classes=frozenset(classes))


def _license_of_flux1(name: str, guidance_embeds: bool, text_width: int) -> str | None:  # noqa: ARG001
    return FLUX1_DEV_LICENSE if guidance_embeds else _PUBLISHED.get(name)


def _license_of_flux2(name: str, guidance_embeds: bool, text_width: int) -> str | None:
    if guidance_embeds:
        return FLUX2_DEV_LICENSE
    return KLEIN_9B_LICENSE if text_width == _KLEIN_9B_TEXT else _PUBLISHED.get(name)


_FAST = ("PreTrainedTokenizerFast", "TokenizersBackend")
FLUX1 = Family(
    title="FLUX.1",
    draws="fluxserve.engine.networks.flux1:Flux1",
    parts={
        "transformer": _part(Kind.DIFFUSERS, Stage.PREDICT, "FluxTransformer2DModel"),
        "vae": _part(Kind.DIFFUSERS, Stage.DECODE, "AutoencoderKL", "AutoencoderTiny"),
        "text_encoder": _part(Kind.TRANSFORMERS, Stage.ENCODE, "CLIPTextModel"),
        "text_encoder_2": _part(Kind.TRANSFORMERS, Stage.ENCODE, "T5EncoderModel"),
        "tokenizer": _part(Kind.TOKENIZER, Stage.ENCODE, "CLIPTokenizer", "CLIPTokenizerFast"),
        "tokenizer_2": _part(Kind.TOKENIZER, Stage.ENCODE, "T5Tokenizer", "T5TokenizerFast", *_FAST),
    },
    schedule=NoiseSchedule,
    tokenizer="tokenizer_2",
    longest_text={True: 512, False: 256},
    guidance_embeds=False,
    license_of=_license_of_flux1,
    names=bfl.FLUX1,
    in_files=frozenset({"transformer", "vae", "text_encoder", "text_encoder_2"}),
)
FLUX1_KONTEXT = replace(FLUX1, title="FLUX.1 Kontext", references=4)
FLUX2 = Family(
    title="FLUX.2 [dev]",
    draws="fluxserve.engine.networks.flux2:dev",
    parts={
        "transformer": _part(Kind.DIFFUSERS, Stage.PREDICT, "Flux2Transformer2DModel"),
        "vae": _part(Kind.DIFFUSERS, Stage.DECODE, "AutoencoderKLFlux2"),
        "text_encoder": _part(Kind.TRANSFORMERS, Stage.ENCODE, "Mistral3ForConditionalGeneration"),
        "tokenizer": _part(Kind.TOKENIZER, Stage.ENCODE, "PixtralProcessor", *_FAST),
    },
    schedule=EmpiricalSchedule,
    tokenizer="tokenizer",
    longest_text={True: 512, False: 512},
    guidance_embeds=True,
    license_of=_license_of_flux2,
    names=bfl.FLUX2,
    in_files=frozenset({"transformer"}),
    text_layers=(10, 20, 30),
    references=8,
)
FLUX2_KLEIN = replace(
    FLUX2,
    title="FLUX.2 [klein]",
    draws="fluxserve.engine.networks.flux2:klein",
    parts={
        **FLUX2.parts,
        "text_encoder": _part(Kind.TRANSFORMERS, Stage.ENCODE, "Qwen3ForCausalLM"),
        "tokenizer": _part(Kind.TOKENIZER, Stage.ENCODE, "Qwen2Tokenizer", "Qwen2TokenizerFast", *_FAST),
    },
    text_layers=(9, 18, 27),
    cfg_scale=4.0,
    references=4,
)
#: By `_class_name` in model_index.json.
FAMILIES: Mapping[str, Family] = {
    "FluxPipeline": FLUX1,
    "FluxImg2ImgPipeline": FLUX1,
    "FluxKontextPipeline": FLUX1_KONTEXT,
    "FluxFillPipeline": FLUX1,
    "FluxControlPipeline": FLUX1,
    "Flux2Pipeline": FLUX2,
    "Flux2KleinPipeline": FLUX2_KLEIN,
}
