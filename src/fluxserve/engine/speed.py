"""What is chosen for speed, as one value: whatever in it may change a bit is part of the fingerprint.

Nothing is chosen by a clock: the settings say it, or for `auto` the kind of the device. How each is done is in
`faster`, `company` (numerics) and `step_cache`.
What it does not know: torch, networks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fluxserve.errors import ConfigurationError
from fluxserve.settings import AttentionChoice, Settings, SpeedWord, StepCacheChoice

#: NVIDIA's compute capability from which cuDNN's attention and products of 8 bits with a scale for each row are there.
_HOPPER, _ADA = (9, 0), (8, 9)
#: What a GPU's large networks are drawn with, and its tiny ones, whose kernels take less time than asking for them.
_LARGE: tuple[SpeedWord, ...] = ("compiled", "fused", "channels-last", "graphs")
_TINY: tuple[SpeedWord, ...] = ("graphs",)
#: Of torch.compile: the one that makes kernels.
USUAL_BACKEND = "inductor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a device and its machine can do. `capability`: NVIDIA's, (0, 0) elsewhere; `compiles`: makes kernels.

    `flash3`: the package of FlashAttention-3 is installed. `tiny`: so are the networks.
    """

    kind: str
    dtype: str
    capability: tuple[int, int] = (0, 0)
    compiles: bool = False
    flash3: bool = False
    tiny: bool = False

    @property
    def is_hopper(self) -> bool:
        """Or newer, with numbers of 16 bits."""
        return self.kind == "cuda" and self.capability >= _HOPPER and self.dtype != "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """`compiled`: blocks and decoder become kernels of their own. `fused`: what reads the same is one product.

    `graphs`: passes of few tokens are recorded and replayed. `channels_last`: the decoder's filters and pictures.
    `float8`: activations are in 8 bits too, as the weights of such a plan are. `attention`: whose kernel.
    `throughput`: who shares a pass may change bits. `step_cache`: steps that are not made, but foretold.
    `backend`: of torch.compile; where no compiler is, others still show that blocks can be compiled.
    """

    compiled: bool = False
    backend: str = USUAL_BACKEND
    fused: bool = False
    graphs: bool = False
    channels_last: bool = False
    float8: bool = False
    attention: AttentionChoice = "torch"
    throughput: bool = False
    step_cache: StepCacheChoice = "off"

    @property
    def words(self) -> tuple[str, ...]:
        """What is not as in the plainest way."""
        named = {
            "compiled" if self.backend == USUAL_BACKEND else f"compiled by {self.backend}": self.compiled,
            "fused": self.fused,
            "graphs": self.graphs,
            "channels-last": self.channels_last,
            "float8-dynamic": self.float8,
            f"attention {self.attention}": self.attention != "torch",
            "throughput": self.throughput,
            f"step cache {self.step_cache}": self.step_cache != "off",
        }
        return tuple(word for word, is_so in named.items() if is_so)

    def facts(self, *, is_usual: bool, in_company: bool, foretells: bool) -> dict[str, str]:
        """What a result's details tell of it: whatever draws a picture that differs from the usual one to the eye.

        Of a picture whose passes are usual ones, which may share them, and some of whose steps are foretold; what was
        not so, is not told of.
        """
        told = {
            "numerics": "throughput" if self.throughput and in_company else "",
            "step_cache": self.step_cache if foretells else "",
            "linears": "float8-dynamic" if self.float8 and is_usual else "",
        }
        return {name: word for name, word in told.items() if word}

    @property
    def makes_passes(self) -> bool:
        """Passes get kernels or a record of their own, for each number of pictures in them."""
        return self.compiled or self.graphs

    @property
    def plainly(self) -> Speed:
        """The same without what has to be tried first."""
        kept = self.channels_last, self.throughput, self.step_cache
        return Speed(channels_last=kept[0], throughput=kept[1], step_cache=kept[2])

    def for_weights(self, *, move: bool, stream: bool) -> Speed:
        """A record is of one place: of no use where weights move; where they come at every step, nor is a compiler."""
        return replace(self, compiled=self.compiled and not stream, graphs=self.graphs and not move)


PLAIN = Speed()


def choose(settings: Settings, around: Surroundings) -> Speed:
    """What the settings mean here. Raises ConfigurationError where they ask for what is not there."""
    words = set(settings.speed)
    if "plain" in words and len(words) > 1:
        raise ConfigurationError(f"speed = {', '.join(sorted(words))}: plain is none of the others. Name it alone.")
    if "auto" in words:
        words |= set(_automatic(around))
    speed = Speed(
        compiled="compiled" in words,
        fused="fused" in words,
        graphs="graphs" in words and settings.step_cache != "first-block",  # whose passes are of two kinds
        channels_last="channels-last" in words,
        float8="float8-dynamic" in words,
        attention=_attention(settings.attention, around),
        throughput=settings.numerics == "throughput",
        step_cache=settings.step_cache,
    )
    _check(speed, around)
    return speed


def _automatic(around: Surroundings) -> tuple[SpeedWord, ...]:
    if around.kind != "cuda":
        return ()
    if around.tiny:
        return _TINY
    return _LARGE if around.compiles else tuple(word for word in _LARGE if word != "compiled")


def _attention(choice: AttentionChoice, around: Surroundings) -> AttentionChoice:
    if choice != "auto":
        return choice
    return "cudnn" if around.is_hopper and not around.tiny else "torch"


def _check(speed: Speed, around: Surroundings) -> None:
    on_gpu, on_cpu = around.kind == "cuda", around.kind == "cpu"
    if speed.compiled and not around.compiles:
        raise ConfigurationError("speed = compiled needs a C++ compiler here, and Triton on a GPU. Install one.")
    if speed.graphs and not on_gpu:
        raise ConfigurationError(f"speed = graphs is for NVIDIA's GPUs, not for {around.kind}. Leave it out.")
    if speed.float8 and not (on_cpu or (on_gpu and around.capability >= _ADA and around.dtype == "bfloat16")):
        raise ConfigurationError(
            "speed = float8-dynamic needs an NVIDIA GPU of compute capability 8.9 or more and dtype = bfloat16, or a "
            "CPU to try it on. Leave it out."
        )
    if speed.attention == "flash3" and not (around.flash3 and around.is_hopper):
        raise ConfigurationError("attention = flash3 needs a Hopper GPU and the package flash_attn_interface.")
    if speed.attention in ("cudnn", "efficient") and not on_gpu:
        raise ConfigurationError(f"attention = {speed.attention} is for NVIDIA's GPUs, not for {around.kind}.")
    if speed.attention in ("cudnn", "flash") and on_gpu and around.dtype == "float32":
        raise ConfigurationError(f"attention = {speed.attention} computes in 16 bits: choose dtype = bfloat16.")
