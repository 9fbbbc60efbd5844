"""The engine alone, without a server: mini, one picture after another, with one thread for its steps.

    python benchmarks/loop.py

Each line on standard input is a number of pictures, each answer the seconds they took as JPEG of the size asked for.
"""

from __future__ import annotations

from bare import SIZE, STEPS, answer


def main() -> None:
    """Warm the engine, then draw what is asked for."""
    from fluxserve.catalogue import Generation, Size
    from fluxserve.engine import pixels
    from fluxserve.engine.base import Finished
    from fluxserve.engine.diffusion import DiffusionEngine
    from fluxserve.engine.marks import mark_of
    from fluxserve.settings import Settings

    engine = DiffusionEngine(Settings(device="cpu", threads=1, token_budget=1))
    engine.warm()

    def draw(number: int) -> None:
        generation = Generation(
            model="flux-dev", prompt=f"a red apple, number {number}", size=Size(SIZE, SIZE), seed=number, steps=STEPS,
            guidance=3.5, output_format="jpeg",
        )  # fmt: skip
        engine.admit("x", generation)
        while engine.active:
            for event in engine.step():
                if isinstance(event, Finished):
                    pixels.encode(event.pixels, "jpeg", mark_of(generation, event.drawn_by, tells_prompt=False))

    answer(draw)


if __name__ == "__main__":
    main()
