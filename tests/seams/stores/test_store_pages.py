"""An account's list of its own tasks: newest first, every task once, however they change meanwhile."""

from __future__ import annotations

from builders import cancellation, claimed, completion, failure, in_event_loop, new_key, submitted
from fluxserve.store.base import KeyEntry, PageRequest, Store
from fluxserve.tasks.task import State

EVERY_STATE = tuple(State)


async def ids_in_pages(
    store: Store, entry: KeyEntry, limit: int, states: tuple[State, ...] = EVERY_STATE
) -> list[list[str]]:
    """The ids of every page, until the last."""
    pages, before = [], None
    while True:
        request = PageRequest(account_id=entry.key.account_id, states=states, limit=limit, before=before)
        page = await store.page(request)
        pages.append([record.id for record in page.records])
        before = page.end
        if before is None:
            return pages


@in_event_loop
async def test_tasks_come_newest_first_in_pages_that_end(store: Store) -> None:
    entry = await store.create_key(new_key())
    newest_first = [task.id for task in reversed(await submitted(store, entry, count=7))]
    assert await ids_in_pages(store, entry, 3) == [newest_first[:3], newest_first[3:6], newest_first[6:]]
    assert await ids_in_pages(store, entry, 7) == [newest_first]
    assert await ids_in_pages(store, entry, 200) == [newest_first]


@in_event_loop
async def test_an_account_without_tasks_has_one_empty_page(store: Store) -> None:
    entry = await store.create_key(new_key())
    await submitted(store, await store.create_key(new_key(account="bob")), count=3)
    assert await ids_in_pages(store, entry, 10) == [[]]
    assert await ids_in_pages(store, entry, 10, ()) == [[]]


@in_event_loop
async def test_an_account_sees_the_tasks_of_all_its_keys_and_of_no_other(store: Store) -> None:
    alice, also_alice, bob = [await store.create_key(new_key(account=name)) for name in ("alice", "alice", "bob")]
    of_all = [(entry, (await submitted(store, entry))[0].id) for entry in (alice, bob, also_alice, bob, alice)]
    of_bob = [id_ for entry, id_ in reversed(of_all) if entry is bob]
    of_alice = [id_ for entry, id_ in reversed(of_all) if entry is not bob]
    assert (
        await ids_in_pages(store, alice, 2) == await ids_in_pages(store, also_alice, 2) == [of_alice[:2], of_alice[2:]]
    )
    assert await ids_in_pages(store, bob, 2) == [of_bob]


@in_event_loop
async def test_a_page_holds_the_tasks_of_its_states_as_they_are(store: Store) -> None:
    entry = await store.create_key(new_key())
    tasks = await submitted(store, entry, count=6)
    ready, failed, running, _ = await claimed(store, limit=4)
    await store.complete_many([completion(ready)])
    await store.fail_many([failure(failed)])
    (cancelled,) = await store.cancel_many([cancellation(tasks[5])])
    account = entry.key.account_id

    async def of(*states: State) -> tuple[str, ...]:
        page = await store.page(PageRequest(account_id=account, states=states, limit=10))
        assert await store.get_many([record.id for record in page.records]) == list(page.records)
        return tuple(record.id for record in page.records)

    assert cancelled is not None
    assert await of(State.READY) == (ready.id,)
    assert await of(State.ERROR, State.CANCELLED) == (cancelled.id, failed.id)
    assert await of(State.QUEUED, State.RUNNING) == (tasks[4].id, tasks[3].id, running.id)
    assert await of(State.CONTENT_MODERATED) == ()


@in_event_loop
async def test_tasks_that_come_and_change_between_two_pages_are_neither_repeated_nor_left_out(store: Store) -> None:
    entry = await store.create_key(new_key())
    tasks = await submitted(store, entry, count=6)
    request = PageRequest(account_id=entry.key.account_id, states=EVERY_STATE, limit=3)
    first = await store.page(request)
    await submitted(store, entry, count=2)
    for record in await claimed(store, limit=6):
        await store.complete_many([completion(record)])

    second = await store.page(PageRequest(account_id=request.account_id, states=EVERY_STATE, limit=3, before=first.end))

    seen = [record.id for record in (*first.records, *second.records)]
    assert seen == [task.id for task in reversed(tasks)]
    assert second.end is None


@in_event_loop
async def test_a_page_goes_on_after_the_task_where_it_ended_was_deleted(store: Store) -> None:
    entry = await store.create_key(new_key())
    tasks = await submitted(store, entry, count=5)
    request = PageRequest(account_id=entry.key.account_id, states=EVERY_STATE, limit=2)
    first = await store.page(request)
    await store.cancel_many([cancellation(tasks[3])])
    assert await store.delete_old(float("inf"), 10) == 1
    rest = await store.page(PageRequest(account_id=request.account_id, states=EVERY_STATE, limit=9, before=first.end))
    assert [record.id for record in rest.records] == [task.id for task in reversed(tasks[:3])]
