"""What every engine promises the worker: the fake one and the real one, drawing with mini."""

import math
import struct
from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageStat

from fluxserve import engine as engines
from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine import waypoint as waypoints
from fluxserve.engine.base import Engine, Event, Failed, Finished, Pixels, Progressed, Wrote
from fluxserve.engine.fake import FakeEngine
from fluxserve.settings import EngineChoice, Settings

APPLE = Generation(
    model="flux-schnell",
    prompt="a red apple",
    size=Size(320, 256),
    seed=7,
    steps=3,
    guidance=3.5,
    output_format="jpeg",
)


def make(name: EngineChoice) -> Engine:
    made = engines.create(Settings(engine=name, device="cpu"))
    made.warm()
    return made


@pytest.fixture(scope="module")
def twins() -> tuple[Engine, Engine]:
    """Two real engines, each started by itself, which takes seconds."""
    return make("diffusion"), make("diffusion")


@pytest.fixture(scope="module", params=["fake", "diffusion"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return make("fake") if request.param == "fake" else request.getfixturevalue("twins")[0]


def run(engine: Engine) -> Sequence[Event]:
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    return events


def finish(engine: Engine, generation: Generation) -> Finished:
    engine.admit("a", generation)
    finished = run(engine)[-1]
    assert isinstance(finished, Finished)
    return finished


def test_a_warm_engine_has_nothing_to_do(engine: Engine) -> None:
    assert engine.active == 0
    assert not engine.spent_on
    assert not engine.step()


def test_it_says_what_it_draws_and_how_much_it_holds(engine: Engine) -> None:
    assert engine.models == tuple(MODELS)
    assert engine.capacity >= 1


def test_it_writes_for_those_models_that_it_says(engine: Engine) -> None:
    assert set(engine.writes) <= set(engine.models)
    for model in engine.writes[:2]:
        engine.write("text", model, "Say more.", "a red apple", 20)
        assert engine.active == 1
        written = run(engine)[-1]
        assert isinstance(written, Wrote)
        assert written.text
        engine.write("text", model, "Say more.", "a red apple", 20)
        engine.discard("text")
        assert engine.active == 0


@pytest.mark.parametrize("model", MODELS)
def test_it_draws_every_model_it_names(engine: Engine, model: str) -> None:
    assert finish(engine, replace(APPLE, model=model, steps=1)).pixels.size == APPLE.size


@pytest.mark.parametrize("size", [Size(256, 256), Size(1440, 256), Size(256, 1440), Size(3136, 1344)])
def test_a_picture_has_exactly_the_size_asked_for(engine: Engine, size: Size) -> None:
    pixels = finish(engine, replace(APPLE, size=size, steps=1)).pixels
    assert (pixels.size, len(pixels.data)) == (size, 3 * size.area)


def test_progress_rises_to_the_last_step_and_the_picture_comes_last(engine: Engine) -> None:
    engine.admit("a", APPLE)
    *progress, last = run(engine)
    steps = [event.step for event in progress if isinstance(event, Progressed)]
    assert len(steps) == len(progress)
    assert steps == sorted(set(steps))
    assert steps[-1] == APPLE.steps
    assert isinstance(last, Finished)


def test_the_same_generation_is_the_same_picture(engine: Engine) -> None:
    assert finish(engine, APPLE) == finish(engine, replace(APPLE, output_format="png"))


@pytest.mark.parametrize("seed", [0, 2**32, 2**32 + 7, 2**64 - 1])
def test_another_seed_is_another_picture(engine: Engine, seed: int) -> None:
    assert finish(engine, APPLE).pixels.data != finish(engine, replace(APPLE, seed=seed)).pixels.data


def test_the_facts_say_what_was_drawn(engine: Engine) -> None:
    finished = finish(engine, APPLE)
    assert set(finished.facts) == {"pixels_sha256", "drawn_at", "steps", "fingerprint"}
    assert finished.facts["pixels_sha256"] == pixels_of.sha256(finished.pixels)
    assert finished.facts["steps"] == APPLE.steps
    assert finished.facts["fingerprint"] == engine.fingerprints[APPLE.model]
    assert finished.drawn_by


def test_many_generations_end_once_each(engine: Engine) -> None:
    refs = [str(number) for number in range(2 * engine.capacity)]
    for number, ref in enumerate(refs):
        engine.admit(ref, replace(APPLE, seed=number, steps=1 + number % 3))
    assert engine.active == len(refs)
    outcomes = [event.ref for event in run(engine) if isinstance(event, Finished | Failed)]
    assert sorted(outcomes) == sorted(refs)


def test_a_generation_comes_out_the_same_beside_others(engine: Engine) -> None:
    alone = finish(engine, APPLE)
    engine.admit("other", replace(APPLE, seed=99, steps=5))
    engine.step()
    engine.admit("a", APPLE)
    engine.admit("tall", replace(APPLE, size=Size(256, 512), prompt="a cat face"))
    together = {event.ref: event for event in run(engine) if isinstance(event, Finished)}
    assert together["a"] == alone


def test_of_what_is_held_the_lowest_turn_ends_first(engine: Engine) -> None:
    for ref, turn in {"last": 3.0, "first": -1.0, "second": 2.5}.items():
        engine.admit(ref, replace(APPLE, steps=20), turn=turn)
    assert [event.ref for event in run(engine) if isinstance(event, Finished)] == ["first", "second", "last"]


def test_what_is_discarded_is_never_heard_of_again(engine: Engine) -> None:
    engine.admit("gone", APPLE)
    engine.admit("stays", APPLE)
    engine.discard("gone")
    engine.discard("never admitted")
    assert engine.active == 1
    assert {event.ref for event in run(engine)} == {"stays"}


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_a_neighbour_that_is_discarded_leaves_the_others_as_they_would_be_without_it(
    engine: Engine, steps_before: int
) -> None:
    alone = finish(engine, APPLE)
    for ref, seed in {"gone": 8, "a": APPLE.seed, "gone too": 9}.items():
        engine.admit(ref, replace(APPLE, seed=seed))
    told = [event for _ in range(steps_before) for event in engine.step()]
    engine.discard("gone")
    engine.discard("gone too")
    later = run(engine)
    assert {event.ref for event in later} <= {"a"}
    assert alone in (*told, *later)


def test_a_ref_can_be_used_again(engine: Engine) -> None:
    first = finish(engine, APPLE)
    engine.admit("a", replace(APPLE, seed=3))
    engine.discard("a")
    assert finish(engine, APPLE) == first


def run_shown(engine: Engine, ref: str) -> tuple[list[Progressed], Sequence[Event]]:
    """Every step of `ref` is asked to be shown; its progress, and everything else that was told."""
    progress, others = [], []
    while engine.active:
        engine.show(ref)
        for event in engine.step():
            (progress if isinstance(event, Progressed) and event.ref == ref else others).append(event)
    return progress, others


@pytest.mark.parametrize("size", [Size(320, 256), Size(1440, 256), Size(256, 1440), Size(3136, 1344)])
def test_a_preview_is_small_and_has_the_shape_that_was_asked_for(engine: Engine, size: Size) -> None:
    engine.admit("a", replace(APPLE, size=size))
    progress, _ = run_shown(engine, "a")
    assert progress[-1].preview is None
    previews = [event.preview for event in progress[:-1] if event.preview is not None]
    assert len(previews) == len(progress) - 1
    for preview in previews:
        width, height = preview.size.width, preview.size.height
        assert 32 <= max(width, height) <= pixels_of.PREVIEW_SIDE
        assert abs(width - height * size.ratio) <= max(1, size.ratio)
        assert len(preview.data) == 3 * preview.size.area
        assert len(pixels_of.encode_preview(preview)) < 32_000


def test_only_the_next_step_of_a_generation_that_is_shown_has_a_preview(engine: Engine) -> None:
    for ref in ("a", "b"):
        engine.admit(ref, replace(APPLE, steps=4))
    engine.show("a")
    engine.show("never admitted")
    shown = [(event.ref, event.step) for event in run(engine) if isinstance(event, Progressed) and event.preview]
    assert [ref for ref, _ in shown] == ["a"] * len(shown)
    assert len(shown) <= 1


def test_previews_change_no_picture(engine: Engine) -> None:
    alone = finish(engine, APPLE)
    engine.admit("a", APPLE)
    engine.admit("other", replace(APPLE, seed=99, steps=5))
    _, others = run_shown(engine, "a")
    assert alone in others


def test_a_preview_comes_near_to_the_picture_in_the_end(twins: tuple[Engine, Engine]) -> None:
    engine, _ = twins
    engine.admit("a", replace(APPLE, steps=12))
    progress, told = run_shown(engine, "a")
    drawn = next(event.pixels for event in told if isinstance(event, Finished))
    first, last = (event.preview for event in (progress[0], progress[-2]))
    assert first is not None
    assert last is not None
    assert distance(last, drawn) < 23 < distance(first, drawn)


def distance(preview: Pixels, drawn: Pixels) -> float:
    """The root of the mean square difference, in steps of 1/255."""
    size = (preview.size.width, preview.size.height)
    small = pixels_of.to_image(drawn).resize(size, Image.Resampling.BOX)
    difference = ImageChops.difference(pixels_of.to_image(preview), small)
    return math.sqrt(sum(mean**2 for mean in ImageStat.Stat(difference).rms) / 3)


# Waypoints


class Stepper:
    """An engine that makes one step at a time, however fast it is."""

    def __init__(self, engine: Engine | None = None) -> None:
        """Without an engine, a fake one on a clock that moves with its steps."""
        self.time = 0.0
        settings = Settings(engine="fake", device="cpu", fake_latency=1.0)
        self.engine = engine or FakeEngine(settings, clock=lambda: self.time)

    def step(self, generation: Generation) -> Sequence[Event]:
        """One step of the one picture that is under way."""
        self.time += 1.0 / generation.steps
        while not (events := self.engine.step()) and self.engine.active:
            pass  # its prompt is being read, or its picture decoded
        return events

    def saved(self, generation: Generation) -> list[bytes]:
        """The waypoint after each step but the last."""
        self.engine.admit("saved", generation)
        assert self.engine.save("saved") is None
        found = []
        for _ in range(generation.steps - 1):
            self.step(generation)
            found.append(self.engine.save("saved"))
        self.engine.discard("saved")
        return [waypoint for waypoint in found if waypoint is not None]

    def draw(self, generation: Generation, waypoint: bytes | None = None) -> tuple[Finished, list[int]]:
        """The picture, and the steps that were made for it."""
        self.engine.admit("a", generation, waypoint)
        events: list[Event] = []
        while self.engine.active:
            events += self.step(generation)
        assert isinstance(events[-1], Finished)
        return events[-1], [event.step for event in events if isinstance(event, Progressed)]


LONG_WAY = replace(APPLE, steps=5)


@pytest.fixture(scope="module", params=["fake", "diffusion"])
def pair(request: pytest.FixtureRequest) -> tuple[Stepper, Stepper]:
    """Two engines of one kind: what one writes down, the other takes up."""
    if request.param == "fake":
        return Stepper(), Stepper()
    one, other = request.getfixturevalue("twins")
    return Stepper(one), Stepper(other)


def test_a_picture_taken_up_after_any_step_is_the_picture_drawn_at_once(pair: tuple[Stepper, Stepper]) -> None:
    one, other = pair
    undisturbed, _ = one.draw(LONG_WAY)
    waypoints = one.saved(LONG_WAY)
    assert len(waypoints) == 4
    for step, waypoint in enumerate(waypoints, 1):
        assert other.draw(LONG_WAY, waypoint) == (undisturbed, list(range(step + 1, 6)))


def test_a_picture_may_change_its_engine_at_every_step(pair: tuple[Stepper, Stepper]) -> None:
    undisturbed, _ = pair[0].draw(LONG_WAY)
    waypoint: bytes | None = None
    for number in range(4):
        stepper = pair[number % 2]
        stepper.engine.admit("moves", LONG_WAY, waypoint)
        stepper.step(LONG_WAY)
        waypoint = stepper.engine.save("moves")
        assert waypoint is not None
        stepper.engine.discard("moves")
    assert pair[0].draw(LONG_WAY, waypoint) == (undisturbed, [5])


def test_what_was_taken_up_can_be_saved_again_at_once_and_is_the_same(pair: tuple[Stepper, Stepper]) -> None:
    one, other = pair
    (first, second, *_) = one.saved(LONG_WAY)
    other.engine.admit("a", LONG_WAY, first)
    other.step(LONG_WAY)
    assert other.engine.save("a") == second
    other.engine.discard("a")


def spoilt(waypoint: bytes) -> dict[str, bytes]:
    """Waypoints that must not be taken up."""
    flipped = bytearray(waypoint)
    flipped[-1] ^= 1
    return {
        "nothing": b"",
        "no waypoint": b"GET / HTTP/1.1\r\n\r\n",
        "cut off": waypoint[:-1],
        "longer": waypoint + b"\0",
        "one bit changed": bytes(flipped),
        "a header without end": b"\xff" * 8 + waypoint[8:],
        "no number": waypoint[:-4] + struct.pack("<f", math.nan),
        "infinite": waypoint[:-4] + struct.pack("<f", -math.inf),
    }


@pytest.mark.parametrize("kind", spoilt(bytes(64)))
def test_a_spoilt_waypoint_means_a_line_in_the_log_and_a_picture_that_starts_over(
    pair: tuple[Stepper, Stepper], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, steps = pair[0].draw(LONG_WAY)
    waypoint = spoilt(pair[0].saved(LONG_WAY)[2])[kind]
    assert pair[1].draw(LONG_WAY, waypoint) == (undisturbed, steps)
    assert caplog.text.count("starts over") == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(LONG_WAY, seed=8),
        replace(LONG_WAY, prompt="a green apple"),
        replace(LONG_WAY, guidance=2.0),
        replace(LONG_WAY, steps=6),
        replace(LONG_WAY, size=Size(256, 320)),
        replace(LONG_WAY, model="flux-dev"),
    ],
)
def test_a_waypoint_of_another_picture_is_not_taken_up(
    pair: tuple[Stepper, Stepper], other: Generation, caplog: pytest.LogCaptureFixture
) -> None:
    waypoint = pair[0].saved(LONG_WAY)[2]
    assert pair[1].draw(other, waypoint) == pair[1].draw(other)
    assert caplog.text.count("starts over") == 1


def test_a_waypoint_drawn_under_another_fingerprint_is_not_taken_up(
    pair: tuple[Stepper, Stepper], caplog: pytest.LogCaptureFixture
) -> None:
    reached = waypoints.decode(pair[0].saved(LONG_WAY)[2], LONG_WAY, pair[0].engine.fingerprints[LONG_WAY.model])
    foreign = waypoints.encode(replace(reached, fingerprint="another"), LONG_WAY)
    assert pair[1].draw(LONG_WAY, foreign) == pair[1].draw(LONG_WAY)
    assert caplog.text.count("starts over") == 1


def test_a_waypoint_on_another_noise_schedule_or_of_another_shape_is_not_taken_up(
    pair: tuple[Stepper, Stepper], caplog: pytest.LogCaptureFixture
) -> None:
    reached = waypoints.decode(pair[0].saved(LONG_WAY)[2], LONG_WAY, pair[0].engine.fingerprints[LONG_WAY.model])
    schedule = replace(reached, sigmas=(*reached.sigmas[:-2], reached.sigmas[-2] * 0.99, 0.0))
    shape = replace(reached, shape=(1, 2, reached.shape[1] * reached.shape[2]), latents=2 * reached.latents)
    for other in (schedule, shape):
        assert pair[1].draw(LONG_WAY, waypoints.encode(other, LONG_WAY)) == pair[1].draw(LONG_WAY)
    assert caplog.text.count("starts over") == 2


def test_there_is_nothing_to_save_of_what_is_unknown_discarded_or_done(pair: tuple[Stepper, Stepper]) -> None:
    engine = pair[0].engine
    assert engine.save("never admitted") is None
    pair[0].draw(LONG_WAY)
    assert engine.save("a") is None
    pair[0].saved(LONG_WAY)
    assert engine.save("saved") is None


@pytest.mark.parametrize("name", ["fake", "diffusion"])
def test_two_engines_of_one_kind_have_one_fingerprint_and_draw_one_picture(
    request: pytest.FixtureRequest, name: EngineChoice
) -> None:
    one, other = (make(name), make(name)) if name == "fake" else request.getfixturevalue("twins")
    assert one.fingerprints == other.fingerprints
    assert set(one.fingerprints) == set(one.models)
    assert all(one.fingerprints.values())
    assert finish(one, APPLE).facts["fingerprint"] == one.fingerprints[APPLE.model]
    assert finish(one, APPLE) == finish(other, APPLE)
