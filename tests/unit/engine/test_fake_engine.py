from collections.abc import Sequence
from dataclasses import replace

import pytest

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine.base import Event, Failed, Finished, Progressed
from fluxserve.engine.fake import CRASH_STATUS, LONGEST_WAIT, FakeEngine
from fluxserve.errors import BadPicture, DrawingFailed, EngineError, OutOfMemory
from fluxserve.settings import Settings

APPLE = Generation(
    model="flux-dev",
    prompt="a red apple",
    size=Size(256, 320),
    seed=7,
    steps=4,
    guidance=3.5,
    output_format="jpeg",
)


class Ended(BaseException):
    """Stands for the end of the process."""


class Clock:
    """A clock that only its own waits move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        if seconds >= 1:
            raise Ended("hangs")


def end_process(status: int) -> None:
    raise Ended(status)


def make(clock: Clock | None = None, *, latency: float = 0.0, steps: int = 0) -> FakeEngine:
    clock = clock or Clock()
    settings = Settings(fake_latency=latency, fake_steps=steps)
    return FakeEngine(settings, clock=clock, wait=clock.wait, end_process=end_process)


def drawn(generation: Generation) -> Finished:
    engine = make()
    engine.admit("a", generation)
    finished = engine.step()[-1]
    assert isinstance(finished, Finished)
    return finished


def run(engine: FakeEngine) -> Sequence[Event]:
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    return events


def test_it_draws_every_model_of_the_catalogue() -> None:
    assert make().models == tuple(MODELS)


def test_without_latency_a_picture_is_there_after_one_step_and_the_progress_is_told_once() -> None:
    engine = make()
    engine.admit("a", APPLE)
    progressed, finished = engine.step()
    assert progressed == Progressed(ref="a", step=4, steps=4)
    assert isinstance(finished, Finished)
    assert engine.active == 0


def test_an_idle_engine_does_nothing_and_does_not_wait() -> None:
    clock = Clock()
    assert make(clock, latency=1.0).step() == []
    assert clock.waits == []


def test_the_same_generation_is_the_same_picture() -> None:
    assert drawn(APPLE) == drawn(replace(APPLE, output_format="png"))


@pytest.mark.parametrize(
    "other",
    [
        replace(APPLE, seed=8),
        replace(APPLE, seed=7 + 2**32),
        replace(APPLE, prompt="a green apple"),
        replace(APPLE, model="flux-pro"),
    ],
)
def test_another_seed_prompt_or_model_is_another_picture(other: Generation) -> None:
    assert drawn(APPLE).pixels.data != drawn(other).pixels.data


@pytest.mark.parametrize("size", [Size(256, 256), Size(1440, 1440), Size(3136, 1344)])
def test_a_picture_has_exactly_the_size_asked_for(size: Size) -> None:
    pixels = drawn(replace(APPLE, size=size)).pixels
    assert (pixels.size, len(pixels.data)) == (size, 3 * size.area)


def test_the_facts_name_what_was_drawn() -> None:
    facts = drawn(APPLE).facts
    assert facts["drawn_at"] == "256x320"
    assert facts["steps"] == 4
    assert len(str(facts["pixels_sha256"])) == 64


def test_a_prompt_with_half_a_surrogate_is_drawn() -> None:
    assert drawn(replace(APPLE, prompt="\ud800")).pixels.size == APPLE.size


def test_latency_is_spread_evenly_over_the_steps() -> None:
    clock = Clock()
    engine = make(clock, latency=0.04)
    engine.admit("a", APPLE)
    events = run(engine)
    assert [event.step for event in events if isinstance(event, Progressed)] == [1, 2, 3, 4]
    assert clock.now == pytest.approx(100.04)


def test_no_step_waits_long() -> None:
    clock = Clock()
    engine = make(clock, latency=10.0)
    engine.admit("a", APPLE)
    assert engine.step() == []
    assert clock.waits == [LONGEST_WAIT]


def test_generations_are_drawn_side_by_side() -> None:
    clock = Clock()
    engine = make(clock, latency=0.2)
    for ref in "abcdefgh":
        engine.admit(ref, APPLE)
    finished = [event.ref for event in run(engine) if isinstance(event, Finished)]
    assert finished == list("abcdefgh")
    assert clock.now == pytest.approx(100.2)


def test_the_steps_can_be_set() -> None:
    engine = make(steps=2)
    engine.admit("a", APPLE)
    assert engine.step()[0] == Progressed(ref="a", step=2, steps=2)


def test_a_discarded_generation_is_never_heard_of_again() -> None:
    engine = make(latency=0.04)
    engine.admit("a", APPLE)
    engine.admit("b", APPLE)
    engine.discard("a")
    engine.discard("unknown")
    assert {event.ref for event in run(engine)} == {"b"}


@pytest.mark.parametrize(
    ("directive", "error"),
    [
        ("[[error]]", DrawingFailed),
        ("[[oom]]", OutOfMemory),
        ("[[spend]]", OutOfMemory),
        ("[[black]]", BadPicture),
    ],
)
def test_a_directive_fails_its_own_generation_only(directive: str, error: type[EngineError]) -> None:
    engine = make()
    engine.admit("bad", replace(APPLE, prompt=f"an apple {directive}"))
    engine.admit("good", APPLE)
    outcomes = {event.ref: event for event in engine.step()}
    bad = outcomes["bad"]
    assert isinstance(bad, Failed)
    assert type(bad.error) is error
    assert isinstance(outcomes["good"], Finished)
    assert engine.active == 0
    assert engine.spent_on == ({"bad"} if "spend" in directive else set())


def test_a_crash_ends_the_process_at_the_first_step() -> None:
    engine = make()
    engine.admit("a", replace(APPLE, prompt="[[crash]]"))
    with pytest.raises(Ended, match=str(CRASH_STATUS)):
        engine.step()


def test_a_crash_at_a_step_comes_after_that_step_was_told() -> None:
    engine = make()
    engine.admit("a", replace(APPLE, prompt="an apple [[crash:2]]"))
    assert engine.step() == [Progressed(ref="a", step=2, steps=4)]
    with pytest.raises(Ended, match=str(CRASH_STATUS)):
        engine.step()


def test_a_hang_never_returns() -> None:
    engine = make()
    engine.admit("a", replace(APPLE, prompt="[[hang]]"))
    with pytest.raises(Ended, match="hangs"):
        engine.step()
