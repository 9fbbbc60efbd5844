"""Input pictures between request and drawing: kept with their task, gone with it, and in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from service_house import House

from builders import DRAWN, NOW, REASON, in_event_loop
from fluxserve.accounts.api_keys import ApiKey
from fluxserve.api import admin
from fluxserve.catalogue import MODELS, InputPicture, Size, find
from fluxserve.catalogue.params import IMAGE_PROMPT
from fluxserve.engine import pixels
from fluxserve.errors import (
    FieldRefused,
    IdempotencyConflict,
    InputDamaged,
    InputsFull,
    InsufficientCredits,
    StoreUnavailable,
)
from fluxserve.service.inputs import damages
from fluxserve.service.service import Lost
from fluxserve.settings import Settings
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State
from sample_pictures import PNG, file_of, picture, text_of

SAME_IN_WEBP = text_of(file_of(picture(256, 256), "WEBP", lossless=True))
OTHER = text_of(file_of(picture(256, 256, colour="green")))


@asynccontextmanager
async def at_work(house: House) -> AsyncIterator[ApiKey]:
    """A key to ask with; at the end no decoder is left."""
    try:
        yield await house.key()
    finally:
        await house.decoders.close()


def files(house: House) -> list[str]:
    """Every input picture on the disk."""
    return sorted(house.input_storage.names_older_than(float("inf")))


async def ask(house: House, key: ApiKey, text: str = PNG, **values: int) -> TaskRecord:
    """A task with a picture."""
    return await house.submit(key, values, pictures={"image_prompt": text})


@in_event_loop
async def test_a_picture_is_named_by_the_generation_and_kept_until_its_task_ends(house: House) -> None:
    async with at_work(house) as key:
        task = await ask(house, key)
        (named,) = task.generation.pictures
        assert (named.name, named.size) == ("image_prompt", Size(256, 256))
        (kept,) = await house.store.inputs()
        assert files(house) == [kept.object_name]
        read = pixels.decode((await house.service.read_inputs(task))["image_prompt"], named)
        assert pixels.to_image(read).tobytes() == picture(256, 256).tobytes()
        claim = await house.claim()
        assert await house.service.complete(task.id, claim.fence, task.generation, b"picture", DRAWN)
        assert files(house) == []
        assert await house.store.inputs() == []


@pytest.mark.parametrize("end", ["failed", "cancelled", "quarantined"])
@in_event_loop
async def test_however_a_task_ends_its_pictures_go_and_those_of_others_stay(house: House, end: str) -> None:
    async with at_work(house) as key:
        task, other = await ask(house, key), await ask(house, key, OTHER)
        claim = await house.claim()
        assert claim.id == task.id
        if end == "failed":
            await house.service.fail(task.id, claim.fence, REASON)
        elif end == "cancelled":
            await house.service.cancel(task.id, task.account_id)
        while (view := await house.service.look(task.id)) and not view.state.is_final:
            await house.service.release([Lost(task_id=task.id, fence=claim.fence, suspected=True)])
            claim = await house.claim()
        assert [kept.task_id for kept in await house.store.inputs()] == [other.id]
        assert len(files(house)) == 1
        assert await house.service.read_inputs(other)


@in_event_loop
async def test_a_follower_has_a_picture_of_its_own_when_its_leader_goes(house: House) -> None:
    async with at_work(house) as key:
        leader, follower = await ask(house, key, seed=1), await ask(house, key, SAME_IN_WEBP, seed=1)
        assert follower.state is State.FOLLOWING
        await house.service.cancel(leader.id, leader.account_id)
        claim = await house.claim()
        assert claim.id == follower.id
        assert await house.service.read_inputs(claim)
        assert await house.service.complete(claim.id, claim.fence, claim.generation, b"picture", DRAWN)
        assert files(house) == []


@in_event_loop
async def test_followers_that_are_answered_leave_no_pictures(house: House) -> None:
    async with at_work(house) as key:
        await house.service.welcome("w1", dict.fromkeys(MODELS, "f1"))
        for _ in range(3):
            await ask(house, key, seed=1)
        claim = await house.claim()
        drawn = replace(DRAWN, facts={"fingerprint": "f1"})
        assert await house.service.complete(claim.id, claim.fence, claim.generation, b"picture", drawn)
        assert files(house) == []
        assert (await ask(house, key, seed=1)).state is State.READY
        assert files(house) == []


@in_event_loop
async def test_a_replayed_or_refused_request_leaves_nothing(house: House) -> None:
    async with at_work(house) as key:
        first = await house.submit(key, pictures={"image_prompt": PNG}, idempotency_key="k")
        again = await house.submit(key, pictures={"image_prompt": SAME_IN_WEBP}, idempotency_key="k")
        assert again.id == first.id
        with pytest.raises(IdempotencyConflict):
            await house.submit(key, pictures={"image_prompt": OTHER}, idempotency_key="k")
        with pytest.raises(IdempotencyConflict):
            await house.submit(key, idempotency_key="k")
        with pytest.raises(InsufficientCredits):
            await ask(house, await house.key(grant=1))
        with pytest.raises(FieldRefused) as caught:
            await ask(house, key, "aGVsbG8=")
        assert caught.value.field == "image_prompt"
        assert len(files(house)) == 1


@in_event_loop
async def test_what_the_store_cannot_take_leaves_nothing(house: House) -> None:
    async with at_work(house) as key:
        await house.store.close()
        with pytest.raises(StoreUnavailable):
            await ask(house, key)
        assert files(house) == []
        house.open()


@in_event_loop
async def test_beyond_the_budget_pictures_are_refused_until_a_task_ends(tmp_path: Path) -> None:
    house = House(tmp_path, Settings(data_dir=tmp_path, min_free_disk=0, input_budget=1000))
    async with at_work(house) as key:
        task = await ask(house, key)
        with pytest.raises(InputsFull):
            await ask(house, key, OTHER)
        await house.submit(key)
        house.begin_anew()
        await house.service.start()
        with pytest.raises(InputsFull):
            await ask(house, key, OTHER)
        await house.service.cancel(task.id, task.account_id)
        await ask(house, key, OTHER)
        await house.decoders.close()
    await house.store.close()


@in_event_loop
async def test_a_restart_finds_the_pictures_and_sweeps_what_belongs_to_nobody(house: House) -> None:
    async with at_work(house) as key:
        task = await ask(house, key)
        house.input_storage.put("ab/" + "ab" * 16 + ".png", b"written before a crash")
        house.begin_anew()
        await house.service.start()
        assert await house.service.read_inputs(task)
        house.time = NOW + 10**10
        await house.sweeper.sweep()
        assert [kept.object_name for kept in await house.store.inputs()] == files(house)


@in_event_loop
async def test_a_picture_that_is_gone_is_told(house: House) -> None:
    async with at_work(house) as key:
        task = await ask(house, key)
        house.input_storage.delete(files(house)[0])
        with pytest.raises(InputDamaged):
            await house.service.read_inputs(task)


@in_event_loop
async def test_fsck_tells_which_files_are_gone_or_not_what_their_task_names(house: House) -> None:
    async with at_work(house) as key:
        tasks = [await ask(house, key, text) for text in (PNG, SAME_IN_WEBP, OTHER, PNG)]
        assert await damages(house.store, house.input_storage) == []
        kept = {one.task_id: one.object_name for one in await house.store.inputs()}
        sound, gone, other, cut = (kept[task.id] for task in tasks)
        content = {name: (house.folder / "inputs" / name).read_bytes() for name in kept.values()}
        house.input_storage.delete(gone)
        house.input_storage.put(other, content[sound])
        house.input_storage.put(cut, content[cut][: len(content[cut]) // 2])
        found = await damages(house.store, house.input_storage)
        assert sorted(found) == sorted(
            f"Task {task.id}: the file of its image_prompt {fault}."
            for task, fault in zip(
                tasks[1:],
                ("is gone or cannot be read", *["holds another picture, or is damaged"] * 2),
                strict=True,
            )
        )
        house.input_storage.put(sound, content[sound] + b"more")
        assert f"Task {tasks[0].id}: the file of its image_prompt has another size than was written down." in (
            await damages(house.store, house.input_storage)
        )
        for task in tasks:
            await house.service.cancel(task.id, task.account_id)
        assert await damages(house.store, house.input_storage) == []


@in_event_loop
async def test_the_command_of_fsck_tells_of_them_too(house: House) -> None:
    async with at_work(house) as key:
        task = await ask(house, key)
        house.input_storage.delete(files(house)[0])
        answer = await admin.execute(
            admin.Fsck(), store=house.store, keyring=house.keyring, inputs=house.input_storage, now=lambda: NOW
        )
        assert answer.violations == (f"Task {task.id}: the file of its image_prompt is gone or cannot be read.",)
        await house.service.cancel(task.id, task.account_id)


@in_event_loop
async def test_the_pictures_of_a_request_have_a_limit_together(house: House) -> None:
    large = text_of(file_of(Image.new("RGB", (5000, 4000)), "PNG"))
    fields = tuple(replace(IMAGE_PROMPT, name=name, max_area=None) for name in ("one", "two", "three"))
    spec = replace(find("flux-dev"), params=fields)
    async with at_work(house):
        inputs = house.inputs
        assert list(await inputs.decode(spec, {"two": PNG, "one": large})) == ["one", "two"]
        with pytest.raises(FieldRefused, match="40 megapixels"):
            await inputs.decode(spec, dict.fromkeys(("one", "two", "three"), large))


@in_event_loop
async def test_an_alpha_channel_becomes_the_mask_of_a_model_that_has_one(house: House) -> None:
    image = picture(mode="RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 32, 32))
    text = text_of(file_of(image))
    fields = tuple(replace(IMAGE_PROMPT, name=name) for name in ("image", "mask"))
    spec = replace(find("flux-dev"), params=fields)
    async with at_work(house):
        found = await house.inputs.decode(spec, {"image": text})
        assert list(found) == ["image", "mask"]
        sent = await house.inputs.decode(spec, {"image": text, "mask": PNG})
        assert sent["mask"].sha256 != found["mask"].sha256
        assert list(await house.inputs.decode(find("flux-dev"), {"image_prompt": text})) == ["image_prompt"]


def test_a_file_that_is_not_what_the_generation_names_is_damaged() -> None:
    file = file_of(picture())
    named = InputPicture(name="image", size=Size(64, 64), sha256=pixels.sha256(pixels.from_image(picture())))
    assert pixels.decode(file, named).size == named.size
    for other in (b"", file[:-30], file_of(picture(colour="green")), file_of(picture(65)), file_of(picture(), "JPEG")):
        with pytest.raises(InputDamaged):
            pixels.decode(other, named)


@in_event_loop
async def test_many_at_once_are_each_kept_with_their_own(house: House) -> None:
    async with at_work(house) as key:
        colours = ("green", "white", "black", "yellow")
        texts = [text_of(file_of(picture(256, 256, colour=colour))) for colour in colours]
        tasks = await asyncio.gather(*(ask(house, key, text) for text in texts))
        for task, colour in zip(tasks, colours, strict=True):
            read = pixels.decode((await house.service.read_inputs(task))["image_prompt"], task.generation.pictures[0])
            assert read.data == picture(256, 256, colour=colour).tobytes()
