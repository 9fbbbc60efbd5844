"""How near pictures of mini drawn with what changes pixels are to those drawn as usual.

    .venv/bin/python benchmarks/closeness.py

PSNR over pixels of sRGB, in dB: of pictures with the same prompt and seed, the mean and the least. 30 dB are hard to
tell apart side by side, 40 dB are not told apart.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from fluxserve import mini
from fluxserve.catalogue import Generation, Size
from fluxserve.engine import device
from fluxserve.engine.checkpoints import find
from fluxserve.engine.device import Runtime
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.speed import PLAIN, Speed

PROMPTS = (
    "a red apple on a table",
    "a blue bird",
    "a green tree under the sun",
    "a yellow car",
    "a cat",
    "a house by the sea",
    "two white flowers",
    "a purple fish",
)
STEPS, SIZE, TOGETHER = 28, Size(512, 512), 4
RUNTIME = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
CHOICES = {
    "numerics = throughput": Speed(throughput=True),
    "step_cache = taylor": Speed(step_cache="taylor"),
    "step_cache = first-block": Speed(step_cache="first-block"),
    "speed = float8-dynamic": Speed(float8=True),
    "memory_plan = float8": PLAIN,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; `arguments`: how many of the prompts."""
    count = int((arguments if arguments is not None else sys.argv[1:] or [str(len(PROMPTS))])[0])
    device.apply(RUNTIME)
    usual = [*_drawn(_drawer(PLAIN, ""), count)]
    print("| drawn with | mean PSNR dB | least PSNR dB |\n|---|---|---|")
    for name, speed in CHOICES.items():
        found = [*_drawn(_drawer(speed, name), count)]
        psnrs = [_psnr(one, other) for one, other in zip(usual, found, strict=True)]
        print(f"| `{name}` | {sum(psnrs) / len(psnrs):.1f} | {min(psnrs):.1f} |", flush=True)
    return 0


def _drawer(speed: Speed, name: str) -> Drawer:
    plan = "float8" if "float8" in name else "resident"
    budget = 10**6 if speed.throughput else 1
    with torch.inference_mode():
        return open_drawer(
            find(str(mini.folder())), replace(RUNTIME, speed=speed, memory_plan=plan, token_budget=budget)
        )


def _drawn(drawer: Drawer, count: int) -> Iterator[np.ndarray]:
    """In company where that is free to change bits."""
    together = TOGETHER if drawer.speed.throughput else 1
    with torch.inference_mode():
        for start in range(0, count, together):
            trajectories = [
                drawer.start(str(number), _wanted(number), 0) for number in range(start, min(start + together, count))
            ]
            while not trajectories[0].is_done:
                velocities = drawer.velocities(trajectories)
                trajectories = [one.moved(velocity) for one, velocity in zip(trajectories, velocities, strict=True)]
            for trajectory in trajectories:
                pixels = drawer.finish(trajectory, trajectory.means).pixels
                yield np.frombuffer(pixels.data, dtype=np.uint8).astype(np.float64)


def _wanted(number: int) -> Generation:
    return Generation(
        model="flux-dev", prompt=PROMPTS[number], size=SIZE, seed=number, steps=STEPS, guidance=3.5, output_format="png"
    )


def _psnr(one: np.ndarray, other: np.ndarray) -> float:
    """At most 99 dB, which is what equal pictures count as."""
    error = float(np.mean((one - other) ** 2))
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


if __name__ == "__main__":
    sys.exit(main())
