"""Each recipe draws equal bits alone, beside others, taken up again, and by another engine."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinds import KINDS, SIZE, begin, build_kind, end, half_white, picture, wish
from tiny import CPU

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, TextToImage
from fluxserve.engine.base import Event, Failed, Finished, Pixels
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.settings import Settings

ONE, OTHER, MASK = picture(1), picture(2), half_white()
#: A picture of 256 x 256 has 16 tokens of its own and 32 of text.
THREE = replace(CPU, token_budget=3 * 48)
WIDE = Size(SIZE.width + 128, SIZE.height)
PLAIN = (wish(TextToImage(interval=3.0), {}, seed=3), {})
WISHES: dict[str, tuple[tuple[Generation, Mapping[str, Pixels]], ...]] = {
    "plain": (
        PLAIN,
        (wish(ImageToImage(strength=0.75), {"image": ONE}), {"image": ONE}),
        (wish(ImageToImage(strength=1.0), {"image": ONE}, seed=8, steps=3), {"image": ONE}),
        (wish(Fill(), {"image": OTHER, "mask": MASK}), {"image": OTHER, "mask": MASK}),
        (wish(Edit(), {"input_image": ONE}), {"input_image": ONE}),
        (wish(Fill(left=128), {"image": ONE}, size=WIDE), {"image": ONE}),
    ),
    "kontext": (
        PLAIN,
        (wish(Edit(), {"input_image": ONE}, steps=2), {"input_image": ONE}),
        (
            wish(Edit(), {"input_image": ONE, "input_image_2": OTHER}, steps=2),
            {"input_image": ONE, "input_image_2": OTHER},
        ),
    ),
    "fill": (
        PLAIN,
        (wish(Fill(), {"image": ONE, "mask": MASK}), {"image": ONE, "mask": MASK}),
        (wish(Fill(), {"image": OTHER, "mask": MASK}, seed=9, steps=3), {"image": OTHER, "mask": MASK}),
    ),
    "control": (
        (wish(Control(kind="canny"), {"control_image": ONE}), {"control_image": ONE}),
        (wish(Control(kind="canny"), {"control_image": OTHER}), {"control_image": OTHER}),
        (wish(Control(kind="depth"), {"preprocessed_image": ONE}), {"preprocessed_image": ONE}),
    ),
}
Opened = Callable[[Checkpoint, Runtime], Drawer]


@pytest.fixture(scope="module")
def drawers_of_kinds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drawer]:
    """Three pictures a pass."""
    known: dict[str, Drawer] = {}

    def open_kind(kind: str) -> Drawer:
        if kind not in known:
            folder = build_kind(tmp_path_factory.mktemp("weights") / kind, kind)
            with torch.inference_mode():
                known[kind] = open_drawer(find(str(folder)), THREE)
        return known[kind]

    return open_kind


def engine_with(drawer: Drawer) -> DiffusionEngine:
    models = dict.fromkeys(MODELS, str(drawer.checkpoint.path))
    settings = Settings(models=models, device="cpu", threads=1, token_budget=THREE.token_budget)
    engine = DiffusionEngine(settings, lambda _checkpoint, _runtime: drawer)
    engine.warm()
    return engine


def run(engine: DiffusionEngine) -> dict[str, Finished]:
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    assert not [event for event in events if isinstance(event, Failed)]
    return {event.ref: event for event in events if isinstance(event, Finished)}


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_recipe_are_the_same_alone_and_beside_all_others(
    drawers_of_kinds: Callable[[str], Drawer], kind: str
) -> None:
    engine = engine_with(drawers_of_kinds(kind))
    alone = []
    for wanted, pictures in WISHES[kind]:
        engine.admit("alone", wanted, pictures=pictures)
        alone.append(run(engine)["alone"])
    for number, (wanted, pictures) in enumerate(WISHES[kind]):
        engine.admit(str(number), wanted, pictures=pictures)
    together = run(engine)
    for number, finished in enumerate(alone):
        assert together[str(number)].facts == finished.facts
    assert len({finished.facts["pixels_sha256"] for finished in alone}) == len(alone)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_any_recipe_taken_up_at_a_waypoint_end_in_the_same_latents(
    drawers_of_kinds: Callable[[str], Drawer], kind: str
) -> None:
    drawer = drawers_of_kinds(kind)
    with torch.inference_mode():
        for wanted, pictures in WISHES[kind]:
            start = begin(drawer, wanted, pictures)
            saved = drawer.save(start.moved(drawer.velocities([start])[0]))
            assert saved is not None
            resumed = drawer.resume("a", wanted, 0, saved, pictures=pictures)
            assert end(drawer, resumed).latents.equal(end(drawer, start).latents)


def test_pictures_of_fill_weights_share_passes(drawers_of_kinds: Callable[[str], Drawer]) -> None:
    drawer = drawers_of_kinds("fill")
    with torch.inference_mode():
        three = [begin(drawer, wanted, pictures) for wanted, pictures in WISHES["fill"]]
        assert {drawer.company_of(one).most for one in three} == {3}
        together = drawer.velocities(three)
        assert all(drawer.velocities([one])[0].equal(shared) for one, shared in zip(three, together, strict=True))


def test_a_picture_beside_references_is_drawn_alone(drawers_of_kinds: Callable[[str], Drawer]) -> None:
    drawer = drawers_of_kinds("kontext")
    with torch.inference_mode():
        plain, edited, *_ = [begin(drawer, wanted, pictures) for wanted, pictures in WISHES["kontext"]]
    assert plain.shape != edited.shape
    assert [drawer.company_of(one).most for one in (plain, edited)] == [3, 1]


def test_references_stand_at_places_of_their_own(drawers_of_kinds: Callable[[str], Drawer]) -> None:
    wanted, pictures = WISHES["kontext"][-1]
    with torch.inference_mode():
        inputs = begin(drawers_of_kinds("kontext"), wanted, pictures).inputs
    assert inputs.places is not None
    assert inputs.tokens is not None
    assert len(inputs.places.unique(dim=0)) == len(inputs.places) == inputs.tokens.shape[1]
    assert set(inputs.places[:, 0].tolist()) == {1.0}


def test_a_picture_over_which_nothing_is_drawn_is_done_at_once(drawers_of_kinds: Callable[[str], Drawer]) -> None:
    engine = engine_with(drawers_of_kinds("plain"))
    engine.admit("a", wish(ImageToImage(strength=0.0), {"image": ONE}), pictures={"image": ONE})
    assert run(engine)["a"].facts["steps"] == 0


def test_depth_without_a_network_for_it_fails_and_says_what_to_send(
    drawers_of_kinds: Callable[[str], Drawer],
) -> None:
    engine = engine_with(drawers_of_kinds("control"))
    engine.admit("a", wish(Control(kind="depth"), {"control_image": ONE}), pictures={"control_image": ONE})
    events: list[Event] = []
    while engine.active:
        events += engine.step()
    (failed,) = events
    assert isinstance(failed, Failed)
    assert "preprocessed_image" in failed.error.message


def test_weights_that_cannot_do_what_is_asked_say_so(drawers_of_kinds: Callable[[str], Drawer], tmp_path: Path) -> None:
    drawer = drawers_of_kinds("plain")
    asked = {
        "reads no reference pictures": (Edit(), {"input_image": ONE}),
        "reads no edges": (Control(kind="canny"), {"control_image": ONE}),
        "reads no depths": (Control(kind="depth"), {"preprocessed_image": ONE}),
        "reads no image_prompt": (TextToImage(), {"image_prompt": ONE}),
    }
    with torch.inference_mode():
        for words, (recipe, pictures) in asked.items():
            (warning,) = begin(drawer, wish(recipe, pictures), pictures).inputs.warnings
            assert words in warning
        assert begin(drawer, *PLAIN).inputs.warnings == ()
        control = drawers_of_kinds("control")
        assert "there was none" in begin(control, *PLAIN).inputs.warnings[0]
