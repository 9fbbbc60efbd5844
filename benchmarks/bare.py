"""The bare pipeline beside which the server is measured: diffusers' own FluxPipeline, one picture after another.

    python benchmarks/bare.py THREADS

Each line on standard input is a number of pictures, each answer the seconds they took as JPEG of the size asked for.
"""

from __future__ import annotations

import sys
import time
from io import BytesIO

SIZE = 512
STEPS = 28


def main(threads: int) -> None:
    """Load mini, draw once to be warm, then draw what is asked for."""
    import torch
    from diffusers import FluxPipeline
    from PIL import Image

    from fluxserve import mini
    from fluxserve.catalogue import Size
    from fluxserve.engine.checkpoints import drawn_size, find

    torch.set_num_threads(threads)
    checkpoint = find(str(mini.folder()))
    drawn = drawn_size(checkpoint, Size(SIZE, SIZE))
    pipeline = FluxPipeline.from_pretrained(mini.folder(), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)

    def draw(number: int, steps: int) -> None:
        picture = pipeline(
            f"a red apple, number {number}",
            negative_prompt="" if checkpoint.cfg_scale > 1 else None,
            true_cfg_scale=checkpoint.cfg_scale,
            width=drawn.width,
            height=drawn.height,
            num_inference_steps=steps,
            guidance_scale=3.5,
            max_sequence_length=checkpoint.text_length,
            generator=torch.Generator("cpu").manual_seed(number),
        ).images[0]
        fitted = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        fitted.save(BytesIO(), "JPEG", quality=95, subsampling="4:4:4")

    draw(0, 2)
    print("ready", flush=True)
    number = 0
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            number += 1
            draw(number, STEPS)
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
