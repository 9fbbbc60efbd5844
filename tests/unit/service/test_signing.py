"""Signing and the end of a task: what is signed is stored and kept, and what cannot be signed loses no task."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from service_house import House

from builders import DRAWN, in_event_loop
from fluxserve.delivery import provenance
from fluxserve.delivery.authority import Authority
from fluxserve.delivery.provenance import Signer
from fluxserve.errors import StoreUnavailable
from fluxserve.service.signing import UNSIGNED, Signing
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State
from sample_pictures import file_of, picture

DRAWN_HERE = replace(DRAWN, facts={"fingerprint": "f1"})
FILE = file_of(picture(), "JPEG")
SEEDED = {"seed": 7}


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(Authority(tmp_path / "c2pa").credential, time.time)


async def finished(house: House, file: bytes) -> TaskRecord:
    """A task whose drawing was handed in as this file."""
    await house.service.welcome("w1", {"flux-dev": "f1"})
    key = await house.key(grant=100_000)
    task = await house.submit(key, SEEDED)
    claim = await house.claim()
    assert await house.service.complete(task.id, claim.fence, task.generation, file, DRAWN_HERE)
    (record,) = await house.store.get_many([task.id])
    assert record is not None
    return record


def stored(house: House, record: TaskRecord) -> bytes:
    with house.storage.open(record.object_name or "") as found:
        return found.read(found.size)


@in_event_loop
async def test_a_picture_is_signed_before_it_is_stored(house: House, signer: Signer) -> None:
    house.service.signing = Signing(signer)
    record = await finished(house, FILE)
    assert record.drawn == DRAWN_HERE
    assert provenance.read(stored(house, record), house.service.signing.anchors).state == "trusted"


@in_event_loop
async def test_one_that_cannot_be_signed_is_delivered_with_a_warning_and_answers_nobody_else(
    house: House, signer: Signer
) -> None:
    house.service.signing = Signing(signer)
    record = await finished(house, b"no picture")
    assert record.state is State.READY
    assert stored(house, record) == b"no picture"
    assert record.drawn == replace(DRAWN_HERE, warnings=(UNSIGNED,))
    again = await house.submit(await house.key(), SEEDED)
    assert again.state is State.QUEUED


@in_event_loop
async def test_where_signatures_are_required_its_task_fails_and_gets_its_credits_back(
    house: House, signer: Signer
) -> None:
    house.service.signing = Signing(signer, required=True)
    record = await finished(house, b"no picture")
    assert (record.state, record.reason and record.reason.code) == (State.ERROR, "NotSigned")
    assert [entry.balance for entry in await house.keyring.entries()] == [100_000]
    assert house.pictures() == []


@in_event_loop
async def test_one_that_was_signed_but_could_not_be_written_down_is_signed_again(house: House, signer: Signer) -> None:
    house.service.signing = Signing(signer)
    task = await house.submit(await house.key())
    claim = await house.claim()
    await house.store.close()
    with pytest.raises(StoreUnavailable):
        await house.service.complete(task.id, claim.fence, task.generation, FILE, DRAWN)
    assert house.pictures() == []
    house.store = house.open_store(house.folder / "fluxserve.db")
    house.begin_anew()
    house.service.signing = Signing(signer)
    await house.service.start()
    assert await house.service.complete(task.id, claim.fence, task.generation, FILE, DRAWN)
    (record,) = await house.store.get_many([task.id])
    assert record is not None
    assert provenance.read(stored(house, record), house.service.signing.anchors).state == "trusted"


@in_event_loop
async def test_where_nothing_signs_a_picture_is_stored_as_it_came(house: House) -> None:
    record = await finished(house, b"as it came")
    assert stored(house, record) == b"as it came"
    assert (record.drawn, house.service.signing.identity, house.service.signing.anchors) == (DRAWN_HERE, "", b"")
