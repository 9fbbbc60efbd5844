"""How many of mini's pictures are refused at each tolerance, and how long a look at one takes.

    .venv/bin/python benchmarks/judge_pictures.py [COUNT]

COUNT pictures (350 unless told otherwise) of things that Unicode has emoji of, a third of them people and parts of
people. Every one of them is harmless.
"""

from __future__ import annotations

import os
import random
import sys
import time
import unicodedata
from collections.abc import Iterator

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import create
from fluxserve.engine.base import Finished, Pixels
from fluxserve.moderation import opennsfw, pictures, thresholds
from fluxserve.moderation.thresholds import TOLERANCES
from fluxserve.settings import Settings

BLOCKS = (range(0x1F300, 0x1F650), range(0x1F680, 0x1F6FF), range(0x1F900, 0x1FAF9))
PEOPLE = {
    "man", "woman", "baby", "person", "boy", "girl", "bikini", "swimmer", "kiss", "bath", "bather", "couple", "dancer",
    "bust", "mother", "lips", "tongue", "peach", "aubergine", "banana", "flexed", "foot", "leg", "ear", "nose", "hand",
    "face",
}  # fmt: skip


def prompts(count: int) -> list[str]:
    """Names of things, the same for the same count."""
    rng = random.Random(5)
    points = [chr(point) for block in BLOCKS for point in block]
    names = [unicodedata.name(point).lower() for point in points if unicodedata.category(point) == "So"]
    people = [name for name in names if not PEOPLE.isdisjoint(name.split())]
    others = [name for name in names if name not in people]
    third = min(count // 3, len(people))
    chosen = rng.sample(people, third) + rng.sample(others, min(count - third, len(others)))
    rng.shuffle(chosen)
    return chosen


def drawn(names: list[str]) -> Iterator[tuple[str, Pixels]]:
    """mini's pictures of them, 512x512."""
    engine = create(Settings(device="cpu", threads=1))
    engine.warm()
    waiting = list(enumerate(names))
    while waiting or engine.active:
        while waiting and engine.active < engine.capacity:
            number, name = waiting.pop(0)
            engine.admit(
                str(number),
                Generation(
                    model="flux-dev", prompt=name, size=Size(512, 512), seed=number, steps=20, guidance=3.5,
                    output_format="png",
                ),
                turn=float(number),
            )  # fmt: skip
        for event in engine.step():
            if isinstance(event, Finished):
                yield names[int(event.ref)], event.pixels


def main() -> None:
    """Print the highest scores, the refused share at each tolerance, and milliseconds."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 350
    classifier = pictures.create("opennsfw")
    classifier.warm()
    scores: list[tuple[float, str]] = []
    times: list[float] = []
    for name, picture in drawn(prompts(count)):
        begun = time.thread_time()
        scores.append((classifier.score(picture.size, picture.data)[opennsfw.CATEGORY], name))
        times.append(time.thread_time() - begun)
    scores.sort(reverse=True)
    times.sort()
    total = len(scores)
    print(f"{total} pictures, {classifier.identity}")
    print(f"processor ms: p50 {times[total // 2] * 1000:.1f}, p95 {times[int(total * 0.95)] * 1000:.1f}")
    print("highest:", ", ".join(f"{score:.2f} {name}" for score, name in scores[:5]))
    for tolerance in TOLERANCES:
        least = thresholds.load().for_pictures(tolerance, has_pictures=False, names_minor=False)[opennsfw.CATEGORY]
        refused = sum(score >= least for score, _ in scores)
        print(f"safety_tolerance {tolerance}: {refused} of {total} refused ({refused / total:.1%}), from {least:.2f}")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
