"""How a worker reaches its server: an address, a socket, and who it is talking to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

from fluxserve.errors import ConfigurationError, WorkerRefused
from fluxserve.settings import is_port

#: Longest path of a unix socket that every system takes.
MAX_SOCKET_PATH = 100
#: Names of workers that a server starts itself; all others may be anywhere.
LOCAL_PREFIX = "local-"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def run_dir(data_dir: Path) -> Path:
    """The private folder of a server's sockets and locks, the same at every start.

    It lies in the data folder, where nobody else can get in its way, unless that path is too long for a socket.
    """
    home = data_dir.resolve()
    digest = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    elsewhere = Path("/tmp") / f"fluxserve-{os.getuid()}-{digest}"  # noqa: S108 - the folder is private and checked
    inside = home / "run"
    return inside if len(str(inside / "worker.sock").encode()) < MAX_SOCKET_PATH else elsewhere


def make_run_dir(data_dir: Path) -> Path:
    """Make the folder with mode 0700; refuses one that somebody else has put there."""
    folder = run_dir(data_dir)
    with contextlib.suppress(FileExistsError):  # whatever is there is looked at below
        folder.mkdir(mode=0o700)
    info = folder.lstat()
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise ConfigurationError(f"{folder} is not a private folder of this user: remove it, then start again.")
    return folder


def worker_lock(folder: Path, worker_id: str) -> Path:
    """A local worker holds this lock as long as it lives."""
    return folder / f"{worker_id}.lock"


def forget_dead_workers(folder: Path, is_locked: Callable[[Path], bool]) -> None:
    """Remove the locks of workers that were killed; a living one still holds its own."""
    for lock in folder.glob(f"{LOCAL_PREFIX}*.lock"):
        if not is_locked(lock):
            lock.unlink(missing_ok=True)


def remove_run_dir(folder: Path) -> None:
    """Leave nothing behind, unless a worker of an earlier server still lives there."""
    for name in ("worker.sock", "admin.sock"):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def same_user(connection: socket.socket) -> bool:
    """Whether the process at the other end of a unix socket runs as this user."""
    if hasattr(socket, "SO_PEERCRED"):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return bool(struct.unpack("3i", credentials)[1] == os.getuid())
    return True  # elsewhere the folder's mode 0700 is the guard


async def dial(address: str) -> Streams:
    """Connect to `unix:PATH` or `tcp:HOST:PORT`; raises OSError while nobody listens there."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        reader, writer = await asyncio.open_unix_connection(rest)
        if not same_user(writer.get_extra_info("socket")):
            writer.close()
            raise WorkerRefused("The server's socket belongs to another user.")
        return reader, writer
    host, _, port = rest.rpartition(":")
    if kind != "tcp" or not host or not is_port(port):
        raise ConfigurationError(
            f"{address!r} is no server address: use unix:PATH or tcp:HOST:PORT, with a port from 0 to 65535."
        )
    return await asyncio.open_connection(host.strip("[]"), int(port))
