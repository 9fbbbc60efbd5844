"""Foretold steps: the seconds of a whole picture with them, and how far they lead from the picture without.

    .venv/bin/python benchmarks/gpu/step_cache.py --model FLUX.1-dev
    .venv/bin/python benchmarks/gpu/step_cache.py --model mini

`share` is the time of a picture by that of one whose steps are all made, `predicted` the share of blocks that are made;
what is not blocks is in neither. `psnr` is the mean, in dB, of four pictures from those without foretold steps. Of
random numbers it says only that the path is sound; mini's numbers were learnt, so its pictures say how they look. The
pictures without foretold steps are kept beside the results.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import engine
import lab
from fluxserve import mini
from fluxserve.catalogue import Size
from fluxserve.engine import weights
from fluxserve.engine.step_cache import is_made
from fluxserve.settings import StepCacheChoice

MODELS = ("FLUX.1-dev", "mini")
CHOICES: tuple[StepCacheChoice, ...] = ("off", "taylor", "first-block")
STEPS, TINY_STEPS = 28, 12
#: Blocks of a transformer, of which first-block makes one: FLUX.1's, and mini's.
BLOCKS = {"FLUX.1-dev": 19 + 38, "mini": 2 + 6}
SIDE = {"FLUX.1-dev": 1024, "mini": 512}
PROMPT, COUNT = "a red apple on a table", 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each way; the pictures of the first are what the others are held against."""
    bench = lab.begin("Whole pictures with foretold steps.", arguments, MODELS)
    with tempfile.TemporaryDirectory(prefix="fluxserve-gpu-") as home:
        is_mini = bench.model == "mini" and not bench.tiny
        folder = mini.folder() if is_mini else engine.build(bench, Path(home) / bench.model)
        for choice in CHOICES:
            if not bench.is_done("step cache", choice) or (choice == "off" and not _kept(bench).exists()):
                act = partial(_of, bench, folder, choice, Path(home))
                bench.measure("step cache", choice, act, anew=choice == "off")
    return bench.answer


def _of(bench: lab.Bench, folder: Path, choice: StepCacheChoice, home: Path) -> dict[str, float | str]:
    speed = ("plain",) if bench.tiny else ("auto",)
    settings = engine.settings_for(bench, folder, speed=speed, step_cache=choice).model_copy(update={"data_dir": home})
    made: list[engine.Warm] = []
    engine.begin(bench, settings, made, weights.load if bench.model == "mini" or bench.tiny else None)
    (warm,) = made
    steps, size = TINY_STEPS if bench.tiny else STEPS, Size(SIDE[bench.model], SIDE[bench.model])
    pictures = [_numbers(one) for one in engine.draw(bench, warm.engine, [size] * COUNT, PROMPT, steps)]
    seconds = bench.seconds(lambda: engine.draw(bench, warm.engine, [size], PROMPT, steps), is_warm=True)
    kept = _kept(bench)
    if choice == "off":
        torch.save(pictures, kept)
        return {"seconds": seconds, "held": warm.words}
    usual, known = torch.load(kept), bench.found("step cache", "off")
    made_steps = sum(is_made(choice, step, steps) for step in range(steps))
    blocks = made_steps + (steps - made_steps) / BLOCKS[bench.model] * (choice == "first-block")
    return {
        "seconds": seconds,
        "predicted": blocks / steps,
        "share": seconds / known["seconds"] if known else 0.0,
        "psnr": sum(map(_psnr, usual, pictures)) / COUNT,
        "held": warm.words,
    }


def _kept(bench: lab.Bench) -> Path:
    """Where the pictures without foretold steps are."""
    return bench.out.with_name(f"{bench.out.stem}-{bench.model}-{bench.device.type}.pixels")


def _numbers(picture: engine.Pixels) -> Tensor:
    return torch.frombuffer(bytearray(picture.data), dtype=torch.uint8).float()


def _psnr(one: Tensor, other: Tensor) -> float:
    """In dB; at most 99, which is what equal pictures count as."""
    error = (one - other).square().mean()
    return min(99.0, float(10 * torch.log10(255**2 / error))) if error else 99.0


if __name__ == "__main__":
    lab.run(main)
