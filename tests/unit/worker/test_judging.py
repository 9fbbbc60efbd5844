"""A worker looks at every picture that comes in or goes out; what is refused, or cannot be looked at, is gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO

import pytest
from msgspec import structs
from PIL import Image
from worker_house import PATIENCE_S, TASK, hired

from builders import generation, in_event_loop
from fluxserve.catalogue import InputPicture, Size
from fluxserve.engine import pixels
from fluxserve.engine.base import Pixels
from fluxserve.engine.fake import MAGENTA, FakeEngine
from fluxserve.errors import ModerationFailed
from fluxserve.moderation.fake import SIGNAL, FakeClassifier
from fluxserve.moderation.pictures import Classifier
from fluxserve.settings import Settings
from fluxserve.worker import protocol as p
from fluxserve.worker.connection import Streams
from fluxserve.worker.judging import Judging

WELCOME = p.Welcome(heartbeat=60, lease=600, kept=())
REFUSE_FROM = {"sexual": 0.4}
SIZE = Size(64, 64)
SETTINGS = Settings(heartbeat=60, lease=600, moderation_timeout=0.05)


def task(prompt: str = "a red apple", task_id: str = "t1") -> p.Assignment:
    return structs.replace(
        TASK, task_id=task_id, generation=generation(prompt=prompt, size=SIZE), refuse_from=REFUSE_FROM
    )


async def outcome(streams: Streams, *tasks: p.Assignment) -> list[p.Outcome]:
    """What comes of them."""
    reader, writer = streams
    writer.write(p.to_frame(p.Tasks(assignments=tasks)))
    found: list[p.Outcome] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < len(tasks):
            message = await p.read_from_worker(reader)
            if isinstance(message, p.Finished | p.Failed | p.Withheld):
                found.append(message)
    return found


class Raises(FakeClassifier):
    def score(self, size: Size, rgb: bytes) -> Mapping[str, float]:
        del size, rgb
        raise MemoryError


class Hangs(FakeClassifier):
    """It comes back when the test has ended."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def score(self, size: Size, rgb: bytes) -> Mapping[str, float]:
        del size, rgb
        self.over.wait(PATIENCE_S)
        return {"sexual": 0.0}


class Says(FakeClassifier):
    def __init__(self, scores: Mapping[str, float]) -> None:
        self._scores = scores

    def score(self, size: Size, rgb: bytes) -> Mapping[str, float]:
        del size, rgb
        return self._scores


@in_event_loop
async def test_a_picture_that_may_be_seen_comes_with_its_scores() -> None:
    async with hired(FakeEngine(SETTINGS), WELCOME, SETTINGS, FakeClassifier()) as (_, streams):
        (finished,) = await outcome(streams, task())
    assert isinstance(finished, p.Finished)
    assert finished.scores == {"sexual": 0.0}


@in_event_loop
async def test_one_that_may_not_be_seen_goes_no_further() -> None:
    async with hired(FakeEngine(SETTINGS), WELCOME, SETTINGS, FakeClassifier()) as (_, streams):
        withheld, finished = await outcome(streams, task(MAGENTA), task(task_id="t2"))
    assert withheld == p.Withheld(task_id="t1", fence=1, scores={"sexual": 1.0}, about="picture")
    assert isinstance(finished, p.Finished)


@pytest.mark.parametrize(
    "classifier",
    [Raises(), Says({}), Says({"sexual": float("nan")}), Says({"sexual": 1.5}), Says({"gore": 0.1}), None],
)
@in_event_loop
async def test_of_100_pictures_that_cannot_be_looked_at_none_goes_out(classifier: Classifier | None) -> None:
    async with hired(FakeEngine(SETTINGS), WELCOME, SETTINGS, classifier) as (_, streams):
        found = [one for n in range(100) for one in await outcome(streams, task(task_id=f"t{n}"))]
    assert [type(one) for one in found] == [p.Failed] * 100
    assert {one.code for one in found if isinstance(one, p.Failed)} == {ModerationFailed.__name__}


@in_event_loop
async def test_a_look_that_never_comes_back_ends_its_task_and_its_process() -> None:
    classifier = Hangs()
    try:
        async with hired(FakeEngine(SETTINGS), WELCOME, SETTINGS, classifier) as (_, (reader, writer)):
            (failed,) = await outcome((reader, writer), task())
            assert isinstance(failed, p.Failed)
            assert failed.code == ModerationFailed.__name__
            async with asyncio.timeout(PATIENCE_S):
                while not isinstance(message := await p.read_from_worker(reader), p.Returned):
                    pass
            assert message.recycled
    finally:
        classifier.over.set()


@in_event_loop
async def test_an_input_picture_that_may_not_be_seen_is_drawn_from_by_nobody() -> None:
    image = Image.new("RGB", (64, 64), SIGNAL)
    file = BytesIO()
    image.save(file, "PNG")
    picture = InputPicture(name="input_image", size=SIZE, sha256=pixels.sha256(pixels.from_image(image)))
    drawing = replace(generation(model="flux-kontext-pro", size=SIZE), pictures=(picture,))
    asked = structs.replace(task(), generation=drawing, pictures={"input_image": file.getvalue()})
    engine = FakeEngine(SETTINGS)
    async with hired(engine, WELCOME, SETTINGS, FakeClassifier()) as (_, streams):
        (withheld,) = await outcome(streams, asked)
        assert engine.active == 0
    assert withheld == p.Withheld(task_id="t1", fence=1, scores={"sexual": 1.0}, about="input_picture")


@pytest.mark.parametrize(("prompt", "is_shown"), [("a red apple", True), (MAGENTA, False)])
@in_event_loop
async def test_previews_are_looked_at_too(prompt: str, is_shown: bool) -> None:
    settings = SETTINGS.model_copy(update={"fake_latency": 0.4, "fake_steps": 8, "moderation_timeout": 5.0})
    shown = False
    async with hired(FakeEngine(settings), WELCOME, settings, FakeClassifier()) as (_, (reader, writer)):
        writer.write(p.to_frame(p.Tasks(assignments=(task(prompt),))))
        writer.write(p.to_frame(p.Show(task_id="t1", fence=1)))
        async with asyncio.timeout(PATIENCE_S):
            while not isinstance(message := await p.read_from_worker(reader), p.Finished | p.Withheld):
                shown |= isinstance(message, p.Preview)
    assert shown == is_shown


@in_event_loop
async def test_where_nothing_is_moderated_nothing_is_looked_at() -> None:
    async with hired(FakeEngine(SETTINGS), WELCOME, SETTINGS, Raises()) as (_, streams):
        (finished,) = await outcome(streams, structs.replace(task(MAGENTA), refuse_from=None))
    assert isinstance(finished, p.Finished)
    assert finished.scores is None


@in_event_loop
async def test_of_several_pictures_the_worst_counts_and_a_slow_one_holds_up_no_other_look() -> None:
    judging = Judging(FakeClassifier(), 1.0)
    plain, signal = (Pixels(size=Size(16, 16), data=bytes(colour) * 256) for colour in ((1, 2, 3), SIGNAL))
    verdict = await judging.look((plain, signal, plain), REFUSE_FROM)
    assert (verdict.is_refused, verdict.scores) == (True, {"sexual": 1.0})
    slow = Hangs()
    judging = Judging(slow, 0.05)
    with pytest.raises(ModerationFailed):
        await judging.look((plain,), REFUSE_FROM)
    assert judging.is_stuck
    slow.over.set()
    begun = time.monotonic()
    assert not (await judging.look((plain,), REFUSE_FROM)).is_refused
    assert time.monotonic() - begun < 1.0
