"""What a device was found to do with the networks of a checkpoint: measured and tested once, kept for the next start.

The budget comes from a clock, so it may come out differently the next time. Kept in a file, it stays: where passes are
padded, their size is part of the fingerprint, and a restart must not change that.
What it does not know: how it is measured.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)


class SizeFound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Up to `most` pictures of one size may share a pass; `padded`: always filled up to that many."""

    size: str
    most: int
    padded: bool


class Measured(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token budget, and the sizes that passed the self-test."""

    tokens: int
    sizes: tuple[SizeFound, ...]


def read(folder: Path | None, name: str) -> Measured | None:
    """What was kept under this name; None where nothing was, or nothing that can be read."""
    if folder is None:
        return None
    try:
        return msgspec.json.decode(_file(folder, name).read_bytes(), type=Measured)
    except (OSError, msgspec.MsgspecError):
        return None


def keep(folder: Path | None, name: str, found: Measured) -> Measured:
    """Keep it, unless another process was faster: what was kept first counts for all. Answers what counts.

    Where the folder's parent is not there, nothing is kept.
    """
    if folder is None or not folder.parent.is_dir():
        return found
    own = folder / f"{name}.{secrets.token_hex(4)}.new"
    try:
        folder.mkdir(exist_ok=True)
        if _file(folder, name).exists() and read(folder, name) is None:  # damaged: it came there as a whole
            _file(folder, name).unlink(missing_ok=True)
        own.write_bytes(msgspec.json.format(msgspec.json.encode(found)))
        with contextlib.suppress(FileExistsError):
            os.link(own, _file(folder, name))
    except OSError:
        logger.warning("What was measured cannot be kept", extra={"action": "not_kept", "folder": str(folder)})
    finally:
        with contextlib.suppress(OSError):
            own.unlink(missing_ok=True)
    return read(folder, name) or found


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
