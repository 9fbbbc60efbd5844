"""The verbs: what each changes, what polls then see, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from service_house import House

from builders import DRAWN, EVERY_MODEL, NOW, REASON, in_event_loop
from fluxserve.errors import (
    DiskFull,
    IdempotencyConflict,
    InsufficientCredits,
    QueueFull,
    ShuttingDown,
    StoreUnavailable,
    TooManyActiveTasks,
    TooManyRequests,
)
from fluxserve.service.disk import DISK_CHECK_S, DiskGate
from fluxserve.service.service import QUARANTINED, Lost
from fluxserve.service.views import View
from fluxserve.settings import Settings
from fluxserve.store.base import Completion, TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.tasks.task import MAX_ATTEMPTS, State


async def seen(house: House, task: TaskRecord) -> tuple[State, float]:
    """What a poll shows: state and progress."""
    view = await house.service.look(task.id)
    assert view is not None
    return view.state, view.progress


@in_event_loop
async def test_polls_see_a_task_on_its_whole_way(house: House) -> None:
    task = await house.submit(await house.key(), {"output_format": "png"})
    assert await seen(house, task) == (State.QUEUED, 0)

    claim = await house.claim()
    assert await seen(house, task) == (State.RUNNING, 0)
    house.service.advance(task.id, 7, 28)
    assert await seen(house, task) == (State.RUNNING, 0.25)

    assert await house.service.complete(task.id, claim.fence, task.generation, b"picture", DRAWN)
    view = await house.service.look(task.id)
    assert view is not None
    assert view.state is State.READY
    assert view.record is not None
    assert view.record.drawn == DRAWN
    with house.storage.open(view.record.object_name or "") as picture:
        assert picture.read(picture.size) == b"picture"
    assert (view.record.object_name or "").endswith(".png")


@in_event_loop
async def test_a_task_that_lost_its_worker_is_shown_as_waiting_again(house: House) -> None:
    task = await house.submit(await house.key())
    claim = await house.claim()
    house.service.advance(task.id, 7, 28)
    await house.service.release([Lost(task_id=task.id, fence=claim.fence, step=7, suspected=True)])
    assert await seen(house, task) == (State.QUEUED, 0)
    house.service.advance(task.id, 8, 28)  # comes too late
    assert await seen(house, task) == (State.QUEUED, 0)


@in_event_loop
async def test_a_task_that_spoils_every_attempt_is_quarantined_with_its_equals_and_refunded(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    key = await house.key(grant=10_000)
    task, equal = [await house.submit(key, {"seed": 7}) for _ in range(2)]
    for _ in range(MAX_ATTEMPTS):
        claim = await house.claim()
        await house.service.release([Lost(task_id=task.id, fence=claim.fence, suspected=True)])
    for ended in (task, equal):
        view = await house.service.look(ended.id)
        assert view is not None
        assert view.record is not None
        assert (view.state, view.record.reason) == (State.ERROR, QUARANTINED)
    assert [entry.balance for entry in await house.keyring.entries()] == [10_000]
    assert [record.count for record in caplog.records if "quarantined" in record.message] == [2]  # type: ignore[attr-defined]
    assert len(house.service.views) == 0


@in_event_loop
async def test_a_picture_that_comes_too_late_is_not_kept(house: House) -> None:
    task = await house.submit(await house.key())
    lost = await house.claim("w1")
    await house.service.release([Lost(task_id=task.id, fence=lost.fence)])
    current = await house.claim("w2")

    assert not await house.service.complete(task.id, lost.fence, task.generation, b"late", DRAWN)
    assert not await house.service.fail(task.id, lost.fence, REASON)

    assert house.pictures() == []
    assert await seen(house, task) == (State.RUNNING, 0)
    assert await house.service.complete(task.id, current.fence, task.generation, b"right", DRAWN)
    assert len(house.pictures()) == 1


class Busy(SqliteStore):
    """A store that cannot take the first outcomes; it remembers what lay in the folder of pictures each time."""

    refusals = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.pictures = path.parent / "pictures"
        self.seen: list[list[bytes]] = []

    async def complete_many(self, completions: Sequence[Completion]) -> list[TaskRecord | None]:
        """Refuse, or write down."""
        self.seen.append([(self.pictures / done.object_name).read_bytes() for done in completions])
        if len(self.seen) <= self.refusals:
            raise StoreUnavailable("Another program holds the database.")
        return await super().complete_many(completions)


@in_event_loop
async def test_a_picture_is_safe_before_its_task_is_ready(tmp_path: Path, settings: Settings) -> None:
    house = House(tmp_path, settings, Busy)
    await house.ready(await house.key())
    assert isinstance(house.store, Busy)
    assert house.store.seen == [[b"picture"]]
    await house.store.close()


@in_event_loop
async def test_an_outcome_that_is_written_down_late_leaves_one_copy_of_its_picture(
    tmp_path: Path, settings: Settings
) -> None:
    house = House(tmp_path, settings, Busy)
    assert isinstance(house.store, Busy)
    house.store.refusals = 3
    task = await house.submit(await house.key())
    claim = await house.claim()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await house.service.complete(task.id, claim.fence, task.generation, b"picture", DRAWN)
        assert house.pictures() == []
    assert await house.service.complete(task.id, claim.fence, task.generation, b"picture", DRAWN)
    (record,) = await house.store.get_many([task.id])
    assert record is not None
    assert house.pictures() == [record.object_name]
    await house.store.close()


@in_event_loop
async def test_a_failed_task_tells_why_and_gives_its_credits_back(house: House) -> None:
    task = await house.submit(await house.key(grant=2500))
    claim = await house.claim()
    assert await house.service.fail(task.id, claim.fence, REASON)
    view = await house.service.look(task.id)
    assert view is not None
    assert view.record is not None
    assert view.record.reason == REASON
    assert [entry.balance for entry in await house.keyring.entries()] == [2500]


@in_event_loop
async def test_an_idempotency_key_answers_the_first_task_and_a_change_is_refused(house: House) -> None:
    key = await house.key()
    first = await house.submit(key, idempotency_key="k")
    assert (await house.submit(key, idempotency_key="k")).id == first.id
    assert (await house.submit(key, idempotency_key="k")).generation.seed == first.generation.seed
    with pytest.raises(IdempotencyConflict):
        await house.submit(key, {"seed": 2}, idempotency_key="k")
    assert len(house.service.views) == 1


@in_event_loop
async def test_what_an_account_cannot_pay_is_refused(house: House) -> None:
    key = await house.key(grant=2499)
    with pytest.raises(InsufficientCredits):
        await house.submit(key)
    await house.submit(key, model="flux-schnell")


@in_event_loop
async def test_a_key_has_as_many_unfinished_tasks_as_it_may(house: House) -> None:
    key = await house.key(max_active=1)
    task = await house.submit(key)
    with pytest.raises(TooManyActiveTasks, match="1 unfinished"):
        await house.submit(key)
    claim = await house.claim()
    await house.service.fail(task.id, claim.fence, REASON)
    await house.submit(key)


@in_event_loop
async def test_a_key_submits_as_fast_as_it_may_and_is_told_when_to_come_again(house: House) -> None:
    key = await house.key(rate_per_minute=2)
    await house.submit(key)
    await house.submit(key)
    with pytest.raises(TooManyRequests) as caught:
        await house.submit(key)
    assert caught.value.retry_after_s == pytest.approx(30)
    house.time += 30
    await house.submit(key)
    await house.submit(await house.key())  # others are not held up


@in_event_loop
async def test_a_server_that_stops_takes_and_gives_no_tasks_but_finishes_what_runs(house: House) -> None:
    key = await house.key()
    await house.submit(key)
    claim = await house.claim()
    await house.submit(key)
    house.service.stop_accepting()
    with pytest.raises(ShuttingDown):
        await house.submit(key)
    assert await house.service.claim("w1", EVERY_MODEL, 1, {}) == []
    assert await house.service.complete(claim.id, claim.fence, claim.generation, b"picture", DRAWN)


@in_event_loop
async def test_a_full_queue_takes_no_more_until_one_has_ended(tmp_path: Path) -> None:
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, max_queue=2))
    key = await house.key()
    await house.submit(key)
    await house.submit(key)
    with pytest.raises(QueueFull):
        await house.submit(key)
    claim = await house.claim()
    await house.service.fail(claim.id, claim.fence, REASON)
    await house.submit(key)
    await house.store.close()


@in_event_loop
async def test_a_disk_without_room_takes_and_gives_no_tasks(tmp_path: Path) -> None:
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=2**62))
    key = await house.key()
    with pytest.raises(DiskFull):
        await house.submit(key)
    assert await house.service.claim("w1", EVERY_MODEL, 1, {}) == []
    await house.store.close()


@in_event_loop
async def test_a_data_folder_out_of_reach_takes_and_gives_no_tasks_until_it_is_back(tmp_path: Path) -> None:
    folder, away = tmp_path / "data", tmp_path / "away"
    folder.mkdir()
    house = House(tmp_path, Settings(data_dir=folder, min_free_disk=0))
    key = await house.key()
    await house.submit(key)
    folder.rename(away)
    house.time += DISK_CHECK_S
    with pytest.raises(DiskFull):
        await house.submit(key)
    assert await house.service.claim("w1", EVERY_MODEL, 1, {}) == []
    away.rename(folder)
    house.time += DISK_CHECK_S
    await house.submit(key)
    assert len(await house.service.claim("w1", EVERY_MODEL, 2, {})) == 2
    await house.store.close()


def test_the_disk_is_looked_at_once_a_second_and_after_the_clock_went_back(tmp_path: Path) -> None:
    moments = iter([NOW, NOW + 0.5, NOW + 1.5, NOW + 2, NOW])
    gate = DiskGate(tmp_path / "folder", 1, lambda: next(moments))
    (tmp_path / "folder").mkdir()
    assert not gate.is_low
    (tmp_path / "folder").rmdir()
    assert not gate.is_low  # not looked at: the folder is gone
    assert gate.is_low
    (tmp_path / "folder").mkdir()
    assert gate.is_low  # not looked at: it is back
    assert not gate.is_low


@in_event_loop
async def test_after_a_restart_polls_see_every_unfinished_task_and_the_running_ones_are_named(house: House) -> None:
    key = await house.key()
    first, second = await house.submit(key), await house.submit(key)
    claim = await house.claim()

    house.begin_anew()
    running = await house.service.start()

    assert [record.id for record in running] == [claim.id] == [first.id]
    assert await seen(house, second) == (State.QUEUED, 0)
    assert len(house.service.views) == 2


@in_event_loop
async def test_a_returning_worker_keeps_only_the_claims_that_still_hold(house: House) -> None:
    key = await house.key()
    for _ in range(3):
        await house.submit(key)
    kept, lost, others = await house.claim("w1"), await house.claim("w1"), await house.claim("w2")
    await house.service.release([Lost(task_id=lost.id, fence=lost.fence)])
    await house.claim("w1")

    claims = [(task.id, task.fence) for task in (kept, lost, others)]
    held = await house.service.held("w1", [*claims, ("unknown", 1)])

    assert held == [kept]


@in_event_loop
async def test_a_worker_that_lives_keeps_its_lease(house: House) -> None:
    await house.submit(await house.key())
    claim = await house.claim()
    house.time += house.settings.lease - 1
    await house.service.extend("w1")
    house.time += house.settings.lease - 1
    assert await house.service.lapsed() == []
    house.time += 2
    assert await house.service.lapsed() == [claim]


@in_event_loop
async def test_workers_are_woken_by_new_and_by_returned_tasks(house: House) -> None:
    woken = asyncio.Event()
    with house.service.queue_changed.watching(woken):
        task = await house.submit(await house.key())
        assert woken.is_set()
        woken.clear()
        claim = await house.claim()
        assert not woken.is_set()
        await house.service.release([Lost(task_id=task.id, fence=claim.fence)])
        assert woken.is_set()
        woken.clear()
    await house.submit(await house.key())
    assert not woken.is_set()


@in_event_loop
async def test_a_task_that_nobody_knows_is_none(house: House) -> None:
    assert await house.service.look("unknown") is None


class SlowReads(SqliteStore):
    """A store whose readers get what was true a while ago."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.read, self.go_on = asyncio.Event(), asyncio.Event()

    async def get_many(self, ids: Sequence[str]) -> list[TaskRecord | None]:
        """Read at once, answer when told."""
        records = await super().get_many(ids)
        self.read.set()
        await self.go_on.wait()
        return records


@in_event_loop
async def test_a_poll_that_read_before_a_task_ended_does_not_bring_it_back_to_life(
    tmp_path: Path, settings: Settings
) -> None:
    house = House(tmp_path, settings, SlowReads)
    task = await house.submit(await house.key())
    house.begin_anew()  # the task is not in the memory
    poll = asyncio.create_task(house.service.look(task.id))
    assert isinstance(house.store, SlowReads)
    await house.store.read.wait()
    claim = await house.claim()
    await house.service.complete(task.id, claim.fence, task.generation, b"picture", DRAWN)
    house.store.go_on.set()
    await poll
    assert await seen(house, task) == (State.READY, 0)
    await house.store.close()


@in_event_loop
async def test_a_cancelled_task_is_told_of_once_and_has_its_credits_back(house: House) -> None:
    key = await house.key(grant=10_000)
    task = await house.submit(key)
    told: list[str] = []
    house.service.on_cancelled.append(told.append)
    await house.claim()
    house.service.advance(task.id, 3, 28)
    for _ in range(3):
        view = await house.service.cancel(task.id, key.account_id)
        assert view is not None
        assert (view.state, view.progress) == (State.CANCELLED, 0)
    assert told == [task.id]
    assert len(house.service.views) == 0
    assert [entry.balance for entry in await house.keyring.entries()] == [10_000]


@in_event_loop
async def test_a_task_is_not_cancelled_for_another_account(house: House) -> None:
    task = await house.submit(await house.key())
    other = await house.key()
    assert await house.service.cancel(task.id, other.account_id) is None
    assert await house.service.cancel("unknown", other.account_id) is None
    assert await seen(house, task) == (State.QUEUED, 0)


@in_event_loop
async def test_of_a_cancellation_and_a_picture_that_meet_one_wins_and_polls_see_which(house: House) -> None:
    key = await house.key(grant=1_000_000)
    for cancel_first in (True, False) * 10:
        task = await house.submit(key)
        claim = await house.claim()
        picture = house.service.complete(claim.id, claim.fence, claim.generation, b"picture", DRAWN)
        cancel = house.service.cancel(task.id, key.account_id)
        ends = await asyncio.gather(*((cancel, picture) if cancel_first else (picture, cancel)))
        accepted, view = ends[::-1] if cancel_first else ends
        assert isinstance(view, View)
        assert view.state is (State.READY if accepted else State.CANCELLED)
        assert await seen(house, task) == (view.state, 0)
        (record,) = await house.store.get_many([task.id])
        assert record is not None
        assert record.state is view.state
    kept = await house.store.known_objects(house.pictures())
    assert sorted(kept) == house.pictures()
    assert await house.store.fsck() == []


@in_event_loop
async def test_after_a_restart_a_cancelled_task_is_still_cancelled_and_its_worker_keeps_it_not(house: House) -> None:
    key = await house.key()
    task = await house.submit(key)
    claim = await house.claim("w1")
    await house.service.cancel(task.id, key.account_id)
    await house.store.close()

    house.open()

    assert await house.service.start() == []
    assert await house.service.held("w1", [(claim.id, claim.fence)]) == []
    assert not await house.service.complete(claim.id, claim.fence, claim.generation, b"picture", DRAWN)
    assert house.pictures() == []
    assert await seen(house, task) == (State.CANCELLED, 0)


@in_event_loop
async def test_a_worker_that_returns_while_its_task_is_cancelled_keeps_it_not(
    tmp_path: Path, settings: Settings
) -> None:
    house = House(tmp_path, settings, SlowReads)
    key = await house.key()
    task = await house.submit(key)
    claim = await house.claim("w1")
    returning = asyncio.create_task(house.service.held("w1", [(claim.id, claim.fence)]))
    assert isinstance(house.store, SlowReads)
    await house.store.read.wait()
    await house.service.cancel(task.id, key.account_id)
    house.store.go_on.set()
    assert await returning == []
    await house.store.close()


@in_event_loop
async def test_a_cancelled_task_gives_back_what_was_not_drawn_of_it_and_others_move_up_at_once(house: House) -> None:
    key = await house.key()
    first, second = await house.submit(key), await house.submit(key)
    assert (await house.claim()).id == first.id
    house.service.forecast.take_up(first.id)
    house.service.advance(first.id, 13, 28)  # the step after that is being made
    await house.service.cancel(first.id, key.account_id)
    head = house.service.forecast.head(EVERY_MODEL)
    assert head is not None
    assert head.turn == pytest.approx(second.turn - first.work / 2)
    await house.service.cancel(second.id, key.account_id)
    assert (await house.submit(key)).turn == pytest.approx(1.5 * first.work)


@in_event_loop
async def test_a_failed_task_gives_back_what_was_not_drawn_of_it(house: House) -> None:
    key = await house.key()
    first = await house.submit(key)
    task = await house.claim()
    house.service.advance(task.id, 6, 28)
    assert await house.service.fail(task.id, task.fence, REASON)
    assert (await house.submit(key)).turn == pytest.approx(1.25 * first.work)
