import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants

from fluxserve.engine import gguf_file
from fluxserve.engine.header import Stored
from fluxserve.errors import CheckpointMissing, CheckpointRefused

KINDS = {number: GGMLQuantizationType(number) for number in gguf_file.FORMATS}


def write(file: Path, *, architecture: str = "flux", alignment: int = 32) -> Path:
    """Two rows of 512 numbers in every format, of random bytes, and much that is not read."""
    chance = np.random.default_rng(5)
    writer = GGUFWriter(file, architecture)
    writer.add_custom_alignment(alignment)
    writer.add_string("general.name", "a name")
    writer.add_array("tokenizer.ggml.tokens", ["one", "two", "three"])
    writer.add_array("some.numbers", [1.0, 2.0])
    writer.add_bool("some.truth", True)
    writer.add_uint64("some.number", 3)
    for number, (name, numbers, size) in gguf_file.FORMATS.items():
        data = chance.integers(0, 256, (2, 512 // numbers * size), dtype=np.uint8)
        writer.add_tensor(name, data, raw_dtype=KINDS[number])
    writer.add_tensor("bias", np.arange(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "flux1-dev.gguf")


def test_our_table_of_formats_is_that_of_the_package() -> None:
    for number, (name, *sizes) in gguf_file.FORMATS.items():
        assert (KINDS[number].name, gguf.GGML_QUANT_SIZES[KINDS[number]]) == (name, tuple(sizes))
    readable = {kind for kind in GGMLQuantizationType if kind in quants._type_traits}
    assert set(KINDS.values()) == readable | {GGMLQuantizationType.F32, GGMLQuantizationType.F16}


@pytest.mark.parametrize("alignment", [32, 256])
def test_a_header_tells_what_the_packages_own_reader_tells(tmp_path: Path, alignment: int) -> None:
    file = write(tmp_path / "a.gguf", alignment=alignment)
    header = gguf_file.read(file)
    assert header.architecture == "flux"
    assert header.tensors == {
        one.name: Stored(
            dtype=one.tensor_type.name,
            shape=tuple(reversed(one.shape.tolist())),
            data_offsets=(one.data_offset, one.data_offset + one.n_bytes),
        )
        for one in gguf.GGUFReader(file).tensors
    }


def test_the_numbers_of_every_format_are_those_of_the_package_to_the_bit(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_file, "_AT_ONCE", 512)  # in more than one go
    with gguf_file.opened(file, "cpu") as content, np.errstate(all="ignore"):
        for one in gguf.GGUFReader(file).tensors:
            numbers = content.get_tensor(one.name)
            expected = quants.dequantize(one.data, one.tensor_type)
            assert numbers.shape == expected.shape
            assert np.array_equal(numbers.float().numpy(), expected, equal_nan=True), one.name
        assert content.get_tensor("BF16").dtype is torch.bfloat16
        assert content.get_tensor("Q4_K").dtype is torch.float32


def test_a_file_is_known_by_its_name_or_its_first_bytes(file: Path, tmp_path: Path) -> None:
    other = file.rename(tmp_path / "flux1")
    assert gguf_file.is_one(other)
    (tmp_path / "a.GGUF").write_bytes(b"else")
    assert gguf_file.is_one(tmp_path / "a.GGUF")
    (tmp_path / "a.safetensors").write_bytes(b"else")
    assert not gguf_file.is_one(tmp_path / "a.safetensors")
    assert not gguf_file.is_one(tmp_path / "nothing.gguf")
    with pytest.raises(CheckpointMissing):
        gguf_file.read(tmp_path / "nothing.gguf")


def test_a_file_that_ends_anywhere_before_its_end_is_refused(file: Path, tmp_path: Path) -> None:
    whole, cut = file.read_bytes(), tmp_path / "cut.gguf"
    header = min(one.data_offsets[0] for one in gguf_file.read(file).tensors.values())
    for length in (*range(header), header, (header + len(whole)) // 2):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointRefused, match=r"cut\.gguf is cut off.* Download it again"):
            gguf_file.read(cut)


def test_a_damaged_header_is_refused_and_never_believed(file: Path, tmp_path: Path) -> None:
    """Whichever byte is turned, what is read lies within the file, or is refused."""
    whole, damaged = file.read_bytes(), tmp_path / "damaged.gguf"
    header = min(one.data_offsets[0] for one in gguf_file.read(file).tensors.values())
    refused = 0
    for place in range(header):
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            found = gguf_file.read(damaged)
        except CheckpointRefused as error:
            refused += str(damaged) in error.message
            continue
        assert all(
            0 <= start <= end <= len(whole) for start, end in (one.data_offsets for one in found.tensors.values())
        )
    assert refused > header // 2


def short(*parts: bytes, version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + b"".join(parts)


def text(word: bytes) -> bytes:
    return struct.pack("<Q", len(word)) + word


def tensor(name: bytes, axes: int, shape: tuple[int, ...], kind: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", axes, *shape, kind, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04and more", "is no GGUF file, though it is called one"),
        (short(version=1), "a GGUF file of version 1; those of versions 2 and 3"),
        (short(version=0x03000000), "kept in big-endian order"),
        (short(tensor(b"a", 1, (32,), 4), tensors=1), r"format 4 of ggml, which is not read\. Get it in Q8_0"),
        (short(tensor(b"a", 1, (32,), 99), tensors=1), "format 99 of ggml"),
        (short(tensor(b"a", 1, (31,), 8), tensors=1), "rows of 31 numbers in blocks of 32"),
        (short(tensor(b"a", 5, (1,) * 5, 0), tensors=1), "a tensor of 5 axes"),
        (short(tensor(b"a", 1, (0,), 0) * 2, tensors=2), "names a tensor twice"),
        (short(tensor(b"a", 2, (2**40, 2**40), 0), tensors=1), "is cut off: 65 of"),
        (short(text(b"\xff"), struct.pack("<II", 4, 0), pairs=1), "a name that is no text"),
        (short(text(b"a"), struct.pack("<I", 13), pairs=1), "tells a as a value of kind 13"),
        (short(text(b"a"), struct.pack("<IIQ", 9, 4, 2**60), pairs=1), "its header is longer than the file"),
        (short(text(b"a"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 9, pairs=1), "a list as a value of kind 9"),
        (short(text(b"general.alignment"), struct.pack("<II", 4, 24), pairs=1), "aligns its tensors to 24 bytes"),
        (short(text(b"general.alignment"), struct.pack("<I", 8), text(b"x"), pairs=1), "aligns its tensors to 'x'"),
    ],
)
def test_a_header_that_cannot_be_is_refused_with_the_reason(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointRefused, match=words):
        gguf_file.read(file)


def test_a_header_needs_no_package_and_numbers_tell_which(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert gguf_file.read(file).tensors
    with pytest.raises(CheckpointRefused, match="is not installed: pip install gguf"):
        with gguf_file.opened(file, "cpu"):
            pass
