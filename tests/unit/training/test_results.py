"""Weights go into small files and come back nearly as they were; the run's place with them."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from small_house import small_network  # noqa: E402
from torch import Tensor  # noqa: E402

from training import results, work  # noqa: E402
from training.results import Facts  # noqa: E402

FACTS = Facts(preset="tiny", text="abc", done=640, minutes=1.5, speed=99.5, is_finished=True)


def weights() -> dict[str, Tensor]:
    """Of a small network, and a matrix too large for its file to hold much beside it."""
    torch.manual_seed(0)
    return {
        **{name: value.detach() for name, value in small_network().named_parameters()},
        **{f"large.{number}": torch.randn(4000, 2500) for number in range(2)},
    }


def test_what_is_written_is_read_back_within_a_hundredth(tmp_path: Path) -> None:
    expected = weights()
    results.write(tmp_path, expected, FACTS)
    found = results.read(tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        error = (found[name] - value).norm() / value.norm().clamp(min=1e-9)
        assert error < (0.01 if value.dim() == 2 else 0.001), name
    assert results.facts(tmp_path) == FACTS


def test_rows_are_scaled_apart(tmp_path: Path) -> None:
    rows = torch.randn(3, 40) * torch.tensor([[1e-4], [1.0], [1e4]])
    results.write(tmp_path, {"rows": rows, "none": torch.zeros(2, 3)}, FACTS)
    found = results.read(tmp_path)
    assert ((found["rows"] - rows).norm(dim=1) / rows.norm(dim=1) < 0.01).all()
    assert not found["none"].any()


def test_writing_what_was_read_loses_nothing_more(tmp_path: Path) -> None:
    results.write(tmp_path, weights(), FACTS)
    once = results.read(tmp_path)
    results.write(tmp_path, once, FACTS)
    twice = results.read(tmp_path)
    assert all(torch.allclose(twice[name], value, rtol=1e-5, atol=1e-7) for name, value in once.items())


def test_no_file_is_larger_than_fifteen_megabytes(tmp_path: Path) -> None:
    results.write(tmp_path, weights(), FACTS)
    sizes = [file.stat().st_size for file in (tmp_path / "weights").iterdir()]
    assert len(sizes) == 2
    assert max(sizes) < 15.1e6


def test_new_results_replace_the_old_and_what_a_killed_write_left(tmp_path: Path) -> None:
    results.write(tmp_path, weights(), FACTS)
    (tmp_path / "weights.unfinished").mkdir()
    (tmp_path / "weights.unfinished" / "9.safetensors").touch()
    results.write(tmp_path, {"only": torch.ones(2, 2)}, FACTS)
    assert list(results.read(tmp_path)) == ["only"]
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    assert not results.are_in(tmp_path)
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        results.facts(tmp_path)


def test_weights_belong_to_their_tokenizers(house: Path, tmp_path: Path) -> None:
    own = results.fingerprint(work.folder() / "text")
    assert own == results.fingerprint(house / "text")
    for part in ("tokenizer", "tokenizer_2"):
        (tmp_path / "text" / part).mkdir(parents=True)
        (tmp_path / "text" / part / "tokenizer.json").write_bytes(
            (house / "text" / part / "tokenizer.json").read_bytes()
        )
    assert results.fingerprint(tmp_path / "text") == own
    (tmp_path / "text" / "tokenizer_2" / "tokenizer.json").write_text("{}", "utf-8")
    assert results.fingerprint(tmp_path / "text") != own
