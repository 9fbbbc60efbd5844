"""The engine's own speed: its loop beside the bare pipeline, its stages, new sizes, and networks of a real width.

What is compared takes turns in every round, and what counts is the median of the rounds' ratios.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import machine
from fluxserve import bench
from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine import device
from fluxserve.engine.checkpoints import find
from fluxserve.engine.published import build
from fluxserve.settings import Settings
from pictures import SETTINGS, Caller, drawing

#: Below this share of the bare pipeline's pictures the run fails.
LEAST = 0.95
GATE_ROUNDS, GATE_PICTURES = 7, 4
GATE_HEADINGS = ["what", "pictures a second", "of the bare pipeline", "at least"]
STAGES_HEADINGS = ["picture", *bench.HEADINGS]
STAGE_ROUNDS = 9
#: Legal sizes of which none is drawn when an engine gets warm.
NEW_SIZES = ((480, 800), (1344, 768), (288, 1440), (608, 416), (928, 1120), (256, 1024))
FIRST_HEADINGS = ["picture", "first, CPU s", "median of the next 5, CPU s", "ratio", "goal"]
THIN_SIDE, THIN_STEPS, THIN_ROUNDS = 256, 1, 3
THIN_HEADINGS = ["what", "number format", "threads", "seconds a picture", "of plain torch", "goal"]


def gate() -> tuple[list[list[str]], float]:
    """A row for each, and the ratio."""
    core = machine.SERVER_CORE
    with drawing("bare.py", "1", core=core) as bare, drawing("loop.py", core=core) as loop:
        loop.rate(2)
        pairs = [(loop.rate(GATE_PICTURES), bare.rate(GATE_PICTURES)) for _ in range(GATE_ROUNDS)]
    ratio, spread = _ratios([ours / beside for ours, beside in pairs])
    ours, beside = (statistics.median(rates) for rates in zip(*pairs, strict=True))
    return [["bare pipeline", f"{beside:.2f}", "", ""], ["engine", f"{ours:.2f}", spread, str(LEAST)]], ratio


def stages() -> list[list[str]]:
    """What `fluxserve bench` measures of mini."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        settings = Settings(device="cpu", threads=1, data_dir=Path(folder))
        for size in (Size(512, 512), Size(1024, 768)):
            wish = bench.Wish(model="flux-dev", shape=None, size=size, steps=None, references=None, rounds=STAGE_ROUNDS)
            rows += [[str(size), *row] for row in bench.rows(bench.measure(settings, wish))]
    return rows


def first_pictures() -> list[list[str]]:
    """Processor seconds, for neighbours cost wall time; of the whole process, which reads, steps and decodes."""
    from fluxserve.engine.diffusion import DiffusionEngine

    engine = DiffusionEngine(Settings(device="cpu", threads=1, token_budget=1))
    engine.warm()
    for _ in range(3):
        _seconds(engine, Size(512, 512))
    rows, ratios = [], []
    for size in (Size(*sides) for sides in NEW_SIZES):
        first = _seconds(engine, size)
        usual = statistics.median(_seconds(engine, size) for _ in range(5))
        ratios.append(first / usual)
        rows.append([str(size), f"{first:.3f}", f"{usual:.3f}", f"{first / usual:.2f}", ""])
    return [*rows, ["all", "", "", _ratios(ratios)[1], "below 1.5"]]


def _seconds(engine: object, size: Size) -> float:
    from fluxserve.engine.diffusion import DiffusionEngine

    assert isinstance(engine, DiffusionEngine)
    generation = Generation(
        model="flux-dev", prompt=f"a paper boat, {time.perf_counter_ns()}", size=size, seed=1, steps=28, guidance=3.5,
        output_format="jpeg",
    )  # fmt: skip
    began = time.process_time()
    engine.admit("x", generation)
    while engine.active:
        engine.step()
    return time.process_time() - began


def thin() -> list[list[str]]:
    """Both in the number format, and with the threads, that the server chooses here."""
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as home:
        folder = build(Path(home) / "thin", "thin", numbers=True)
        chosen = device.resolve(Settings(device="cpu"), find(str(folder)).weight_bytes)
        cores = str(chosen.threads)
        settings = {
            **SETTINGS,
            "FLUXSERVE_MODELS": json.dumps(dict.fromkeys(MODELS, str(folder))),
            "FLUXSERVE_ACCEPT_LICENSES": "flux-1-dev",
            "FLUXSERVE_DTYPE": chosen.dtype,
            "FLUXSERVE_THREADS": cores,
            "FLUXSERVE_TOKEN_BUDGET": "1",
            "FLUXSERVE_STEP_PATIENCE": "600",
        }
        torch = drawing("bare.py", cores, str(folder), str(THIN_SIDE), str(THIN_STEPS), chosen.dtype)
        with torch as bare, machine.server(core=None, settings=settings) as server:
            machine.wait_until_ready(server.port, seconds=600)
            caller = Caller(server, THIN_SIDE, THIN_STEPS)
            caller.rate(1, 1)
            pairs = [(bare.rate(1), caller.rate(1, 1)) for _ in range(THIN_ROUNDS)]
    spread = _ratios([ours / beside for beside, ours in pairs])[1]
    beside, ours = (1 / statistics.median(rates) for rates in zip(*pairs, strict=True))
    picture = f"{THIN_SIDE}x{THIN_SIDE}, {THIN_STEPS} step"
    return [
        [f"diffusers' pipeline, {picture}", chosen.dtype, cores, f"{beside:.2f}", "", ""],
        ["whole server", chosen.dtype, cores, f"{ours:.2f}", spread, str(LEAST)],
    ]


def _ratios(ratios: list[float]) -> tuple[float, str]:
    middle = statistics.median(ratios)
    return middle, f"{middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
