"""The header of a safetensors file: which tensors it holds, of which format and shape; read without torch.

Errors name the file, say what is wrong with it, and what to do.
What it does not know: what the tensors are for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from fluxserve.engine.layout import REFUSED_SUFFIXES
from fluxserve.errors import CheckpointMissing, CheckpointRefused

_LENGTH_BYTES = 8
#: The format's own limit.
_LONGEST = 100 * 10**6
#: How files of other formats begin.
_OTHER_FORMATS = {b"PK\x03\x04": "a pickle", b"\x80\x02": "a pickle", b"GGUF": "a GGUF file"}


class Stored(msgspec.Struct, frozen=True):
    """A tensor in the file: its number format as safetensors names it, such as BF16, and where its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return self.data_offsets[1] - self.data_offsets[0]


def read(file: Path) -> Mapping[str, Stored]:
    """Every tensor of the file by its name. Raises CheckpointMissing, or CheckpointRefused where it is not whole."""
    if file.suffix.lower() in REFUSED_SUFFIXES:
        raise CheckpointRefused(f"{file} could run code: only safetensors are loaded. Get the file in that format.")
    try:
        size = file.stat().st_size
        with file.open("rb") as content:
            start = content.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            text = content.read(length) if length <= _LONGEST else b""
    except OSError:
        raise CheckpointMissing(f"There is no file {file} that can be read.") from None
    for magic, kind in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise CheckpointRefused(f"{file} is {kind}: only safetensors are loaded. Get it in that format.")
    tensors = _decode(file, text)
    _check_length(
        file, size, _LENGTH_BYTES + length + max((one.data_offsets[1] for one in tensors.values()), default=0)
    )
    return tensors


def _decode(file: Path, text: bytes) -> Mapping[str, Stored]:
    try:
        entries = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return {
            name: msgspec.json.decode(entry, type=Stored) for name, entry in entries.items() if name != "__metadata__"
        }
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise CheckpointRefused(
            f"{file} is no whole safetensors file: its header cannot be read. Download it again."
        ) from None


def _check_length(file: Path, size: int, whole: int) -> None:
    if size < whole:
        raise CheckpointRefused(f"{file} is cut off: {size:,} of {whole:,} bytes are there. Download it again.")
    if size > whole:
        raise CheckpointRefused(f"{file} is damaged: {size - whole:,} bytes too long. Download it again.")
