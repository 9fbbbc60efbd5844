"""What the server and its decoders say to each other: a Job in, a Decoded or a Refused out.

frame = 4 bytes big-endian length, then one msgpack map
"""

from __future__ import annotations

import struct

import msgspec

HEADER = struct.Struct(">I")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A file, `is_text`: as base64, perhaps in a data URI; and what is to become of it (see `pictures.decode`).

    `measures`: it is only to be measured (see `pictures.measure_file`).
    """

    content: bytes
    is_text: bool
    max_area: int | None
    with_mask: bool
    measures: bool = False


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A picture as a PNG of its plain pixels; `sha256` is that of these pixels, not of the file.

    Both are empty where it was only measured.
    """

    width: int
    height: int
    sha256: str
    png: bytes


class Decoded(msgspec.Struct, frozen=True, kw_only=True, tag="decoded"):
    """A picture, and what its alpha channel says is to be repainted (white), where that was asked for."""

    picture: File
    mask: File | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Why the file is not taken: a sentence for whoever sent it."""

    reason: str


class Unreadable(Exception):
    """The file is not what may be sent; the message says why, and holds nothing of the file."""


Answer = Decoded | Refused
