"""What was measured stays what it is across restarts, and among processes that start at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fluxserve.engine import measured
from fluxserve.engine.measured import Measured, SizeFound

FOUND = Measured(tokens=1104, sizes=(SizeFound(size="256x256", most=4, padded=True),))


def test_what_was_kept_is_read_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "measured"
    assert measured.read(folder, "name") is None
    assert measured.keep(folder, "name", FOUND) == FOUND
    assert measured.read(folder, "name") == FOUND
    assert measured.read(folder, "other name") is None


def test_what_was_kept_first_counts_for_all_who_measured_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "measured"
    with ThreadPoolExecutor(8) as starting:
        kept = set(
            starting.map(
                lambda tokens: measured.keep(folder, "name", Measured(tokens=tokens, sizes=())).tokens, range(64)
            )
        )
    assert len(kept) == 1
    assert [path.name for path in folder.iterdir()] == ["name.json"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"tokens": "many", "sizes": []}', b'{"tokens": 1}', b"\xff\xfe"])
def test_a_damaged_file_is_measured_anew_and_replaced(tmp_path: Path, content: bytes) -> None:
    folder = tmp_path / "measured"
    folder.mkdir()
    (folder / "name.json").write_bytes(content)
    assert measured.read(folder, "name") is None
    assert measured.keep(folder, "name", FOUND) == FOUND
    assert measured.read(folder, "name") == FOUND


def test_without_a_data_folder_nothing_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "no data folder" / "measured"
    assert measured.keep(folder, "name", FOUND) == FOUND
    assert measured.keep(None, "name", FOUND) == FOUND
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_means_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "measured").write_text("in the way")
    assert measured.keep(tmp_path / "measured", "name", FOUND) == FOUND
    assert "cannot be kept" in caplog.text
