"""The embedded database file: one writer, numbered migrations, a lock, checks, backup and restore.

SQLite in WAL mode with `synchronous=FULL`: what was committed survives kill -9 and power loss. There is exactly
one read-write connection per file (SQLite before 3.51.3 can corrupt its WAL with two); readers are `mode=ro`.
What it does not know: tables. Those are the store's.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import (
    ConfigurationError,
    DatabaseDamaged,
    DatabaseTooNew,
    DataFolderInUse,
    DiskFull,
    FluxserveError,
    StoreUnavailable,
)

BUSY_TIMEOUT_S = 5.0
#: A database, its log, and the log's index.
_SUFFIXES = ("", "-wal", "-shm")
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
#: What reading or writing may raise. A damaged schema is quoted by SQLite in an error that is no text any more.
FAILURES = (sqlite3.Error, UnicodeDecodeError)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered step of the schema; numbers rise, and may leave some out."""

    number: int
    name: str
    sql: str


def load_migrations(folder: Path) -> tuple[Migration, ...]:
    """`NNN_name.sql` files in order."""
    return tuple(
        Migration(int(path.stem.split("_", 1)[0]), path.stem.split("_", 1)[1], path.read_text("utf-8"))
        for path in sorted(folder.glob("[0-9][0-9][0-9]_*.sql"))
    )


def translate(error: sqlite3.Error | UnicodeDecodeError) -> FluxserveError:
    """Ours for SQLite's error; the text of the library is not passed on."""
    if isinstance(error, UnicodeDecodeError):
        return damaged()
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFull("The disk that holds the database is full; nothing was changed. Free some space.")
    if code in _DAMAGE:
        return damaged()
    return StoreUnavailable("The database could not take the write; nothing was changed. Try again.")


def damaged() -> DatabaseDamaged:
    """What is to be done then."""
    return DatabaseDamaged("The database is damaged. Stop the server and run `fluxserve restore BACKUP`.")


def open_writer(path: Path) -> sqlite3.Connection:
    """The one read-write connection. Raises DatabaseDamaged when the file is no database."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "secure_delete = ON",
            "cache_size = -16000",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except FAILURES as error:
        connection.close()
        raise translate(error) from None
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection that can only read."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_S,
    )


def check(connection: sqlite3.Connection) -> None:
    """SQLite's own quick check; raises DatabaseDamaged."""
    try:
        rows = connection.execute("PRAGMA quick_check(1)").fetchall()
    except FAILURES as error:
        raise translate(error) from None
    if rows != [("ok",)]:
        raise damaged()


def migrate(connection: sqlite3.Connection, migrations: Sequence[Migration]) -> int:
    """Bring the schema to the newest version and return it; refuses a schema newer than this program."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    newest = migrations[-1].number
    if version > newest:
        raise DatabaseTooNew(
            f"The database has schema version {version}, this fluxserve knows {newest}: "
            "start the newer fluxserve, or restore a backup made by this version."
        )
    for migration in migrations:
        if migration.number <= version:
            continue
        script = f"BEGIN IMMEDIATE;\n{migration.sql}\nPRAGMA user_version = {migration.number};\nCOMMIT;"
        try:
            connection.executescript(script)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise translate(error) from None
    return newest


def backup(connection: sqlite3.Connection, target: Path) -> None:
    """Write a consistent copy to `target` (mode 0600), complete or not at all; the server may go on meanwhile.

    Whatever is there already stays: raises ConfigurationError.
    """
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} exists already: name a new file for the backup.")
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError:
        raise ConfigurationError(f"The backup cannot be written to {target}: check the folder's permissions.") from None
    copy = sqlite3.connect(partial)
    try:
        connection.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        partial.unlink()
        raise translate(error) from None
    finally:
        copy.close()
    _sync(partial)
    try:
        os.link(partial, target)  # unlike a rename, it never replaces what somebody put there meanwhile
        _sync(target.parent)
    except OSError:
        raise ConfigurationError(f"The backup cannot be written to {target}: name another file.") from None
    finally:
        partial.unlink()


def restore(source: Path, target: Path) -> Path | None:
    """Put a backup in the database's place; what was there is kept whole beside it, and its path returned.

    A database with a log beside it is taken with its log, so that a kept one can be restored again.
    """
    if not source.is_file():
        raise ConfigurationError(f"There is no backup at {source}.")
    if target.exists() and source.samefile(target):
        raise ConfigurationError(f"{source} is the database itself, not a backup.")
    partial = target.with_name(target.name + ".partial")
    try:
        _copy_whole(source, partial)
        _check_backup(source, partial)
        kept = _keep(target)
        _put_in_place(partial, target)
    except OSError:
        raise ConfigurationError(f"The backup cannot be copied to {target.parent}: check its free space.") from None
    finally:
        for suffix in _SUFFIXES:
            _beside(partial, suffix).unlink(missing_ok=True)
    return kept


def _copy_whole(source: Path, partial: Path) -> None:
    for suffix in ("", "-wal"):
        copy = _beside(partial, suffix)
        copy.unlink(missing_ok=True)
        if _beside(source, suffix).exists():
            shutil.copyfile(_beside(source, suffix), copy)
            copy.chmod(0o600)


def _check_backup(source: Path, copy: Path) -> None:
    """Look at the copy, and fold its log into it."""
    connection = sqlite3.connect(copy, isolation_level=None)
    try:
        check(connection)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA journal_mode = DELETE")
    except (DatabaseDamaged, sqlite3.Error):
        raise DatabaseDamaged(f"The backup {source} is damaged; nothing was changed. Restore another one.") from None
    finally:
        connection.close()
    if not version:
        raise ConfigurationError(f"{source} holds no fluxserve database; nothing was changed.")


def _keep(target: Path) -> Path | None:
    """Move a database aside with its log folded in; a damaged one moves as it is, log and all."""
    if not target.exists():
        return None
    with contextlib.suppress(DatabaseDamaged):
        open_writer(target).close()
    names = (target.with_name(f"{target.name}.before-restore-{number}") for number in itertools.count(1))
    kept = next(name for name in names if not name.exists())
    for suffix in _SUFFIXES:
        if _beside(target, suffix).exists():
            _beside(target, suffix).replace(_beside(kept, suffix))
    return kept


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _put_in_place(partial: Path, target: Path) -> None:
    _sync(partial)
    partial.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold_lock(path: Path, *, what: str) -> Iterator[None]:
    """Hold an exclusive lock on `path` until the block ends or the process dies; raises DataFolderInUse.

    The kernel frees the lock with the process, so a file left behind by kill -9 stops nobody.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataFolderInUse(f"{what} is in use by another fluxserve: stop it, or choose another.") from None
        yield
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with hold_lock(path, what=str(path)):
            return False
    except DataFolderInUse:
        return True
