"""Whole pictures through the engine, with random weights of the published sizes: alone, sustained, in company.

    .venv/bin/python benchmarks/gpu/engine.py --model FLUX.1-dev

`warm`: the start, with all that is compiled then; later ones find kernels on disk. `one`: from a prompt to a picture,
nothing beside it. `drawn`: from prompt embeddings to a picture's bytes; what others state ends at the decoded tensor.
`sustained`: pictures a second while many are in the engine, so that prompts are read and pictures decoded beside the
steps. `small`: the same at 512 x 512, one at a time, exactly, and for throughput. `unseen`: the first picture of a
legal size that was never drawn, beside the usual time of its neighbours. `held` is what of the chosen speed held when
it was tried.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import lab
from fluxserve.catalogue import MODELS as CATALOGUE
from fluxserve.catalogue import Generation, Size
from fluxserve.engine import layout, published, weights
from fluxserve.engine.base import Failed, Finished, Pixels
from fluxserve.engine.beside import Beside
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer, Load, open_drawer
from fluxserve.engine.families import Kind
from fluxserve.engine.single_file import Piece
from fluxserve.engine.weights import Parts
from fluxserve.settings import Settings

MODELS = ("FLUX.1-dev", "FLUX.1-schnell", "FLUX.2-klein-4B", "FLUX.2-dev")
STEPS = {"FLUX.1-dev": 28, "FLUX.2-dev": 50}
#: What is wanted of each, in seconds of one picture; of klein pictures a second too, of 512 x 512 times as many.
WANTED = {"FLUX.1-dev": 3.3, "FLUX.1-schnell": 0.55, "FLUX.2-klein-4B": 0.35, "FLUX.2-dev": 23.0}
WANTED_SUSTAINED = {"FLUX.2-klein-4B": 4.0}
WANTED_IN_8_BITS = {"FLUX.1-dev": 2.1}
WANTED_TOGETHER, WANTED_UNSEEN = 3.2, 1.5
LARGE, SMALL, TINY = Size(1024, 1024), Size(512, 512), Size(256, 256)
UNSEEN, NEAR_IT = Size(736, 928), Size(768, 896)
#: So many at once; fewer of those that take so long that these would fill a command.
TOGETHER, FEW_TOGETHER, LONG_S = 16, 4, 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the model is wanted to reach."""
    bench = lab.begin("Whole pictures through the engine.", arguments, MODELS)
    with tempfile.TemporaryDirectory(prefix="fluxserve-gpu-") as home:
        folder = build(bench, Path(home) / bench.model)
        usual = _speed(bench)
        in_8_bits = (*usual, "float8-dynamic")
        _run(bench, folder, "bfloat16", usual, "exact", ("one", "drawn", "sustained", "unseen", "small"))
        _run(bench, folder, "float8", in_8_bits, "exact", ("drawn",))
        _run(bench, folder, "throughput", usual, "throughput", ("small",))
    return bench.answer


def _speed(bench: lab.Bench) -> tuple[str, ...]:
    return ("fused", "channels-last") if bench.tiny else ("auto",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Warm:
    """An engine, what of its speed held when it was tried, and what its pictures are wanted to take."""

    engine: DiffusionEngine
    held: tuple[str, ...]
    wanted: float | None

    @property
    def words(self) -> str:
        """What held, for people."""
        return ", ".join(self.held) or "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """`pictures`: about as many as it draws of 1024 x 1024, or what takes as long."""

    act: Callable[[lab.Bench, Warm], dict[str, float]]
    pictures: Callable[[lab.Bench], float]


def _run(
    bench: lab.Bench, folder: Path, name: str, speed: tuple[str, ...], numerics: str, wanted: Sequence[str]
) -> None:
    """One engine for all that is measured with it; none where all of it is known, or it could not be made."""
    stages = {f"{name}, {one}": MEASUREMENTS[one] for one in wanted}
    start = f"{name}, warm"
    if all(bench.is_done("engine", what) for what in stages) or bench.has_failed("engine", start):
        return
    settings = settings_for(bench, folder, speed=speed, numerics=numerics)
    made: list[Warm] = []
    bench.measure("engine", start, partial(begin, bench, settings, made), anew=True)
    for what, one in stages.items() if made else ():
        takes = one.pictures(bench) * _known_seconds(bench)
        bench.measure("engine", what, partial(_with_speed, bench, made[0], one), takes)


def settings_for(bench: lab.Bench, folder: Path, **more: object) -> Settings:
    """Every model is drawn by what lies in the folder; what is measured on the way is kept beside it."""
    return Settings(
        models=dict.fromkeys(CATALOGUE, str(folder)),
        device=str(bench.device),
        dtype="bfloat16",
        accept_licenses=("flux-1-dev", "flux-2-dev"),
        data_dir=folder.parent,
        **({"token_budget": 1100} if bench.tiny else {}),
        **more,
    )


def begin(bench: lab.Bench, settings: Settings, made: list[Warm], load: Load | None = None) -> dict[str, float | str]:
    """A warm engine, appended to `made`; `load`: otherwise than with random numbers."""
    held: list[tuple[str, ...]] = []

    def opened(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
        drawer = open_drawer(checkpoint, runtime, load or partial(_random, bench))
        held.append(drawer.speed.words)
        return drawer

    engine = DiffusionEngine(settings, opened)
    began = time.perf_counter()
    engine.warm()
    seconds = time.perf_counter() - began
    wanted = WANTED_IN_8_BITS if "float8-dynamic" in settings.speed else WANTED
    made.append(Warm(engine=engine, held=held[0], wanted=wanted.get(bench.model)))
    return {"seconds": seconds, "held": made[0].words}


def _with_speed(bench: lab.Bench, warm: Warm, one: Measurement) -> dict[str, float | str]:
    return {**one.act(bench, warm), "held": warm.words}


def _known_seconds(bench: lab.Bench) -> float:
    """Of a picture, if it was measured."""
    known = bench.found("engine", "bfloat16, one")
    return known["seconds"] if known else 0.0


def _together(bench: lab.Bench) -> int:
    if bench.tiny:
        return 2
    return FEW_TOGETHER if _known_seconds(bench) > LONG_S else TOGETHER


def _one(bench: lab.Bench, warm: Warm) -> dict[str, float]:
    seconds = bench.seconds(lambda: draw(bench, warm.engine, [LARGE]))
    return {"seconds": seconds, **_wanted(warm)}


def _drawn(bench: lab.Bench, warm: Warm) -> dict[str, float]:
    """The prompt is in the cache of prompts, whose lane answers at once."""
    seconds = bench.seconds(lambda: draw(bench, warm.engine, [LARGE], prompt="read before"))
    return {"seconds": seconds, **_wanted(warm)}


def _wanted(warm: Warm) -> dict[str, float]:
    return {} if warm.wanted is None else {"wanted": warm.wanted}


def _sustained(bench: lab.Bench, warm: Warm) -> dict[str, float]:
    count = _together(bench)
    seconds = bench.seconds(lambda: draw(bench, warm.engine, [LARGE] * count), 1, is_warm=True)
    wanted = {"wanted_pictures": WANTED_SUSTAINED[bench.model]} if bench.model in WANTED_SUSTAINED else {}
    return {"seconds": seconds, "pictures": float(count), "pictures_per_second": count / seconds, **wanted}


def _small(bench: lab.Bench, warm: Warm) -> dict[str, float]:
    """Times as many pictures a second together as one at a time."""
    count = _together(bench)
    alone = bench.seconds(lambda: draw(bench, warm.engine, [SMALL]), 3)
    seconds = bench.seconds(lambda: draw(bench, warm.engine, [SMALL] * count), 1)
    return {
        "seconds": seconds,
        "pictures": float(count),
        "seconds_alone": alone,
        "times": count * alone / seconds,
        **({"wanted_times": WANTED_TOGETHER} if "throughput" in warm.held else {}),
    }


def _unseen(bench: lab.Bench, warm: Warm) -> dict[str, float]:
    """Times as long as the usual picture near it; more than wanted is too long."""
    usual = bench.seconds(lambda: draw(bench, warm.engine, [NEAR_IT]), 3)
    began = time.perf_counter()
    draw(bench, warm.engine, [UNSEEN])
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "seconds_usual": usual, "times": seconds / usual, "wanted_times": WANTED_UNSEEN}


#: `one` and `drawn`: a round before, and as many as fit; of 512 x 512 a picture takes about a quarter.
MEASUREMENTS = {
    "one": Measurement(act=_one, pictures=lambda _: 2.0),
    "drawn": Measurement(act=_drawn, pictures=lambda _: 3.0),
    "sustained": Measurement(act=_sustained, pictures=_together),
    "unseen": Measurement(act=_unseen, pictures=lambda _: 5.0),
    "small": Measurement(act=_small, pictures=lambda bench: (4 + 2 * _together(bench)) / 3),
}
_numbers = iter(range(10**6))


def draw(
    bench: lab.Bench, engine: DiffusionEngine, sizes: Sequence[Size], prompt: str = "", steps: int = 0
) -> list[Pixels]:
    """All at once. Every prompt and seed is new, unless a prompt is given: all have that, and seeds from 0 on."""
    refs = [str(next(_numbers)) for _ in sizes]
    for number, (ref, size) in enumerate(zip(refs, sizes, strict=True)):
        generation = Generation(
            model="flux-dev",
            prompt=prompt or f"picture number {ref}",
            size=TINY if bench.tiny else size,
            seed=number if prompt else int(ref),
            steps=steps or (2 if bench.tiny else STEPS.get(bench.model, 4)),
            guidance=3.5,
            output_format="png",
        )
        engine.admit(ref, generation)
    drawn: dict[str, Pixels] = {}
    while engine.active:
        for event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Finished):
                drawn[event.ref] = event.pixels
    return [drawn[ref] for ref in refs]


def build(bench: lab.Bench, folder: Path) -> Path:
    """The small files of a checkpoint, and headers of weights; hub caches name files by their hash, as these are."""
    if bench.tiny:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        if bench.model.startswith("FLUX.1"):
            return lab.tiny.build(folder, guidance_embeds=True, scheduler=scheduler)
        return lab.flux2_folders.build_klein(folder, is_distilled=True)
    published.build(folder, lab.shape_of(bench.model))
    blobs = folder.parent / "blobs"
    blobs.mkdir(exist_ok=True)
    for file in folder.glob("*/*.safetensors"):
        blob = blobs / sha256(str(file.relative_to(folder)).encode()).hexdigest()
        file.rename(blob)
        file.symlink_to(blob)
    return folder


def _random(bench: lab.Bench, folder: Path, runtime: Runtime, pieces: Mapping[str, Piece], beside: Beside) -> Parts:
    """Parts as `weights.load` makes them, drawn on the device and never read."""
    if bench.tiny:
        return weights.load(folder, runtime, pieces, beside)
    index = layout.read_index(folder)
    by_name: dict[str, object] = {}
    for name, part in index.family.parts.items():
        if part.kind is Kind.TOKENIZER:
            by_name[name] = weights.read_tokenizer(folder, index, name)
        else:
            by_name[name] = _random_network(bench, runtime, name)
    return Parts(
        family=index.family,
        device=runtime.torch_device,
        by_name=by_name,  # type: ignore[arg-type]
        plan=runtime.plan,
        speed=runtime.speed,
    )


def _random_network(bench: lab.Bench, runtime: Runtime, part: str) -> torch.nn.Module:
    torch.set_default_dtype(runtime.torch_dtype)
    try:
        with torch.inference_mode(mode=False), bench.device:
            network = published.made(lab.shape_of(bench.model), part)
    finally:
        torch.set_default_dtype(torch.float32)
    lab.draw(network)
    if part == "transformer" and runtime.plan.float8:
        lab.hold_in_8_bits(network)
    return network.eval().requires_grad_(requires_grad=False)


if __name__ == "__main__":
    lab.run(main)
