"""The data folder: where its files lie, its lock, its store, and the private folder of its sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from fluxserve import database
from fluxserve.delivery.files import sync_folder
from fluxserve.delivery.storage import LocalStorage
from fluxserve.errors import ConfigurationError
from fluxserve.settings import Settings
from fluxserve.store.sqlite import SqliteStore
from fluxserve.worker.connection import (
    LOCAL_PREFIX,
    forget_dead_workers,
    make_run_dir,
    remove_run_dir,
    run_dir,
    worker_lock,
)


def database_path(settings: Settings) -> Path:
    """The database of a data folder."""
    return settings.data_dir / "fluxserve.db"


@contextlib.contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Hold the data folder, made where it is missing; raises DataFolderInUse while a server runs on it."""
    prepare_data_dir(settings.data_dir)
    with database.hold_lock(lock_path(settings), what=f"The data folder {settings.data_dir}"):
        yield


def lock_path(settings: Settings) -> Path:
    """The lock a server holds on its data folder."""
    return settings.data_dir / "server.lock"


def admin_path(settings: Settings) -> Path:
    """The running server's admin socket."""
    return run_dir(settings.data_dir) / "admin.sock"


def input_storage(settings: Settings) -> LocalStorage:
    """Where the input pictures of unfinished tasks lie."""
    return LocalStorage(settings.data_dir / "inputs")


def key_path(data_dir: Path) -> Path:
    """Where the first key is kept for the command line on this machine."""
    return data_dir / "api_key"


def address_path(data_dir: Path) -> Path:
    """Where a running server says at which URL it answers, for the command line on this machine."""
    return data_dir / "address"


def prepare_data_dir(folder: Path) -> None:
    """Make the data folder, private; raises ConfigurationError where it cannot be."""
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(PermissionError):  # whoever may make folders there need not be able to read it
                sync_folder(folder.parent)
    except OSError:
        raise ConfigurationError(f"The data folder {folder} cannot be made: choose another with --data-dir.") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"The data folder {folder} is not writable: choose another with --data-dir.")


@contextlib.asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[SqliteStore]:
    """The store of a data folder whose lock is held."""
    store = await asyncio.to_thread(SqliteStore, database_path(settings))
    try:
        yield store
    finally:
        await store.close()


@contextlib.contextmanager
def run_folder(settings: Settings) -> Iterator[Path]:
    """The private folder of sockets and workers' locks, cleared of what killed processes left there."""
    folder = make_run_dir(settings.data_dir)
    forget_dead_workers(folder, database.is_locked)
    try:
        yield folder
    finally:
        remove_run_dir(folder)


def is_alive(folder: Path, worker_id: str) -> bool:
    """Whether a worker may come back: its process lives, or it is on another machine, where only its lease can tell."""
    lock = worker_lock(folder, worker_id)
    return not worker_id.startswith(LOCAL_PREFIX) or (lock.exists() and database.is_locked(lock))
