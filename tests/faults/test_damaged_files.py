"""Bytes of the database and its log are flipped, cut off or lost: what a server finds is sound, or it does not serve.

R7. SQLite keeps checksums of its log and none of its pages, so a log ends where it is damaged, and of a page only what
breaks its structure, or the books, is seen. What matters here: nothing of it is ever a crash without a remedy.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from builders import claimed, completion, in_event_loop, new_key, submitted
from fluxserve.errors import DatabaseDamaged, StoreUnavailable
from fluxserve.store.sqlite import SqliteStore

PAGE = 4096
Damage = Callable[[Path, random.Random], None]


def flip(path: Path, rng: random.Random, count: int) -> None:
    """Other bytes in one page."""
    with path.open("r+b") as file:
        at = rng.randrange(path.stat().st_size // PAGE) * PAGE
        for _ in range(count):
            file.seek(at + rng.randrange(PAGE))
            file.write(rng.randbytes(1))


def overwrite(path: Path, rng: random.Random) -> None:
    """Random bytes in one page."""
    with path.open("r+b") as file:
        file.seek(rng.randrange(path.stat().st_size // PAGE) * PAGE)
        file.write(rng.randbytes(PAGE))


def truncate(path: Path, rng: random.Random) -> None:
    """Only the beginning is left."""
    with path.open("r+b") as file:
        file.truncate(rng.randrange(path.stat().st_size))


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


DAMAGES: dict[str, Damage] = {
    "a few bytes of a page": lambda path, rng: flip(path, rng, 4),
    "a page of random bytes": overwrite,
    "bytes of the log": lambda path, rng: flip(log_of(path), rng, 4),
    "a log cut short": lambda path, rng: truncate(log_of(path), rng),
    "a database cut short": truncate,
}


async def filled(path: Path) -> int:
    """Tasks in all states, with the half of them in the log, as after a kill -9; answers how many."""
    store = SqliteStore(path)
    entry = await store.create_key(new_key(credits_=10_000_000))
    for part in range(2):
        await submitted(store, entry, count=60)
        await store.complete_many([completion(task) for task in await claimed(store, limit=20)])
        if not part:
            store._writer._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = path.with_name("killed.db")
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    await store.close()
    return 120


async def found(path: Path) -> str:
    """What a server makes of the files: it refuses to start, to answer, or it works, and `fsck` has its say."""
    try:
        store = SqliteStore(path)
    except DatabaseDamaged as error:
        return "refused at the start" if "fluxserve restore" in error.message else error.message
    try:
        active = await store.active()
        await store.get_many([record.id for record in active])
        entries = await store.keys()
        violations = await store.fsck()
        await submitted(store, entries[0])
        return "told by fsck" if violations else f"sound with {len(active) // 20 * 20} and more unfinished"
    except (DatabaseDamaged, StoreUnavailable) as error:
        return f"refused at a touch: {type(error).__name__}"
    finally:
        await store.close()


@pytest.mark.parametrize("damage", DAMAGES)
@in_event_loop
async def test_whatever_is_damaged_is_refused_with_its_remedy_or_is_sound(
    tmp_path: Path, damage: str, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    await filled(tmp_path / "fluxserve.db")
    rng = random.Random(7)
    seen: Counter[str] = Counter()
    for number in range(400 if long else 25):
        copy = tmp_path / f"{number}.db"
        for suffix in ("", "-wal"):
            shutil.copyfile(tmp_path / f"killed.db{suffix}", f"{copy}{suffix}")
        DAMAGES[damage](copy, rng)
        seen[await found(copy)] += 1
    assert all(outcome.startswith(("refused at", "told by", "sound")) for outcome in seen), seen
    with capsys.disabled():
        print(f"\n  {damage}: {dict(seen)}")


@in_event_loop
async def test_a_log_without_its_index_loses_nothing(tmp_path: Path) -> None:
    count = await filled(tmp_path / "fluxserve.db")
    store = SqliteStore(tmp_path / "killed.db")  # the index was left behind with the process
    try:
        assert await store.fsck() == []
        assert len(await store.active()) == count - 2 * 20
    finally:
        await store.close()
