"""GGUF files: which tensors one holds, read from its header alone, and their numbers as they were before quantising.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A header is read without other packages, and
nothing that it says is believed before the file is known to be long enough. Numbers are worked out in float32 on the
device that computes, in diffusers' way where it has one for the format, else in gguf's own; both give the same bits.
What it does not know: what the tensors are for.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from fluxserve.engine.header import Stored
from fluxserve.errors import CheckpointMissing, CheckpointRefused

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"GGUF"
#: By the number in the file: name, numbers in a block, bytes of a block. Those that ggml gave up are not there.
FORMATS = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
}
_BLOCKS = {name: (numbers, size) for name, numbers, size in FORMATS.values()}
#: Formats that torch has, by its names.
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
#: All others.
QUANTIZED = frozenset(_BLOCKS) - set(_PLAIN)
_INSTALL_HINT = "pip install gguf"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MOST_AXES = 4
_DEEPEST_ARRAY = 4
_LONGEST_WORD = 40
#: Metadata: bytes of a value by the number of its kind.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
#: Numbers that are worked out at once: each takes several times its own four bytes meanwhile.
_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`tensors`: their bytes from the start of the file; `architecture`: what the file says that it holds, or ""."""

    architecture: str
    tensors: Mapping[str, Stored] = field(repr=False)


def is_one(file: Path) -> bool:
    """By its name or its first bytes; a file that cannot be read is none."""
    try:
        with file.open("rb") as content:
            return file.suffix.lower() == ".gguf" or content.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(file: Path) -> Header:
    """Raises CheckpointMissing, or CheckpointRefused where the file is not whole or not of this format."""
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            return _Reading(file, content, size).header()
    except OSError:
        raise CheckpointMissing(f"There is no file {file} that can be read.") from None


def check_installed(file: Path) -> None:
    """Raise CheckpointRefused where the package is not there that knows the formats."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointRefused(f"{file} is a GGUF file, and the package that reads its numbers is not installed: "
                                f"{_INSTALL_HINT}")  # fmt: skip


@contextmanager
def opened(file: Path, device: str) -> Iterator[Content]:
    """The content of a file whose header was read."""
    with file.open("rb") as content:
        yield Content(file, content, device)


class Content:
    """An open file's tensors, each as numbers on the device; raises CheckpointRefused where nothing can read them."""

    def __init__(self, file: Path, content: BinaryIO, device: str) -> None:
        self._file = file
        self._content = content
        self._device = device
        check_installed(file)
        self._tensors = read(file).tensors

    def get_tensor(self, name: str) -> Tensor:
        """In float32, or as it is where it was not quantised. Raises CheckpointRefused."""
        import torch

        stored = self._tensors[name]
        start, end = stored.data_offsets
        self._content.seek(start)
        data = bytearray(end - start)
        if self._content.readinto(data) < len(data):  # type: ignore[attr-defined]
            raise CheckpointRefused(f"{self._file} was cut off while it was read. Get it again.")
        there = torch.frombuffer(data, dtype=torch.uint8).to(self._device) if data else torch.empty(0)
        if stored.dtype in _PLAIN:
            return there.view(getattr(torch, _PLAIN[stored.dtype])).reshape(stored.shape)
        return _numbers(self._file, there, stored.dtype).reshape(stored.shape)


def _numbers(file: Path, data: Tensor, kind: str) -> Tensor:
    """Of the blocks one after the other."""
    import torch

    numbers, size = _BLOCKS[kind]
    blocks = data.view(-1, size)
    found = torch.empty(len(blocks), numbers, device=data.device)
    step = max(1, _AT_ONCE // numbers)
    for start in range(0, len(blocks), step):
        found[start : start + step] = _of_blocks(file, blocks[start : start + step], kind)
    return found


def _of_blocks(file: Path, blocks: Tensor, kind: str) -> Tensor:
    import gguf
    import numpy as np
    import torch
    from diffusers.quantizers.gguf.utils import dequantize_functions

    known = gguf.GGMLQuantizationType.__members__.get(kind)  # None in a package that is older than the format
    if known in dequantize_functions:
        found: Tensor = dequantize_functions[known](blocks, *_BLOCKS[kind], dtype=torch.float32)
        return found
    try:
        with np.errstate(all="ignore"):  # what a damaged scale does is seen in what is drawn
            return torch.from_numpy(gguf.quants.dequantize(blocks.cpu().numpy(), known)).to(blocks.device)
    except (NotImplementedError, AttributeError):
        raise CheckpointRefused(
            f"{file} holds numbers in {kind}, which the installed gguf package does not know: "
            f"{_INSTALL_HINT} --upgrade, or get the file in Q8_0."
        ) from None


class _Reading:
    """One pass over a header; each read is checked against the bytes that are left."""

    def __init__(self, file: Path, content: BinaryIO, size: int) -> None:
        self._file = file
        self._content = content
        self._size = size
        self._told: dict[str, str | int] = {}

    def header(self) -> Header:
        start = self._content.read(len(MAGIC))
        if start != MAGIC and not MAGIC.startswith(start):
            self._refuse("is no GGUF file, though it is called one. Get the file again, or give it its right name.")
        self._check_version()
        tensors, pairs = self._number("<QQ")
        for _ in range(pairs):
            name = self._text()
            self._value(name, self._number("<I")[0])
        stored = dict(self._tensor() for _ in range(tensors))
        if len(stored) < tensors:
            self._damaged("names a tensor twice")
        return Header(
            architecture=str(self._told.get("general.architecture", ""))[:_LONGEST_WORD],
            tensors=self._placed(stored, self._content.tell()),
        )

    def _check_version(self) -> None:
        (version,) = self._number("<I")
        if version not in _VERSIONS:
            kind = "kept in big-endian order" if version & 0xFFFF == 0 else f"of version {version}"
            self._refuse(f"is a GGUF file {kind}; those of versions 2 and 3 in little-endian order are read.")

    def _tensor(self) -> tuple[str, Stored]:
        """With its place counted from the end of the header."""
        name = self._text()
        (axes,) = self._number("<I")
        if axes > _MOST_AXES:
            self._damaged(f"tells of a tensor of {axes} axes")
        shape = tuple(reversed(self._number(f"<{axes}Q")))
        number, offset = self._number("<IQ")
        if number not in FORMATS:
            self._refuse(f"holds numbers in format {number} of ggml, which is not read. Get it in Q8_0 or F16.")
        kind, numbers, size = FORMATS[number]
        if (shape[-1] if shape else 1) % numbers:
            self._damaged(f"holds rows of {shape[-1]} numbers in blocks of {numbers}")
        return name, Stored(dtype=kind, shape=shape, data_offsets=(offset, offset + math.prod(shape) // numbers * size))

    def _placed(self, stored: Mapping[str, Stored], end: int) -> Mapping[str, Stored]:
        alignment = self._told.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            self._damaged(f"aligns its tensors to {alignment!r:.20} bytes")
        start = -(-end // alignment) * alignment
        whole = start + max((one.data_offsets[1] for one in stored.values()), default=0)
        if self._size < whole:
            self._refuse(f"is cut off: {self._size:,} of {whole:,} bytes are there. Download it again.")
        return {
            name: Stored(one.dtype, one.shape, (start + one.data_offsets[0], start + one.data_offsets[1]))
            for name, one in stored.items()
        }

    def _value(self, name: str, kind: int, depth: int = 0) -> None:
        """What the header says of `name`: kept where it is a text or a number of four bytes, else passed by."""
        if kind == _STRING:
            self._told[name] = self._text()
        elif kind == _UINT32:
            (self._told[name],) = self._number("<I")
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        elif kind == _ARRAY and depth < _DEEPEST_ARRAY:
            of, count = self._number("<IQ")
            if of in _SIZES:
                self._skip(count * _SIZES[of])
            else:
                for _ in range(count):
                    self._value("", of, depth + 1)
        else:
            self._damaged(f"tells {name or 'a list'} as a value of kind {kind}")

    def _text(self) -> str:
        (length,) = self._number("<Q")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            self._damaged("holds a name that is no text")

    def _number(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, count: int) -> bytes:
        self._check_left(count)
        return self._content.read(count)

    def _skip(self, count: int) -> None:
        self._check_left(count)
        self._content.seek(count, 1)

    def _check_left(self, count: int) -> None:
        if count > self._size - self._content.tell():
            self._refuse("is cut off, or damaged: its header is longer than the file. Download it again.")

    def _damaged(self, what: str) -> NoReturn:
        self._refuse(f"is damaged: its header {what}. Download it again.")

    def _refuse(self, what: str) -> NoReturn:
        raise CheckpointRefused(f"{self._file} {what}")
