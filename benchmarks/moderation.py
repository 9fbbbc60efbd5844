"""How long texts are looked at: the longest there are, honest or made to be slow, and half of each; and pictures."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable

from fluxserve.catalogue import Size
from fluxserve.moderation import pictures
from fluxserve.moderation.lexicon import Lexicon, load
from fluxserve.moderation.text import score

LENGTH, ROUNDS = 10_000, 100
MOST_MS, MOST_PICTURE_MS = 5.0, 70.0
PICTURE_HEADINGS = ["picture", "processor p50 ms", "p95", "wall p50 ms", "p95", "goal"]
HEADINGS = [
    "text of 10,000 characters",
    "processor p50 ms",
    "p99",
    "wall p50 ms",
    "p99",
    "p50 of half the text, as a share",
    "goal",
]
_WORDS = """a red apple beside the quiet river under morning light with golden mist and distant mountains painted softly
in oil by an old master who loved small boats, white sails, long shadows and the smell of rain""".split()  # noqa: SIM905
#: What a text is made of again and again, to its full length.
_MADE = {
    "letters that stand alone": "s e x n u d e p o r n c h i l d ",
    "letters between dots": "n.u.d.e ",
    "digits and signs for letters": "s3x1n0d3 p0rn $ecret ",
    "Chinese": "一个女孩在公园里玩裸体",
    "Japanese": "公園で遊ぶ子供たちの裸足",
    "Cyrillic that looks like Latin": "сехроrn дети ",
    "stretched words": "nuuuuude ",
    "parts of words": "nu-de$lo-li ",
    "accents on accents": "n\u0301\u0302u\u0301d\u0301e",
    "one word": "a",
    "numbers": "15 ",
    "all at once": "sеx4girl-nu-de$ 裸体 15yo ",
}


def rows() -> list[list[str]]:
    """A row for each kind of text."""
    rng, lexicon = random.Random(7), load()
    texts = {"honest English": " ".join(rng.choice(_WORDS) for _ in range(LENGTH))}
    letters = (chr(ord("a") + rng.randrange(26)) for _ in range(LENGTH))
    texts["words that never come twice"] = " ".join(
        "".join(three) for three in zip(letters, letters, letters, strict=False)
    )
    texts["two crowds far apart"] = "child " * 800 + "and then " * 40 + "naked " * 800
    texts |= {kind: part * (LENGTH // len(part) + 1) for kind, part in _MADE.items()}
    score("ready", lexicon)
    gc.collect()
    gc.freeze()  # as the server does at its start
    found = []
    for kind, text in texts.items():
        whole = [_timed(text[:LENGTH], lexicon) for _ in range(ROUNDS)]
        half = [_timed(text[: LENGTH // 2], lexicon) for _ in range(ROUNDS)]
        wall, processor = ([times[which] for times in whole] for which in (0, 1))
        share = statistics.median(times[1] for times in half) / statistics.median(processor)
        found.append(
            [
                kind, f"{_at(processor, 50):.2f}", f"{_at(processor, 99):.2f}", f"{_at(wall, 50):.2f}",
                f"{_at(wall, 99):.2f}", f"{share:.2f}", f"p99 {MOST_MS:.0f} ms, share 0.5",
            ]
        )  # fmt: skip
    return found


def picture_rows() -> list[list[str]]:
    """A row for each size of noise, which is the slowest to go through JPEG."""
    rng, classifier = random.Random(7), pictures.create("opennsfw")
    classifier.warm()
    found = []
    for size in (Size(512, 512), Size(1024, 1024), Size(2048, 2048)):
        rgb = rng.randbytes(size.area * 3)
        times = [_clocked(lambda size=size, rgb=rgb: classifier.score(size, rgb)) for _ in range(ROUNDS)]
        wall, processor = ([one[which] for one in times] for which in (0, 1))
        cells = [f"{_at(values, percent):.1f}" for values in (processor, wall) for percent in (50, 95)]
        found.append([str(size), *cells, f"wall p95 {MOST_PICTURE_MS:.0f} ms"])
    return found


def _timed(text: str, lexicon: Lexicon) -> tuple[float, float]:
    """Milliseconds on the wall and of the processor."""
    return _clocked(lambda: score(text, lexicon))


def _clocked(call: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.thread_time()
    call()
    return (time.perf_counter() - wall) * 1000, (time.thread_time() - processor) * 1000


def _at(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
