"""The bare pipeline beside which the server is measured: diffusers' own FluxPipeline, one picture after another.

    python benchmarks/bare.py THREADS [FOLDER SIDE STEPS DTYPE]

Each line on standard input is a number of pictures, each answer the seconds they took as JPEG of the size asked for.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

SIZE = 512
STEPS = 28


def answer(draw: Callable[[int], None]) -> None:
    """Draw as many pictures as each line of standard input says, and say how long that took."""
    print("ready", flush=True)
    number = 0
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            number += 1
            draw(number)
        print(time.perf_counter() - began, flush=True)


def main(threads: int, folder: Path, side: int, steps: int, dtype: str) -> None:
    """Load the weights, draw once to be warm, then draw what is asked for."""
    import torch
    from diffusers import FluxPipeline
    from PIL import Image

    from fluxserve.catalogue import Size
    from fluxserve.engine.checkpoints import drawn_size, find

    torch.set_num_threads(threads)
    checkpoint = find(str(folder))
    drawn = drawn_size(checkpoint, Size(side, side))
    pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)

    def draw(number: int, made: int = steps) -> None:
        picture = pipeline(
            f"a red apple, number {number}",
            negative_prompt="" if checkpoint.cfg_scale > 1 else None,
            true_cfg_scale=checkpoint.cfg_scale,
            width=drawn.width,
            height=drawn.height,
            num_inference_steps=made,
            guidance_scale=3.5,
            max_sequence_length=checkpoint.text_length,
            generator=torch.Generator("cpu").manual_seed(number),
        ).images[0]
        fitted = picture.resize((side, side), Image.Resampling.LANCZOS)
        fitted.save(BytesIO(), "JPEG", quality=95, subsampling="4:4:4")

    draw(0, min(2, steps))
    answer(draw)


if __name__ == "__main__":
    from fluxserve import mini

    given = sys.argv[2:] or [str(mini.folder()), str(SIZE), str(STEPS), "float32"]
    main(int(sys.argv[1]), Path(given[0]), int(given[1]), int(given[2]), given[3])
