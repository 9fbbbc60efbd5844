import json
from pathlib import Path

import pytest

from fluxserve import mini
from fluxserve.engine import header
from fluxserve.engine.header import Stored
from fluxserve.errors import CheckpointRefused


def write(file: Path, entries: object, data: bytes) -> Path:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def test_a_header_tells_formats_shapes_and_places_and_no_notes(tmp_path: Path) -> None:
    entries = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F8_E4M3", "shape": [2, 3], "data_offsets": [0, 6]},
        "b": {"dtype": "BF16", "shape": [], "data_offsets": [6, 8]},
    }
    tensors = header.read(write(tmp_path / "a.safetensors", entries, bytes(8)))
    assert tensors == {
        "a": Stored(dtype="F8_E4M3", shape=(2, 3), data_offsets=(0, 6)),
        "b": Stored(dtype="BF16", shape=(), data_offsets=(6, 8)),
    }
    assert [one.size for one in tensors.values()] == [6, 2]


def test_the_files_of_mini_are_whole() -> None:
    for file in mini.folder().rglob("*.safetensors"):
        assert header.read(file)


@pytest.mark.parametrize(
    "entries",
    [
        b"",
        b"[]",
        b"{",
        b'{"a":' + b"[" * 10_000,
        b"\xff{}",
        {"a": 3},
        {"a": {"dtype": "F32", "shape": [1]}},
        {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, entries: object) -> None:
    file = write(tmp_path / "a.safetensors", entries, bytes(4))
    with pytest.raises(CheckpointRefused, match=f"{file} is no whole safetensors file"):
        header.read(file)


def test_an_absurd_length_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes([255] * 8) + b"{}")
    with pytest.raises(CheckpointRefused, match="header cannot be read"):
        header.read(tmp_path / "a.safetensors")


def test_a_file_that_is_shorter_than_its_header_says_is_cut_off(tmp_path: Path) -> None:
    entries = {"a": {"dtype": "F32", "shape": [256], "data_offsets": [0, 1024]}}
    file = write(tmp_path / "a.safetensors", entries, bytes(1000))
    with pytest.raises(CheckpointRefused, match=r"cut off: [0-9,]+ of [0-9,]+ bytes are there\. Download it again"):
        header.read(file)
