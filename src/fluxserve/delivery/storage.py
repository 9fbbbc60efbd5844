"""The storage seam, and the storage in a local folder. Pictures and waypoints have a storage each.

They lie under names made here, from 128 random bits: no text of a caller is ever part of a path, and any other
name is simply not there. What it does not know: tasks, links and how long a picture is kept.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from fluxserve.catalogue import OutputFormat
from fluxserve.delivery.files import sync_folder, write_new
from fluxserve.errors import DiskFull, PictureGone

#: `ab/ab....jpeg`: 32 hexadecimal digits, spread over folders by the first two.
OBJECT_NAME = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{30}\.(?:jpeg|png|webp|safetensors)")
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
#: A file in `tmp` this many seconds old belongs to a server that died while it wrote.
_LEFTOVER_AGE = 3600
_UNFOLLOWED = os.O_NOFOLLOW | os.O_CLOEXEC


class Picture(Protocol):
    """A picture that is being read. `read` may block; leaving its `with` block closes it."""

    @property
    def size(self) -> int:
        """Bytes of the whole picture."""

    def read(self, limit: int) -> bytes:
        """The next bytes, `limit` of them where there are as many; nothing at the end."""

    def __enter__(self) -> Picture: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Storage(Protocol):
    """Where pictures lie. Every method may block: callers use a thread."""

    def put(self, object_name: str, data: bytes) -> None:
        """Keep `data`; when this returns it survives a power cut. Raises DiskFull."""

    def open(self, object_name: str) -> Picture:
        """The picture, for reading; it stays readable and as it was until it is closed. Raises PictureGone."""

    def delete(self, object_name: str) -> None:
        """Forget a picture; one that is not there is already forgotten."""

    def names_older_than(self, cutoff: float) -> Iterator[str]:
        """Names of the pictures last written before `cutoff` (Unix seconds), in any order."""


def new_object_name(suffix: OutputFormat | Literal["safetensors"]) -> str:
    """A name that nobody can guess and nothing else has."""
    random = secrets.token_hex(16)
    return f"{random[:2]}/{random}.{suffix}"


class LocalPicture:
    """An open file; it outlives its name."""

    def __init__(self, descriptor: int) -> None:
        self._file = open(descriptor, "rb")  # noqa: SIM115  (a descriptor, closed by `__exit__`)
        self._size = os.fstat(descriptor).st_size

    @property
    def size(self) -> int:
        """Bytes of the whole picture."""
        return self._size

    def read(self, limit: int) -> bytes:
        """The next bytes."""
        return self._file.read(limit)

    def __enter__(self) -> LocalPicture:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class LocalStorage:
    """Pictures in a folder that only this user may read.

    A picture is written in `tmp`, on the same file system, and renamed, so that it is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tmp = folder / "tmp"
        for made in (folder, self._tmp):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            made.chmod(0o700)
            sync_folder(made.parent)
        #: Folders whose names are on the disk; another thread may have made one, and not have synced it yet.
        self._durable: set[str] = set()
        self._sweep_leftovers(time.time() - _LEFTOVER_AGE)

    def put(self, object_name: str, data: bytes) -> None:
        """Write, fsync, rename, fsync the folder."""
        path = self._path(object_name)
        tmp = self._tmp / secrets.token_hex(16)
        try:
            write_new(tmp, data)
            if path.parent.name not in self._durable:
                path.parent.mkdir(mode=0o700, exist_ok=True)
                sync_folder(self._folder)
                self._durable.add(path.parent.name)
            tmp.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            with suppress(OSError):
                tmp.unlink(missing_ok=True)
            if error.errno in _NO_SPACE:
                raise DiskFull("There is no space left for pictures on the server's disk.") from None
            raise

    def open(self, object_name: str) -> Picture:
        """The picture's file; links in the folder are not followed."""
        path = self._path(object_name)
        try:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | _UNFOLLOWED)
            try:
                file = os.open(path.name, os.O_RDONLY | _UNFOLLOWED, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise _gone() from None
            raise
        return LocalPicture(file)

    def delete(self, object_name: str) -> None:
        """Remove the file."""
        self._path(object_name).unlink(missing_ok=True)

    def names_older_than(self, cutoff: float) -> Iterator[str]:
        """Walk the folder; a file that goes away meanwhile is left out."""
        for path in self._folder.glob("??/*"):
            name = f"{path.parent.name}/{path.name}"
            with suppress(FileNotFoundError):
                if OBJECT_NAME.fullmatch(name) and path.lstat().st_mtime < cutoff:
                    yield name

    def _path(self, object_name: str) -> Path:
        if not OBJECT_NAME.fullmatch(object_name):
            raise _gone()
        return self._folder / object_name

    def _sweep_leftovers(self, cutoff: float) -> None:
        for path in self._tmp.iterdir():
            with suppress(FileNotFoundError):
                if path.lstat().st_mtime < cutoff:
                    path.unlink()


def _gone() -> PictureGone:
    return PictureGone("The picture is gone: pictures are deleted some time after they were drawn.")
