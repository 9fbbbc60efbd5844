"""What signing costs: milliseconds and bytes a picture, by format and side, and memory.

Pictures of two kinds: like a photo, which is what compresses as drawn ones do, and noise, which nothing makes smaller.
The cost is told as time on the wall and as processor time of the thread that signs: the machine may be shared.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import cast

from PIL import Image, ImageChops, ImageFilter

from fluxserve.catalogue import OutputFormat
from fluxserve.delivery import provenance
from fluxserve.delivery.authority import Authority
from fluxserve.delivery.provenance import Signer
from fluxserve.engine import pixels
from fluxserve.engine.marks import Mark

FORMATS: tuple[OutputFormat, ...] = ("jpeg", "png", "webp")
SIDES = (512, 1024)
ROUNDS, WARM_UP = 200, 10
MOST_MS, MOST_BYTES = 5.0, 5 * 1024
HEADINGS = [
    "picture",
    "file",
    "wall p50 ms",
    "p95",
    "processor p50 ms",
    "p95",
    "manifest bytes",
    "EXIF and XMP bytes",
    "goal",
]
MARK = Mark(drawn_by="fluxserve-mini", model="flux-dev", seed=2**63)
#: Signs again and again: nothing of it may stay in memory.
MANY = 3000


def rows() -> list[list[str]]:
    """A row for each kind, side and format."""
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        signer = _signer(Path(folder))
        cases = {(kind, side, form): _file(kind, side, form) for kind in _KINDS for side in SIDES for form in FORMATS}
        times: dict[tuple[str, int, OutputFormat], list[tuple[float, float]]] = {case: [] for case in cases}
        for turn in range(WARM_UP + ROUNDS):  # in turns, so that a busy moment of the machine touches all alike
            for case, file in cases.items():
                spent = _timed(lambda file=file, form=case[2]: signer.sign(file, form))  # type: ignore[misc]
                if turn >= WARM_UP:
                    times[case].append(spent)
        return [_row(case, file, signer, times[case]) for case, file in cases.items()]


def _row(
    case: tuple[str, int, OutputFormat], file: bytes, signer: Signer, times: list[tuple[float, float]]
) -> list[str]:
    kind, side, form = case
    signed = signer.sign(file, form)
    assert provenance.read(signed, signer.credential.anchors).state == "trusted"
    marked = len(file) - len(_bare(kind, side, form))
    wall, processor = ([spent[which] for spent in times] for which in (0, 1))
    added = len(signed) - len(file)
    met = added + marked <= MOST_BYTES
    return [
        f"{side}x{side} {form.upper()}, {kind}", f"{len(file) / 1024:.0f} KiB", f"{_at(wall, 50):.2f}",
        f"{_at(wall, 95):.2f}", f"{_at(processor, 50):.2f}", f"{_at(processor, 95):.2f}", f"{added}", f"{marked}",
        f"{MOST_MS:.0f} ms, {MOST_BYTES} bytes" + ("" if met else ": too many bytes"),
    ]  # fmt: skip


def memory() -> list[list[str]]:
    """What signing takes of memory: once, and for each of many pictures."""
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        before = _resident()
        signer, file = _signer(Path(folder)), _file("photo", 512, "jpeg")
        for _ in range(MANY // 10):
            signer.sign(file, "jpeg")
        warm = _resident()
        for _ in range(MANY):
            signer.sign(file, "jpeg")
        return [[f"{(warm - before) / 2**20:.1f} MiB", f"{(_resident() - warm) / MANY:.0f} bytes"]]


def _signer(folder: Path) -> Signer:
    return Signer(Authority(folder / "c2pa").credential, time.time)


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds on the wall and of this thread's processor time."""
    wall, processor = time.perf_counter(), time.thread_time()
    work()
    return (time.perf_counter() - wall) * 1000, (time.thread_time() - processor) * 1000


def _at(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _photo(side: int) -> Image.Image:
    """Soft shapes with a little grain: its PNG has about as many bytes as that of a drawn picture of the size."""
    soft = [Image.effect_noise((side, side), 120).filter(ImageFilter.GaussianBlur(6)) for _ in range(3)]
    grain = Image.merge("RGB", [Image.effect_noise((side, side), 6)] * 3)
    return ImageChops.add(Image.merge("RGB", soft), grain, 2)


def _noise(side: int) -> Image.Image:
    return Image.merge("RGB", [Image.effect_noise((side, side), 60) for _ in range(3)])


_KINDS: dict[str, Callable[[int], Image.Image]] = {"photo": _photo, "noise": _noise}
_MADE: dict[tuple[str, int], Image.Image] = {}


def _picture(kind: str, side: int) -> Image.Image:
    return _MADE.setdefault((kind, side), _KINDS[kind](side))


def _file(kind: str, side: int, form: OutputFormat) -> bytes:
    return pixels.encode(pixels.from_image(_picture(kind, side)), form, MARK)


def _bare(kind: str, side: int, form: OutputFormat) -> bytes:
    """The same without a word about its origin."""
    file = BytesIO()
    more = {"subsampling": "4:4:4"} if form == "jpeg" else {}
    quality = {} if form == "png" else {"quality": pixels.QUALITY}
    _picture(kind, side).save(file, form.upper(), **more, **quality)
    return file.getvalue()


def _resident() -> int:
    """Bytes of this process in memory now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * cast("int", resource.getpagesize())
