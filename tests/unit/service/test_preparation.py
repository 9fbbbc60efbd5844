"""Preparing by itself: what a restart takes up again, what is waited for, and what is left of a task that ended."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from service_house import House

from builders import DRAWN, in_event_loop
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.delivery.decoders import Decoders
from fluxserve.delivery.decoding import Decoded
from fluxserve.delivery.fetching import LOST, Fetched
from fluxserve.errors import DecodersBusy, StoreUnavailable
from fluxserve.service.preparation import GIVEN_WAY_S, Preparer
from fluxserve.settings import Settings
from fluxserve.store.base import TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.store.submissions import Preparation, Prepared
from fluxserve.tasks.task import State
from sample_pictures import PNG, file_of, picture

FILE = base64.b64decode(PNG)
URL = "https://example.com/a.png"
GREAT = file_of(picture(300, 300, colour="green"))
PATIENCE_S = 60.0


class Web:
    """What is behind each URL: a file, or a status without one; whatever is held back never comes."""

    def __init__(self, **files: bytes | int) -> None:
        self.files = {f"https://example.com/{name}.png": file for name, file in files.items()}
        self.asked: list[str] = []
        self.held_back = asyncio.Event()
        self.problem: str | None = None

    async def fetch(self, url: str) -> Fetched:
        self.asked.append(url)
        if self.problem is not None:
            return Fetched(status=None, problem=self.problem)
        if url not in self.files:
            self.held_back.set()
            await asyncio.Event().wait()
        found = self.files[url]
        return Fetched(status=found) if isinstance(found, int) else Fetched(status=200, body=found)


@asynccontextmanager
async def at_work(house: House) -> AsyncIterator[ApiKey]:
    """A key to ask with; at the end no decoder is left."""
    try:
        yield await house.key(grant=100_000)
    finally:
        await house.decoders.close()


def files(house: House) -> list[str]:
    """Every input picture on the disk."""
    return sorted(house.input_storage.names_older_than(float("inf")))


async def ask(house: House, key: ApiKey, urls: Mapping[str, str] | None = None, model: str = "flux-dev") -> TaskRecord:
    """A task whose picture is to be fetched."""
    return await house.submit(key, model=model, urls=urls or {"image_prompt": URL})


async def work(preparer: Preparer) -> None:
    """Prepare until there is nothing to do."""
    preparer.begin()
    while await preparer.settled(PATIENCE_S):
        preparer.begin()


async def state_of(house: House, task: TaskRecord) -> State:
    (record,) = await house.store.get_many([task.id])
    assert record is not None
    return record.state


@in_event_loop
async def test_a_task_is_drawn_with_the_seed_that_was_chosen_at_first(house: House) -> None:
    async with at_work(house) as key:
        task = await ask(house, key)
        assert task.state is State.PREPARING
        await work(house.preparer(Web(a=FILE).fetch))
        claim = await house.claim()
        assert (claim.id, claim.generation.seed) == (task.id, task.generation.seed)
        assert list(await house.service.read_inputs(claim)) == ["image_prompt"]
        assert await house.service.complete(task.id, claim.fence, task.generation, b"picture", DRAWN)
        assert files(house) == []


@in_event_loop
async def test_a_server_that_died_in_the_middle_begins_anew(house: House) -> None:
    async with at_work(house) as key:
        urls = {"input_image": URL, "input_image_2": "https://example.com/b.png"}
        task = await ask(house, key, urls, "flux-2-pro")
        web = Web(a=FILE)
        dying = house.preparer(web.fetch)
        running = asyncio.create_task(dying.run())
        await asyncio.wait_for(web.held_back.wait(), PATIENCE_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(files(house)) == 1
        house.begin_anew()
        await house.service.start()
        await work(house.preparer(Web(a=FILE, b=GREAT).fetch))
        assert await state_of(house, task) is State.QUEUED
        assert len(await house.store.inputs()) == 2
        house.time += 10_000_000_000
        await house.sweeper.sweep()
        assert files(house) == sorted(kept.object_name for kept in await house.store.inputs())


@in_event_loop
async def test_a_server_that_stops_leaves_what_its_courier_lost_to_the_next(house: House) -> None:
    async with at_work(house) as key:
        task = await ask(house, key)
        web = Web()
        stopping = house.preparer(web.fetch)
        stopping.begin()
        stopping.drain()
        web.problem = LOST
        assert await stopping.settled(PATIENCE_S)
        await work(stopping)
        assert await state_of(house, task) is State.PREPARING
        assert len(web.asked) == 1


@in_event_loop
async def test_what_was_fetched_before_a_pause_stays_however_long_it_takes_and_goes_with_a_cancelled_task(
    house: House,
) -> None:
    async with at_work(house) as key:
        urls = {"input_image": URL, "input_image_2": "https://example.com/b.png"}
        task = await ask(house, key, urls, "flux-2-pro")
        web = Web(a=FILE)
        preparer = house.preparer(web.fetch)
        preparer.begin()
        await asyncio.wait_for(web.held_back.wait(), PATIENCE_S)
        house.time += 10_000_000_000
        await house.sweeper.sweep()
        assert len(files(house)) == 1
        await house.service.cancel(task.id, task.account_id)
        await work(preparer)
        assert files(house) == []
        assert (await house.store.keys())[0].balance == 100_000


@in_event_loop
async def test_a_cancelled_task_that_was_put_off_leaves_nothing(house: House) -> None:
    async with at_work(house) as key:
        urls = {"input_image": URL, "input_image_2": "https://example.com/b.png"}
        task = await ask(house, key, urls, "flux-2-pro")
        preparer = house.preparer(Web(a=FILE, b=503).fetch)
        await work(preparer)
        assert house.service.preparing.next_at() == house.time + 1.0
        assert len(files(house)) == 1
        await house.service.cancel(task.id, task.account_id)
        await work(preparer)
        assert files(house) == []
        assert len(house.service.preparing) == 0


@in_event_loop
async def test_what_is_there_is_not_fetched_again_after_a_pause(house: House) -> None:
    async with at_work(house) as key:
        urls = {"input_image": URL, "input_image_2": "https://example.com/b.png"}
        task = await ask(house, key, urls, "flux-2-pro")
        web = Web(a=FILE, b=503)
        preparer = house.preparer(web.fetch)
        await work(preparer)
        web.files[urls["input_image_2"]] = GREAT
        house.time += 1.0
        await work(preparer)
        assert await state_of(house, task) is State.QUEUED
        assert web.asked == [URL, urls["input_image_2"], urls["input_image_2"]]


async def until(house: House, happens: Callable[[], bool]) -> None:
    """Read on and on until something happens."""
    async with asyncio.timeout(PATIENCE_S):
        while not happens():
            await house.store.inputs()


@in_event_loop
async def test_tasks_wait_for_room_for_their_pictures(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    (kept,) = await sizes_of_kept(tmp_path_factory.mktemp("before"))
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, input_budget=kept))
    async with at_work(house) as key:
        first = await ask(house, key)
        preparer = house.preparer(Web(a=FILE).fetch)
        await work(preparer)
        second = await ask(house, key)
        preparer.begin()
        await until(house, lambda: "A preparation waits" in caplog.text)
        assert await state_of(house, second) is State.PREPARING
        await house.service.cancel(first.id, first.account_id)
        await work(preparer)
        house.time += GIVEN_WAY_S  # it may have looked too often by then
        await work(preparer)
        assert await state_of(house, second) is State.QUEUED
        assert len(files(house)) == 1
    await house.store.close()


@in_event_loop
async def test_a_task_that_has_some_of_its_pictures_gives_way_where_there_is_no_room_for_the_rest(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (kept,) = await sizes_of_kept(tmp_path_factory.mktemp("before"))
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, input_budget=2 * kept))
    async with at_work(house) as key:
        preparer = house.preparer(Web(a=FILE, b=FILE).fetch)
        blocker = await ask(house, key)
        await work(preparer)
        urls = {"input_image": URL, "input_image_2": "https://example.com/b.png"}
        task = await ask(house, key, urls, "flux-2-pro")
        await work(preparer)
        assert await state_of(house, task) is State.PREPARING
        assert len(files(house)) == 1
        await house.service.cancel(blocker.id, blocker.account_id)
        house.time += house.service.preparing.next_at() - house.time
        await work(preparer)
        assert await state_of(house, task) is State.QUEUED
        assert len(files(house)) == 2
        too_large = await ask(house, key, {**urls, "input_image_3": URL}, "flux-2-pro")
        await house.service.cancel(task.id, task.account_id)
        await work(preparer)
        assert await state_of(house, too_large) is State.ERROR
        assert files(house) == []
    await house.store.close()


@in_event_loop
async def test_a_picture_that_there_could_never_be_room_for_ends_its_task(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (kept,) = await sizes_of_kept(tmp_path_factory.mktemp("before"))
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, input_budget=kept - 1))
    async with at_work(house) as key:
        task = await ask(house, key)
        await work(house.preparer(Web(a=FILE).fetch))
        assert await state_of(house, task) is State.ERROR
    await house.store.close()


async def sizes_of_kept(folder: Path) -> list[int]:
    """What the picture takes as it is kept."""
    house = House(folder, Settings(data_dir=folder, min_free_disk=0))
    async with at_work(house) as key:
        await ask(house, key)
        await work(house.preparer(Web(a=FILE).fetch))
        sizes = [kept.size for kept in await house.store.inputs()]
    await house.store.close()
    return sizes


class Faulty(SqliteStore):
    """Fails to prepare, or to read what is prepared, so often."""

    failures = 2

    async def prepare_many(self, prepared: list[Prepared]) -> list[TaskRecord | None]:  # type: ignore[override]
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("Not now.")
        return await super().prepare_many(prepared)

    async def preparations(self, task_ids: list[str]) -> list[Preparation | None]:  # type: ignore[override]
        if self.failures > 1:
            self.failures -= 1
            raise StoreUnavailable("Not now.")
        return await super().preparations(task_ids)


@in_event_loop
async def test_a_database_in_trouble_is_waited_for(tmp_path: Path, settings: Settings) -> None:
    house = House(tmp_path, settings, open_store=Faulty)
    async with at_work(house) as key:
        task = await ask(house, key)
        web = Web(a=FILE)
        await work(house.preparer(web.fetch))
        assert await state_of(house, task) is State.QUEUED
        assert len(web.asked) == 1
    await house.store.close()


class Busy(Decoders):
    """Has no time, so often."""

    left = 3

    async def decode(
        self, content: str | bytes, *, max_area: int | None, with_mask: bool, measures: bool = False
    ) -> Decoded:
        if self.left:
            self.left -= 1
            raise DecodersBusy("Not now.")
        return await super().decode(content, max_area=max_area, with_mask=with_mask, measures=measures)


@pytest.mark.parametrize(("busy", "state"), [(3, State.QUEUED), (10**6, State.ERROR)])
@in_event_loop
async def test_decoders_are_waited_for_unless_they_never_have_time(house: House, busy: int, state: State) -> None:
    house.decoders = Busy()
    house.decoders.left = busy
    house.begin_anew()
    async with at_work(house) as key:
        task = await ask(house, key)
        web = Web(a=FILE)
        await work(house.preparer(web.fetch))
        assert await state_of(house, task) is state
        assert len(web.asked) == 1


@in_event_loop
async def test_a_defect_ends_a_task_and_no_other(house: House) -> None:
    async def fetch(url: str) -> Fetched:
        raise ZeroDivisionError

    async with at_work(house) as key:
        task = await ask(house, key)
        await work(house.preparer(fetch))
        (record,) = await house.store.get_many([task.id])
        assert record is not None
        assert record.reason is not None
        assert (record.state, record.reason.code) == (State.ERROR, "PictureNotFetched")
        assert (await house.store.keys())[0].balance == 100_000
        other = await ask(house, key)
        await work(house.preparer(Web(a=FILE).fetch))
        assert await state_of(house, other) is State.QUEUED


@in_event_loop
async def test_at_most_eight_are_fetched_at_once_and_half_of_them_for_one_account(house: House) -> None:
    async with at_work(house) as key:
        other = await house.key()
        for _ in range(6):
            await ask(house, key)
            await ask(house, other)
        await ask(house, await house.key())
        web = Web()
        running = asyncio.create_task(house.preparer(web.fetch).run())
        await until(house, lambda: len(web.asked) == 8)
        assert house.service.preparing.take(house.time) is None
        assert len(house.service.preparing) == 13
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
