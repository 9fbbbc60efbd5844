"""The scripts that measure a GPU, run on a CPU at tiny sizes: each path of theirs works before anyone rents one."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
}
#: Those that wait for a compiler.
COMPILING = ("transformer", "decoder")


@pytest.fixture(autouse=True)
def _found_by_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    yield
    torch.compiler.reset()


def run(script: str, out: Path, *more: str) -> list[dict[str, object]]:
    arguments = ["--device", "cpu", "--tiny", "--out", str(out), *more]
    assert importlib.import_module(script).main(arguments) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize(
    "script", [pytest.param(one, marks=pytest.mark.long) if one in COMPILING else one for one in ROWS]
)
def test_a_script_measures_what_it_can_and_nothing_twice(script: str, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    rows = run(script, out)
    assert len(rows) == ROWS[script]
    assert all(float(row["seconds"]) > 0 for row in rows)  # type: ignore[arg-type]
    assert run(script, out) == rows


@pytest.mark.long
@pytest.mark.parametrize("model", ["FLUX.1-dev", "FLUX.2-klein-4B"])
def test_the_engines_script_draws_whole_pictures_and_makes_a_table(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    rows = run("engine", out, "--model", model)
    assert {row["what"] for row in rows} == {
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
    assert run("ceilings", out, "--minutes", "0") == []
    assert "run the command again" in capsys.readouterr().out
