"""Whole pictures through the engine, with random weights of the published sizes: alone, sustained, in company.

    .venv/bin/python benchmarks/gpu/engine.py --model FLUX.1-dev

`one`: from a prompt to a picture, nothing beside it. `drawn`: from prompt embeddings to a picture's bytes; what others
state ends at the decoded tensor. `sustained`: pictures a second while sixteen are in the engine, so that prompts are
read and pictures decoded beside the steps. `small`: the same at 512 x 512, one at a time, exactly, and for throughput.
`unseen`: the first picture of a legal size that was never drawn, beside the usual time of its neighbours.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import lab
from fluxserve.catalogue import MODELS as CATALOGUE
from fluxserve.catalogue import Generation, Size
from fluxserve.engine import layout, published, weights
from fluxserve.engine.base import Failed, Finished
from fluxserve.engine.beside import Beside
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import open_drawer
from fluxserve.engine.families import Kind
from fluxserve.engine.single_file import Piece
from fluxserve.engine.weights import Parts
from fluxserve.settings import Settings

MODELS = ("FLUX.1-dev", "FLUX.1-schnell", "FLUX.2-klein-4B", "FLUX.2-dev")
STEPS = {"FLUX.1-dev": 28, "FLUX.2-dev": 50}
#: What is wanted of each, in seconds of one picture; of klein pictures a second too, of 512 x 512 times as many.
WANTED = {"FLUX.1-dev": 3.3, "FLUX.1-schnell": 0.55, "FLUX.2-klein-4B": 0.35, "FLUX.2-dev": 23.0}
WANTED_IN_8_BITS, WANTED_SUSTAINED, WANTED_TOGETHER, WANTED_UNSEEN = 2.1, 4.0, 3.2, 1.5
LARGE, SMALL, TINY = Size(1024, 1024), Size(512, 512), Size(256, 256)
UNSEEN, NEAR_IT = Size(736, 928), Size(768, 896)
TOGETHER = 16


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the model is wanted to reach."""
    bench = lab.begin("Whole pictures through the engine.", arguments, MODELS)
    with tempfile.TemporaryDirectory(prefix="fluxserve-gpu-") as home:
        folder = _folder(bench, Path(home) / bench.model)
        usual = _speed(bench)
        in_8_bits = (*usual, "float8-dynamic")
        _run(bench, folder, "bfloat16", usual, "exact", (_one, _drawn, _sustained, _unseen, _small))
        _run(bench, folder, "float8", in_8_bits, "exact", (_drawn,))
        _run(bench, folder, "throughput", usual, "throughput", (_small,))
    return 0


def _speed(bench: lab.Bench) -> tuple[str, ...]:
    return ("fused", "channels-last") if bench.tiny else ("auto",)


Measurement = Callable[[lab.Bench, DiffusionEngine], dict[str, float]]


def _run(
    bench: lab.Bench, folder: Path, name: str, speed: tuple[str, ...], numerics: str, wanted: Sequence[Measurement]
) -> None:
    """One engine for all that is measured with it; none where all of it is known."""
    stages = {f"{name}, {one.__name__.strip('_')}": one for one in wanted}
    if not bench.has_time or all(bench.found("engine", what) is not None for what in stages):
        return
    settings = Settings(
        models=dict.fromkeys(CATALOGUE, str(folder)),
        device=str(bench.device),
        dtype="bfloat16",
        speed=speed,
        numerics=numerics,
        accept_licenses=("flux-1-dev", "flux-2-dev"),
        data_dir=folder.parent,
        **({"token_budget": 1100} if bench.tiny else {}),
    )
    engine = DiffusionEngine(settings, partial(open_drawer, load=partial(_random, bench)))
    began = time.perf_counter()
    engine.warm()
    warmed = time.perf_counter() - began
    for what, act in stages.items():
        bench.measure("engine", what, lambda act=act: {**act(bench, engine), "seconds_to_warm": warmed})  # type: ignore[misc]


def _one(bench: lab.Bench, engine: DiffusionEngine) -> dict[str, float]:
    seconds = bench.seconds(lambda: _draw(bench, engine, [LARGE]), 5)
    return {"seconds": seconds, "wanted": WANTED[bench.model]}


def _drawn(bench: lab.Bench, engine: DiffusionEngine) -> dict[str, float]:
    """The prompt is in the cache of prompts, whose lane answers at once."""
    _draw(bench, engine, [LARGE], prompt="read before")
    seconds = bench.seconds(lambda: _draw(bench, engine, [LARGE], prompt="read before"), 5)
    in_8_bits = "float8-dynamic" in engine._settings.speed
    return {"seconds": seconds, "wanted": WANTED_IN_8_BITS if in_8_bits else WANTED[bench.model]}


def _sustained(bench: lab.Bench, engine: DiffusionEngine) -> dict[str, float]:
    count = 2 if bench.tiny else TOGETHER
    seconds = bench.seconds(lambda: _draw(bench, engine, [LARGE] * count), 1)
    return {"seconds": seconds, "pictures_per_second": count / seconds, "wanted_of_klein": WANTED_SUSTAINED}


def _small(bench: lab.Bench, engine: DiffusionEngine) -> dict[str, float]:
    """Times as many pictures a second together as one at a time."""
    count = 2 if bench.tiny else TOGETHER
    alone = bench.seconds(lambda: _draw(bench, engine, [SMALL]), 3)
    seconds = bench.seconds(lambda: _draw(bench, engine, [SMALL] * count), 1)
    return {
        "seconds": seconds,
        "seconds_alone": alone,
        "times": count * alone / seconds,
        "wanted_for_throughput": WANTED_TOGETHER,
    }


def _unseen(bench: lab.Bench, engine: DiffusionEngine) -> dict[str, float]:
    usual = bench.seconds(lambda: _draw(bench, engine, [NEAR_IT]), 3)
    began = time.perf_counter()
    _draw(bench, engine, [UNSEEN])
    return {"seconds": time.perf_counter() - began, "seconds_usual": usual, "wanted_times": WANTED_UNSEEN}


_numbers = iter(range(10**6))


def _draw(bench: lab.Bench, engine: DiffusionEngine, sizes: Sequence[Size], prompt: str = "") -> None:
    """All at once; every prompt is new unless one is given."""
    refs = [str(next(_numbers)) for _ in sizes]
    for ref, size in zip(refs, sizes, strict=True):
        generation = Generation(
            model="flux-dev",
            prompt=prompt or f"picture number {ref}",
            size=TINY if bench.tiny else size,
            seed=int(ref),
            steps=2 if bench.tiny else STEPS.get(bench.model, 4),
            guidance=3.5,
            output_format="png",
        )
        engine.admit(ref, generation)
    done = 0
    while engine.active:
        for event in engine.step():
            assert not isinstance(event, Failed), event
            done += isinstance(event, Finished)
    assert done == len(sizes)


def _folder(bench: lab.Bench, folder: Path) -> Path:
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
    sys.exit(main())
