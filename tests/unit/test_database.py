"""The database file: migrations, damage, the lock, backup and restore. Real files, real processes, real kills."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve import database
from fluxserve.database import Migration
from fluxserve.errors import ConfigurationError, DatabaseDamaged, DatabaseTooNew, DataFolderInUse, StoreUnavailable

FIRST = Migration(1, "notes", "CREATE TABLE notes (text TEXT NOT NULL); CREATE INDEX notes_text ON notes (text);")
SECOND = Migration(2, "authors", "ALTER TABLE notes ADD COLUMN author TEXT; UPDATE notes SET author = 'unknown';")
BROKEN = Migration(3, "broken", "CREATE TABLE half (n INTEGER); CREATE TABLE notes (n INTEGER);")
PAGE = 4096

HOLD_LOCK = """
import sys
from pathlib import Path
from fluxserve import database
with database.hold_lock(Path(sys.argv[1]), what="The data folder"):
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_TRANSACTION = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where this test's database goes."""
    return tmp_path / "fluxserve.db"


@contextlib.contextmanager
def process(script: str, *arguments: Path) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has printed its first line; killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
    finally:
        child.kill()
        child.communicate()


def made(path: Path, *texts: str) -> None:
    """A database of schema 1 that holds `texts`."""
    connection = database.open_writer(path)
    database.migrate(connection, [FIRST])
    connection.executemany("INSERT INTO notes VALUES (?)", [(text,) for text in texts])
    connection.close()


def texts(path: Path) -> list[str]:
    """What the database at `path` holds."""
    connection = database.open_reader(path)
    rows = [row[0] for row in connection.execute("SELECT text FROM notes ORDER BY rowid")]
    connection.close()
    return rows


def opened(path: Path) -> None:
    """Open, check, close, as at a start."""
    connection = database.open_writer(path)
    try:
        database.check(connection)
    finally:
        connection.close()


def test_migrations_are_read_from_numbered_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "002_second_step.sql").write_text("B")
    (tmp_path / "001_first.sql").write_text("A")
    (tmp_path / "notes.txt").write_text("no migration")
    assert database.load_migrations(tmp_path) == (Migration(1, "first", "A"), Migration(2, "second_step", "B"))


def test_a_fresh_database_is_migrated_to_the_newest_schema(path: Path) -> None:
    connection = database.open_writer(path)
    assert database.migrate(connection, [FIRST, SECOND]) == 2
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT text, author FROM notes").fetchall() == []
    connection.close()


def test_migrations_may_leave_numbers_out(path: Path) -> None:
    connection = database.open_writer(path)
    fourth, fifth = replace(SECOND, number=4), Migration(5, "fifth", "CREATE TABLE fifth (x INTEGER);")
    assert database.migrate(connection, [FIRST, fourth]) == 4
    assert database.migrate(connection, [FIRST, fourth]) == 4
    assert database.migrate(connection, [FIRST, fourth, fifth]) == 5
    assert connection.execute("SELECT x FROM fifth").fetchall() == []
    connection.close()


def test_a_migration_runs_once(path: Path) -> None:
    connection = database.open_writer(path)
    assert [database.migrate(connection, [FIRST]) for _ in range(3)] == [1, 1, 1]
    connection.close()


def test_an_older_database_is_brought_up_to_date_with_its_rows(path: Path) -> None:
    made(path, "a")
    connection = database.open_writer(path)
    database.migrate(connection, [FIRST, SECOND])
    assert connection.execute("SELECT * FROM notes").fetchall() == [("a", "unknown")]
    connection.close()


def test_a_newer_database_is_refused_and_left_alone(path: Path) -> None:
    connection = database.open_writer(path)
    database.migrate(connection, [FIRST, SECOND])
    with pytest.raises(DatabaseTooNew, match="schema version 2, this fluxserve knows 1"):
        database.migrate(connection, [FIRST])
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    connection.close()


def test_a_migration_that_fails_changes_nothing(path: Path) -> None:
    made(path, "a")
    connection = database.open_writer(path)
    with pytest.raises(StoreUnavailable):
        database.migrate(connection, [FIRST, SECOND, BROKEN])
    assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert connection.execute("SELECT name FROM sqlite_schema WHERE name = 'half'").fetchall() == []
    assert not connection.in_transaction
    connection.close()


def test_the_database_and_its_log_are_for_its_owner_only_and_durable(path: Path) -> None:
    connection = database.open_writer(path)
    database.migrate(connection, [FIRST])
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)
    connection.close()


def test_a_reader_cannot_write(path: Path) -> None:
    made(path, "a")
    reader = database.open_reader(path)
    with pytest.raises(sqlite3.OperationalError):
        reader.execute("DELETE FROM notes")
    reader.close()


@pytest.mark.parametrize("content", [b"this is not a database at all", os.urandom(3 * PAGE)])
def test_a_file_that_is_no_database_is_called_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DatabaseDamaged, match="fluxserve restore"):
        opened(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("page", [1, 2])
def test_random_bytes_in_a_page_are_found_at_the_start(path: Path, page: int) -> None:
    made(path, *["x" * 100] * 500)
    with path.open("r+b") as file:
        file.seek(page * PAGE)
        file.write(os.urandom(PAGE))
    with pytest.raises(DatabaseDamaged):
        opened(path)


def test_a_database_cut_short_is_found_at_the_start(path: Path) -> None:
    made(path, *["x" * 100] * 500)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DatabaseDamaged):
        opened(path)


def test_a_sound_database_passes(path: Path) -> None:
    made(path, "a")
    opened(path)
    opened(path)


def test_the_text_of_sqlite_is_never_passed_on(path: Path) -> None:
    connection = database.open_writer(path)
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute("SELECT * FROM a_secret_table")
    assert "secret" not in database.translate(caught.value).message
    connection.close()


def test_only_one_process_holds_the_lock_and_its_death_frees_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert not database.is_locked(lock)
    with process(HOLD_LOCK, lock) as holder:
        assert database.is_locked(lock)
        with pytest.raises(DataFolderInUse, match="The data folder X is in use"):
            with database.hold_lock(lock, what="The data folder X"):
                pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert lock.exists()
        with database.hold_lock(lock, what="The data folder X"):
            assert database.is_locked(lock)
    assert not database.is_locked(lock)


def test_a_child_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with contextlib.ExitStack() as stack:
        with database.hold_lock(lock, what=""):
            stack.enter_context(process("import sys; print('held', flush=True); sys.stdin.read()"))
        assert not database.is_locked(lock)


def test_a_database_held_by_another_process_is_called_unavailable(path: Path) -> None:
    made(path)
    with process(HOLD_TRANSACTION, path):
        connection = database.open_writer(path)
        connection.execute("PRAGMA busy_timeout = 20")
        with pytest.raises(StoreUnavailable):
            database.migrate(connection, [FIRST, SECOND])
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        connection.close()


def backed_up(path: Path, target: Path) -> None:
    """A backup of the database at `path`, through a reader, as a running server makes it."""
    reader = database.open_reader(path)
    try:
        database.backup(reader, target)
    finally:
        reader.close()


def test_a_backup_is_one_whole_private_file_with_what_was_committed(path: Path, tmp_path: Path) -> None:
    made(path)
    target = tmp_path / "new" / "folder" / "backup.db"
    writer = database.open_writer(path)
    writer.execute("INSERT INTO notes VALUES ('committed')")
    writer.execute("BEGIN")
    writer.execute("INSERT INTO notes VALUES ('not yet')")
    backed_up(path, target)
    writer.close()

    assert [file.name for file in target.parent.iterdir()] == ["backup.db"]
    assert target.stat().st_mode & 0o777 == 0o600
    opened(target)
    assert texts(target) == ["committed"]


def test_a_backup_sweeps_a_leftover_and_replaces_nothing(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    (tmp_path / "backup.db.partial").write_bytes(b"left by a kill")
    made(path, "first")
    backed_up(path, target)
    with pytest.raises(ConfigurationError, match="exists already"):
        backed_up(path, target)
    assert texts(target) == ["first"]
    assert not (tmp_path / "backup.db.partial").exists()


def test_a_backup_never_replaces_what_is_there(path: Path, tmp_path: Path) -> None:
    made(path, "a")
    (tmp_path / "link.db").symlink_to(path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "precious").write_text("precious")
    for name in ("fluxserve.db", "link.db", "dangling", "precious", "."):
        with pytest.raises(ConfigurationError, match="exists already"):
            backed_up(path, tmp_path / name)
    assert texts(path) == ["a"]
    assert (tmp_path / "precious").read_text() == "precious"
    assert not list(tmp_path.glob("*.partial"))


def test_a_backup_that_cannot_be_written_is_refused_with_a_sentence(path: Path, tmp_path: Path) -> None:
    made(path)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        backed_up(path, tmp_path / "file" / "backup.db")


def test_a_backup_of_a_damaged_database_leaves_nothing_behind(path: Path, tmp_path: Path) -> None:
    made(path, *["x" * 100] * 500)
    reader = database.open_reader(path)
    os.truncate(path, PAGE + 100)
    with pytest.raises((DatabaseDamaged, StoreUnavailable)):
        database.backup(reader, tmp_path / "backup.db")
    reader.close()
    assert not list(tmp_path.glob("backup.db*"))


def test_a_restored_database_is_the_backup_and_the_old_one_is_kept(path: Path, tmp_path: Path) -> None:
    made(path, "old")
    backed_up(path, tmp_path / "backup.db")
    writer = database.open_writer(path)
    writer.execute("INSERT INTO notes VALUES ('newer')")
    os.link(path.with_name("fluxserve.db-wal"), tmp_path / "wal")  # a log as kill -9 leaves it
    writer.close()
    (tmp_path / "wal").rename(path.with_name("fluxserve.db-wal"))

    database.restore(tmp_path / "backup.db", path)

    assert path.stat().st_mode & 0o777 == 0o600
    opened(path)
    assert texts(path) == ["old"]

    kept = path.with_name("fluxserve.db.before-restore-1")
    assert database.restore(kept, path) == path.with_name("fluxserve.db.before-restore-2")
    assert texts(path.with_name("fluxserve.db.before-restore-2")) == ["old"]
    assert texts(path) == ["old", "newer"]
    assert texts(kept) == ["old", "newer"]


def test_a_backup_with_a_log_beside_it_is_restored_with_its_log(path: Path, tmp_path: Path) -> None:
    made(path, "old")
    writer = database.open_writer(path)
    writer.execute("INSERT INTO notes VALUES ('newer')")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", tmp_path / f"copy.db{suffix}")
    writer.close()
    database.restore(tmp_path / "copy.db", path)
    assert texts(path) == ["old", "newer"]
    assert (tmp_path / "copy.db-wal").stat().st_size > 0


def test_a_damaged_database_is_kept_as_it_is(path: Path, tmp_path: Path) -> None:
    made(path, "old")
    backed_up(path, tmp_path / "backup.db")
    path.write_bytes(b"no database at all " * 100)
    database.restore(tmp_path / "backup.db", path)
    assert texts(path) == ["old"]
    assert path.with_name("fluxserve.db.before-restore-1").read_bytes().startswith(b"no database")


@pytest.mark.parametrize("kind", ["damaged", "no database", "empty", "another program's", "missing", "itself"])
def test_a_bad_backup_is_refused_and_the_database_stays(path: Path, tmp_path: Path, kind: str) -> None:
    made(path, *["kept" * 30] * 500)
    bad = tmp_path / "bad.db"
    if kind == "damaged":
        backed_up(path, bad)
        with bad.open("r+b") as file:
            file.seek(PAGE)
            file.write(os.urandom(PAGE))
    elif kind == "no database":
        bad.write_bytes(b"a text file that is certainly no database " * 20)
    elif kind == "empty":
        bad.touch()
    elif kind == "another program's":
        other = sqlite3.connect(bad)
        other.execute("CREATE TABLE songs (title TEXT)")
        other.close()
    elif kind == "itself":
        bad = path

    with pytest.raises(ConfigurationError):
        database.restore(bad, path)

    assert len(texts(path)) == 500
    assert not list(tmp_path.glob("*.before-restore-*"))


def test_a_backup_can_be_restored_where_there_is_no_database_yet(path: Path, tmp_path: Path) -> None:
    made(path, "a")
    backed_up(path, tmp_path / "backup.db")
    elsewhere = tmp_path / "elsewhere.db"
    database.restore(tmp_path / "backup.db", elsewhere)
    assert texts(elsewhere) == ["a"]
