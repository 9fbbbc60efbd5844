"""The scripts that measure a GPU, run on a CPU at tiny sizes: each path of theirs works before anyone rents one."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import Module

#: What diffusers caches, the compiler reads anew.
pytestmark = pytest.mark.filterwarnings("ignore:Dynamo detected a call:UserWarning")
SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"
#: Rows that a CPU can measure; cuDNN's, FlashAttention-3's and the memory-efficient kernels are for GPUs only.
ROWS = {
    "ceilings": 3,
    "attention": 3,
    "transformer": 7,
    "graphs": 3,
    "decoder": 3,
    "step_cache": 3,
}
#: Those that wait for a compiler.
COMPILING = ("transformer", "decoder")


@pytest.fixture(autouse=True)
def _found_by_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    torch.compiler.reset()


def run(script: str, out: Path, *more: str, answer: int = 0) -> list[dict[str, object]]:
    """The rows of what was measured."""
    arguments = ["--device", "cpu", "--tiny", "--out", str(out), *more]
    assert importlib.import_module(script).main(arguments) == answer
    return [row for row in written(out) if "failed" not in row]


def written(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    "script", [pytest.param(one, marks=pytest.mark.long) if one in COMPILING else one for one in ROWS]
)
def test_a_script_measures_what_it_can_and_nothing_twice(script: str, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    rows = run(script, out)
    assert len(rows) == ROWS[script]
    assert all(float(row["seconds"]) > 0 for row in rows)  # type: ignore[arg-type]
    all_rows = written(out)
    assert run(script, out) == rows
    assert written(out) == all_rows  # nor is what failed tried again


@pytest.mark.long
@pytest.mark.parametrize("model", ["FLUX.1-dev", "FLUX.2-klein-4B"])
def test_the_engines_script_draws_whole_pictures_and_makes_a_table(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    rows = run("engine", out, "--model", model)
    assert {row["what"] for row in rows} == {
        "bfloat16, warm",
        "float8, warm",
        "throughput, warm",
        "bfloat16, one",
        "bfloat16, drawn",
        "bfloat16, sustained",
        "bfloat16, unseen",
        "bfloat16, small",
        "float8, drawn",
        "throughput, small",
    }
    capsys.readouterr()
    assert importlib.import_module("table").main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "### engine" in printed
    assert printed.count(f"| {model} |") == len(rows)


def test_without_time_nothing_is_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.jsonl"
    out.touch()
    assert run("ceilings", out, "--minutes", "0", answer=75) == []
    assert "run the command again" in capsys.readouterr().out


def test_what_fails_is_written_down_and_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results.jsonl"
    ceilings = importlib.import_module("ceilings")

    def fail(_: object) -> None:
        raise AssertionError(0.5)

    with monkeypatch.context() as patched:
        patched.setattr(ceilings, "_product", fail)
        assert [row["what"] for row in run("ceilings", out)] == ["copy", "float8"]
    assert [row.get("failed", "") for row in written(out)] == ["", "AssertionError: 0.5", ""]
    assert [row["what"] for row in run("ceilings", out, "--again")] == ["copy", "float8", "copy", "bfloat16", "float8"]


def test_a_measurement_leaves_no_network_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, made = importlib.import_module("lab"), []
    draw, free = lab.draw, lab.free

    def drawn(network: Module) -> None:
        draw(network)
        made.append(weakref.ref(network))

    def freed() -> None:
        free()
        assert not [one for one in made if one() is not None]

    monkeypatch.setattr(lab, "draw", drawn)
    monkeypatch.setattr(lab, "free", freed)
    assert len(run("graphs", tmp_path / "results.jsonl")) == ROWS["graphs"]
    assert made


def test_a_script_that_takes_too_long_is_ended_and_keeps_what_it_measured(tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    code = (
        "import signal, sys, lab\n"
        "def last():\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.1)\n"
        "    while True: pass\n"
        "def main():\n"
        "    bench = lab.begin('', sys.argv[1:])\n"
        "    bench.measure('a', 'short', lambda: {'seconds': 1.0})\n"
        "    bench.measure('a', 'endless', last)\n"
        "    return bench.answer\n"
        "lab.run(main)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "--device", "cpu", "--tiny", "--out", str(out)],
        cwd=SCRIPTS, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 75, ended.stderr
    assert "run the command again" in ended.stdout
    assert [row["what"] for row in written(out)] == ["short"]
