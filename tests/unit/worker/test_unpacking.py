"""Input pictures at the worker: unpacked beside the steps, given to the engine, or refused where they are damaged."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from io import BytesIO

from msgspec import structs
from PIL import Image
from worker_house import PATIENCE_S, TASK, hired

from builders import in_event_loop
from fluxserve.catalogue import InputPicture, Size
from fluxserve.engine import pixels
from fluxserve.engine.fake import FakeEngine
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from sample_pictures import file_of, picture

WELCOME = p.Welcome(heartbeat=60, lease=600, kept=())
NAMED = InputPicture(name="image_prompt", size=Size(64, 64), sha256=pixels.sha256(pixels.from_image(picture())))
DRAWING = replace(TASK.generation, pictures=(NAMED,), output_format="png")


def laden(task_id: str, file: bytes) -> p.Assignment:
    """A task with this file for its picture."""
    return structs.replace(TASK, task_id=task_id, generation=DRAWING, pictures={"image_prompt": file})


async def outcomes(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *tasks: p.Assignment
) -> dict[str, p.Finished | p.Failed]:
    """What becomes of these tasks."""
    writer.write(p.to_frame(p.Tasks(assignments=tasks)))
    told: dict[str, p.Finished | p.Failed] = {}
    async with asyncio.timeout(PATIENCE_S):
        while len(told) < len(tasks):
            message = await p.read_from_worker(reader)
            if isinstance(message, p.Finished | p.Failed):
                told[message.task_id] = message
    return told


@in_event_loop
async def test_the_engine_has_the_picture_and_damaged_ones_end_their_own_tasks_alone() -> None:
    async with hired(FakeEngine(Settings(fake_steps=2)), WELCOME) as (_, streams):
        other = file_of(picture(colour="green"))
        tasks = (laden("good", file_of(picture())), laden("cut off", other[:50]), laden("another", other), TASK)
        told = await outcomes(*streams, *tasks)
    assert {type(told[name]) for name in ("good", TASK.task_id)} == {p.Finished}
    for name in ("cut off", "another"):
        failed = told[name]
        assert isinstance(failed, p.Failed)
        assert failed.code == "InputDamaged"
    good = told["good"]
    assert isinstance(good, p.Finished)
    drawn = Image.open(BytesIO(good.picture))
    assert drawn.crop((0, 0, 128, 128)).getcolors() == [(16384, (0, 0, 255))]
    assert drawn.getpixel((200, 200)) == (255, 0, 0)


@in_event_loop
async def test_a_worker_that_drains_gives_back_what_it_has_not_unpacked() -> None:
    engine = FakeEngine(Settings(fake_latency=60))
    async with hired(engine, WELCOME) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=(laden("t2", file_of(picture())),))) + p.to_frame(p.Drain()))
        returned: list[str] = []
        async with asyncio.timeout(PATIENCE_S):
            while not returned:
                message = await p.read_from_worker(reader)
                if isinstance(message, p.Returned):
                    returned += [held.task_id for held in message.held]
        assert returned == ["t2"]


@in_event_loop
async def test_a_task_that_is_discarded_while_it_is_unpacked_is_never_drawn() -> None:
    engine = FakeEngine(Settings(fake_steps=2))
    async with hired(engine, WELCOME) as (_, (reader, writer)):
        writer.write(
            p.to_frame(p.Tasks(assignments=(laden("t2", file_of(picture())),)))
            + p.to_frame(p.Discard(task_id="t2", fence=1))
        )
        assert list(await outcomes(reader, writer, TASK)) == [TASK.task_id]
