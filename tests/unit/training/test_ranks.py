"""Two processes average what they compute; one that fails makes the command fail."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from training import ranks  # noqa: E402
from training.ranks import Rank  # noqa: E402


def _average(rank: Rank, folder: Path) -> None:
    values = torch.tensor([1.0, 10.0]) * (rank.index + 1)
    rank.average(values)
    (folder / f"{rank.index}").write_text(f"{values.tolist()} {rank.leader} {torch.get_num_threads()}", "utf-8")


def _fail(rank: Rank, folder: Path) -> None:
    if rank.index == 1:
        raise ValueError("as intended")
    rank.average(torch.zeros(3))
    (folder / "went on").touch()


def test_two_processes_average(tmp_path: Path) -> None:
    ranks.run(_average, tmp_path, 2)
    assert (tmp_path / "0").read_text("utf-8") == "[1.5, 15.0] True 1"
    assert (tmp_path / "1").read_text("utf-8") == "[1.5, 15.0] False 1"


def test_one_process_is_this_one_and_averages_nothing(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    ranks.run(_average, tmp_path, 1)
    assert (tmp_path / "0").read_text("utf-8") == f"[1.0, 10.0] True {threads}"


def test_a_process_that_fails_makes_the_command_fail_and_the_other_does_not_wait_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="failed"):
        ranks.run(_fail, tmp_path, 2)
    assert "as intended" in capfd.readouterr().err
    assert not (tmp_path / "went on").exists()
