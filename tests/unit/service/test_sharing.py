"""Equal requests as the service answers them: what makes them equal, who draws, what polls see, what retention does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from service_house import House

from builders import DRAWN, REASON, generation, in_event_loop
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.catalogue import Finetune, Generation, InputPicture, Size
from fluxserve.catalogue.recipes import Edit
from fluxserve.errors import JsonValue, StoreUnavailable
from fluxserve.service.sharing import Sharing
from fluxserve.service.signing import Sealed
from fluxserve.settings import Settings
from fluxserve.store.base import Drawn, Kept, Offer, PageRequest, TaskRecord
from fluxserve.store.sqlite import SqliteStore
from fluxserve.tasks.task import State

FINGERPRINT = "the weights of today"
HERE = {"flux-dev": FINGERPRINT}
DRAWN_HERE = replace(DRAWN, facts={**DRAWN.facts, "fingerprint": FINGERPRINT})
DRAWN_FREELY = replace(DRAWN_HERE, facts={**DRAWN_HERE.facts, "numerics": "throughput"})
SEEDED: dict[str, JsonValue] = {"seed": 7}
OTHERS: dict[str, object] = {
    "model": "flux-pro", "prompt": "a red apple ", "size": Size(512, 256), "seed": 8, "steps": 27, "guidance": 3.6,
    "output_format": "png", "recipe": Edit(),
    "pictures": (InputPicture(name="image_prompt", size=Size(64, 64), sha256="00"),),
    "finetune": Finetune(name="ink", strength=1.0, sha256="00"), "safety_tolerance": 3,
}  # fmt: skip


def sharing(*, secret: bytes = b"pepper", budget: int = 1000) -> Sharing:
    """What a service has for its requests."""
    return Sharing(secret=secret, budget=budget)


def sealed(drawn: Drawn) -> Sealed:
    """A picture of ten bytes, as it is delivered."""
    return Sealed(picture=bytes(10), drawn=drawn)


def test_equal_requests_of_an_account_have_one_recipe_that_holds_nothing_of_them() -> None:
    recipe = sharing().recipe("alice", generation())
    assert recipe == sharing().recipe("alice", generation())
    assert recipe is not None
    assert len(recipe) == 16
    assert recipe != sharing(secret=b"another secret").recipe("alice", generation())


@pytest.mark.parametrize("name", [field.name for field in fields(Generation)])
def test_everything_that_decides_a_picture_decides_its_recipe(name: str) -> None:
    other = replace(generation(), **{name: OTHERS[name]})  # type: ignore[arg-type]
    assert sharing().recipe("alice", other) != sharing().recipe("alice", generation())


def test_no_two_accounts_have_a_recipe_in_common() -> None:
    assert sharing().recipe("alice", generation()) != sharing().recipe("bob", generation())


def test_without_a_budget_there_are_no_recipes_and_nothing_is_kept() -> None:
    off = sharing(budget=0)
    assert off.recipe("alice", generation()) is None
    assert off.kept(sealed(DRAWN_HERE)) is None


def test_a_picture_is_kept_if_it_is_known_what_drew_it() -> None:
    assert sharing().kept(sealed(DRAWN_HERE)) == Kept(fingerprint=FINGERPRINT, size=10, budget=1000)
    assert sharing().kept(sealed(DRAWN)) is None


def test_a_picture_that_could_not_be_signed_answers_nobody_else() -> None:
    assert sharing().kept(replace(sealed(DRAWN_HERE), is_repeatable=False)) is None


def test_what_files_say_of_their_origin_makes_another_recipe() -> None:
    recipes = {
        Sharing(secret=b"s", budget=1, origin=origin).recipe("alice", generation()) for origin in ("", "a ca", "no ca")
    }
    assert len(recipes) == 3


def test_a_picture_whose_pixels_depended_on_its_company_is_not_kept() -> None:
    assert sharing().kept(sealed(DRAWN_FREELY)) is None


def test_a_model_is_drawn_by_its_workers_and_without_any_by_the_last_ones() -> None:
    workers = sharing()
    assert workers.fingerprints("flux-dev") == ()
    workers.arrive("w1", {"flux-dev": "a", "flux-pro": "p"})
    workers.arrive("w2", {"flux-dev": "b"})
    workers.arrive("w3", {"flux-dev": "b"})
    assert (sorted(workers.fingerprints("flux-dev")), workers.fingerprints("flux-pro")) == (["a", "b"], ("p",))
    workers.leave("w1")
    workers.leave("w3")
    assert (workers.fingerprints("flux-dev"), workers.fingerprints("flux-pro")) == (("b",), ("p",))
    workers.leave("w2")
    workers.leave("w2")
    assert workers.fingerprints("flux-dev") == ("b",)
    workers.arrive("w2", {"flux-dev": "c"})
    workers.arrive("w2", {"flux-dev": "d"})
    assert workers.fingerprints("flux-dev") == ("d",)


async def draw(house: House, picture: bytes = b"picture", drawn: Drawn = DRAWN_HERE) -> TaskRecord:
    """The next task is drawn."""
    claim = await house.claim()
    assert await house.service.complete(claim.id, claim.fence, claim.generation, picture, drawn)
    return await written(house, claim)


async def written(house: House, task: TaskRecord) -> TaskRecord:
    """The task as it is written down."""
    (record,) = await house.store.get_many([task.id])
    assert record is not None
    return record


async def seen(house: House, *tasks: TaskRecord) -> list[tuple[State, float]]:
    """What polls show: states and progress."""
    views = [await house.service.look(task.id) for task in tasks]
    return [(view.state, view.progress) for view in views if view is not None]


def stored(house: House, task: TaskRecord) -> bytes:
    """The task's picture."""
    with house.storage.open(task.object_name or "") as picture:
        return picture.read(picture.size)


@pytest.fixture
def key(house: House) -> ApiKey:
    """A key, and a worker that draws flux-dev."""

    async def welcomed() -> ApiKey:
        await house.service.welcome("w1", HERE)
        return await house.key(grant=100_000)

    return asyncio.run(welcomed())


@in_event_loop
async def test_the_same_request_is_answered_at_once_with_the_same_picture(house: House, key: ApiKey) -> None:
    await house.submit(key, SEEDED)
    first = await draw(house, b"drawn once")

    second = await house.submit(key, SEEDED)

    assert second.id != first.id
    assert await seen(house, first, second) == [(State.READY, 0), (State.READY, 0)]
    assert stored(house, second) == b"drawn once"
    assert second.drawn == replace(DRAWN_HERE, facts={**DRAWN_HERE.facts, "cached": True})
    assert await house.service.claim("w1", ("flux-dev",), 9, {}) == []
    assert [entry.balance for entry in await house.keyring.entries()] == [100_000 - 2 * 2500]


@pytest.mark.parametrize("change", [{"seed": 8}, {"prompt": "a green apple"}, {"steps": 3}, {"output_format": "png"}])
@in_event_loop
async def test_another_request_is_drawn(house: House, key: ApiKey, change: dict[str, JsonValue]) -> None:
    await house.submit(key, SEEDED)
    await draw(house)
    assert (await house.submit(key, {**SEEDED, **change})).state is State.QUEUED


@in_event_loop
async def test_what_is_not_drawn_from_makes_no_other_request(house: House, key: ApiKey) -> None:
    await house.submit(key, SEEDED)
    await draw(house)
    assert (await house.submit(key, {**SEEDED, "user": "u1", "width": 1024})).state is State.READY


@in_event_loop
async def test_a_request_without_a_seed_is_drawn_anew_and_its_seed_finds_its_picture(house: House, key: ApiKey) -> None:
    tasks = [await house.submit(key) for _ in range(3)]
    assert [task.state for task in tasks] == [State.QUEUED] * 3
    drawn = await draw(house, b"by chance")
    again = await house.submit(key, {"seed": drawn.generation.seed})
    assert (again.state, stored(house, again)) == (State.READY, b"by chance")


@in_event_loop
async def test_pixels_that_depended_on_company_go_to_those_that_waited_for_them_and_to_none_later(
    house: House, key: ApiKey
) -> None:
    _, follower = [await house.submit(key, SEEDED) for _ in range(2)]
    await draw(house, drawn=DRAWN_FREELY)
    told = (await written(house, follower)).drawn
    assert told is not None
    assert (told.facts["numerics"], told.facts["cached"]) == ("throughput", True)
    assert (await house.submit(key, SEEDED)).state is State.QUEUED


@in_event_loop
async def test_accounts_never_share(house: House, key: ApiKey) -> None:
    await house.submit(key, SEEDED)
    stranger = await house.key()
    assert (await house.submit(stranger, SEEDED)).state is State.QUEUED
    await draw(house)
    assert [task.state for task in [await house.submit(stranger, SEEDED), await house.submit(key, SEEDED)]] == [
        State.FOLLOWING,
        State.READY,
    ]


@in_event_loop
async def test_equal_requests_follow_the_one_that_is_drawn_and_show_its_progress(house: House, key: ApiKey) -> None:
    leader, early = [await house.submit(key, SEEDED) for _ in range(2)]
    claim = await house.claim()
    house.service.advance(leader.id, 7, 28)
    late = await house.submit(key, SEEDED)
    assert await seen(house, leader, early, late) == [
        (State.RUNNING, 0.25),
        (State.FOLLOWING, 0.25),
        (State.FOLLOWING, 0.25),
    ]
    request = PageRequest(account_id=key.account_id, states=tuple(State), limit=9, before=None)
    assert [listed.progress for listed in (await house.service.list_tasks(request)).tasks] == [0.25] * 3
    assert (len(house.service.views), house.service.views.following) == (3, 2)

    assert await house.service.complete(claim.id, claim.fence, claim.generation, b"one for all", DRAWN_HERE)

    assert await seen(house, leader, early, late) == [(State.READY, 0)] * 3
    assert {stored(house, await written(house, task)) for task in (leader, early, late)} == {b"one for all"}
    assert len(house.pictures()) == 1
    assert (len(house.service.views), house.service.views.following) == (0, 0)


@pytest.mark.parametrize("cancelled", [True, False])
@in_event_loop
async def test_when_a_leader_ends_without_a_picture_the_next_one_is_drawn(
    house: House, key: ApiKey, cancelled: bool
) -> None:
    leader, first, second = [await house.submit(key, SEEDED) for _ in range(3)]
    claim = await house.claim()
    house.service.advance(leader.id, 7, 28)
    woken, told = asyncio.Event(), list[str]()
    house.service.on_cancelled.append(told.append)
    with house.service.queue_changed.watching(woken):
        if cancelled:
            await house.service.cancel(leader.id, key.account_id)
        else:
            await house.service.fail(leader.id, claim.fence, REASON)
    assert woken.is_set()
    assert told == ([leader.id] if cancelled else [])
    assert await seen(house, first, second) == [(State.QUEUED, 0), (State.FOLLOWING, 0)]

    assert (await draw(house)).id == first.id
    assert await seen(house, first, second) == [(State.READY, 0)] * 2
    assert [entry.balance for entry in await house.keyring.entries()] == [100_000 - 2 * 2500]


@in_event_loop
async def test_everybody_who_asks_while_leaders_are_cancelled_gets_a_picture_or_a_refund(
    house: House, key: ApiKey
) -> None:
    tasks = [await house.submit(key, SEEDED) for _ in range(20)]
    for task in tasks[:5]:
        claim = await house.claim()
        assert claim.id == task.id
        late, _ = await asyncio.gather(house.submit(key, SEEDED), house.service.cancel(task.id, key.account_id))
        tasks.append(late)
    await draw(house)
    assert await seen(house, *tasks) == [(State.CANCELLED, 0)] * 5 + [(State.READY, 0)] * 20


@in_event_loop
async def test_after_a_restart_nothing_is_answered_until_it_is_known_what_draws(house: House, key: ApiKey) -> None:
    await house.submit(key, SEEDED)
    drawn = await draw(house)
    await house.store.close()
    house.open()
    await house.service.start()
    waiting = [await house.submit(key, SEEDED) for _ in range(2)]
    unlike = await house.submit(key, {"seed": 8})
    assert await seen(house, *waiting) == [(State.QUEUED, 0), (State.FOLLOWING, 0)]

    await house.service.welcome("w1", HERE)

    assert await seen(house, *waiting, unlike) == [(State.READY, 0), (State.READY, 0), (State.QUEUED, 0)]
    assert (await house.submit(key, SEEDED)).object_name == drawn.object_name


class Refusing(SqliteStore):
    """A store that cannot take offers."""

    async def answer_many(self, offers: Sequence[Offer]) -> list[list[TaskRecord]]:
        """Refuse those of today's weights."""
        if any(FINGERPRINT in offer.fingerprints for offer in offers):
            raise StoreUnavailable("Another program holds the database.")
        return await super().answer_many(offers)


@in_event_loop
async def test_a_worker_that_could_not_be_welcomed_draws_nothing_yet(tmp_path: Path, settings: Settings) -> None:
    house = House(tmp_path, settings, Refusing)
    key = await house.key()
    await house.submit(key, SEEDED)
    await draw(house)
    await house.service.welcome("w1", {"flux-dev": "other weights"})
    with pytest.raises(StoreUnavailable):
        await house.service.welcome("w2", HERE)
    assert (await house.submit(key, SEEDED)).state is State.QUEUED
    await house.store.close()


@in_event_loop
async def test_other_weights_draw_anew(house: House, key: ApiKey) -> None:
    await house.submit(key, SEEDED)
    await draw(house)
    house.service.part("w1")
    assert (await house.submit(key, SEEDED)).state is State.READY
    await house.service.welcome("w1", {"flux-dev": "new weights"})
    assert (await house.submit(key, SEEDED)).state is State.QUEUED
    await house.service.welcome("w2", HERE)
    assert (await house.submit(key, SEEDED)).state is State.READY


@in_event_loop
async def test_followers_are_followers_after_a_restart(house: House, key: ApiKey) -> None:
    tasks = [await house.submit(key, SEEDED) for _ in range(3)]
    claim = await house.claim()
    await house.store.close()
    house.open()
    assert [record.id for record in await house.service.start()] == [claim.id]
    house.service.advance(claim.id, 14, 28)
    assert await seen(house, *tasks) == [(State.RUNNING, 0.5), (State.FOLLOWING, 0.5), (State.FOLLOWING, 0.5)]
    assert await house.service.complete(claim.id, claim.fence, claim.generation, b"picture", DRAWN_HERE)
    assert await seen(house, *tasks) == [(State.READY, 0)] * 3


@in_event_loop
async def test_each_answered_task_keeps_the_picture_for_its_own_time(house: House, key: ApiKey) -> None:
    await house.submit(key, SEEDED)
    first = await draw(house)
    house.time += house.settings.picture_retention - 10
    second = await house.submit(key, SEEDED)
    house.time += 11
    await house.sweeper.sweep()
    assert (await written(house, first)).object_name is None
    assert stored(house, await written(house, second)) == b"picture"
    assert (await house.submit(key, SEEDED)).state is State.READY

    house.time += house.settings.picture_retention + 1
    await house.sweeper.sweep()

    assert house.pictures() == []
    assert await house.store.cached_objects() == []
    assert (await house.submit(key, SEEDED)).state is State.QUEUED


@in_event_loop
async def test_a_picture_that_is_gone_at_the_start_answers_nobody(house: House, key: ApiKey) -> None:
    await house.submit(key, SEEDED)
    lost = await draw(house)
    await house.submit(key, {"seed": 8})
    await draw(house)
    await house.store.close()
    (house.folder / "pictures" / (lost.object_name or "")).unlink()

    house.open()
    await house.service.start()
    await house.service.welcome("w1", HERE)

    assert (await house.submit(key, SEEDED)).state is State.QUEUED
    assert (await house.submit(key, {"seed": 8})).state is State.READY


@in_event_loop
async def test_without_a_budget_every_request_is_drawn(tmp_path: Path) -> None:
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, result_cache=0))
    await house.service.welcome("w1", HERE)
    key = await house.key()
    tasks = [await house.submit(key, SEEDED) for _ in range(2)]
    assert [task.state for task in tasks] == [State.QUEUED] * 2
    await draw(house)
    assert (await house.submit(key, SEEDED)).state is State.QUEUED
    assert await house.store.cached_objects() == []
    await house.store.close()


@in_event_loop
async def test_what_followed_before_the_cache_was_turned_off_still_gets_its_picture(
    tmp_path: Path, house: House, key: ApiKey
) -> None:
    tasks = [await house.submit(key, SEEDED) for _ in range(2)]
    house.settings = Settings(data_dir=tmp_path, min_free_disk=0, result_cache=0)
    house.begin_anew()
    await house.service.start()
    await draw(house)
    assert await seen(house, *tasks) == [(State.READY, 0)] * 2
    assert await house.store.cached_objects() == []
