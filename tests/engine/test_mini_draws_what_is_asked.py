"""The weights in the package draw as well as docs/mini.md says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.forward import Company
from fluxserve.engine.means import USUAL
from training import classifier, judge
from training.backdrops import COLOURS
from training.drawing import as_tensor, shrunk
from training.exams import GUIDANCE, STEPS, fifty
from training.measures import background_names

ROOT = Path(__file__).parents[2]
#: Pictures that another processor's rounding may turn.
ROUNDING = 2


#: Pictures that share a pass: bits stay, time does not.
TOGETHER = 10
SIZE = Size(512, 512)


@pytest.fixture(scope="module")
def drawer(drawers: Mapping[str, Drawer]) -> Drawer:
    return replace(drawers["mini"], company={SIZE: Company(most=TOGETHER)})


def draw(drawer: Drawer, prompts: Sequence[str], steps: int = STEPS) -> Tensor:
    """(pictures, 3, 128, 128) in -1 ... 1; the seed of each is its place."""
    wishes = [
        Generation(
            model="flux-dev", prompt=prompt, size=SIZE, seed=seed, steps=steps, guidance=GUIDANCE, output_format="png"
        )
        for seed, prompt in enumerate(prompts)
    ]
    with torch.inference_mode():
        trajectories = [drawer.start("one", wanted, 0) for wanted in wishes]
        for _ in range(steps):
            velocities = drawer.velocities(trajectories)
            trajectories = [one.moved(velocity) for one, velocity in zip(trajectories, velocities, strict=True)]
        pictures = [as_tensor(drawer.finish(trajectory, USUAL).pixels) for trajectory in trajectories]
    return torch.cat([shrunk(picture[None]) for picture in pictures])


def recognised_in_the_docs() -> int:
    """Of the fifty pictures: the share that the published evaluation has, as a number."""
    told = (ROOT / "docs/mini/evaluation.md").read_text(encoding="utf-8")
    found = re.search(r"^\| fifty \| known top-1 \| ([\d.]+)% \|", told, re.MULTILINE)
    assert found is not None
    return round(50 * float(found[1]) / 100)


def test_fifty_pictures_show_what_their_prompts_name_as_often_as_the_docs_say(drawer: Drawer) -> None:
    known = classifier.load(judge.PUBLISHED / "known.safetensors")
    prompts = fifty()
    pictures = draw(drawer, list(prompts.values()))
    said = [known.labels[best] for best in known.look(pictures).labels.argmax(dim=1).tolist()]
    right = sum(one == label for one, label in zip(said, prompts, strict=True))
    assert len(prompts) == 50
    assert abs(right - recognised_in_the_docs()) <= ROUNDING


@pytest.mark.parametrize("steps", [4, 28])
def test_a_named_background_is_drawn(drawer: Drawer, steps: int) -> None:
    colours = list(COLOURS)[:12]
    pictures = draw(drawer, [f"a panda on a {colour} background" for colour in colours], steps)
    right = sum(name == colour for name, colour in zip(background_names(pictures), colours, strict=True))
    assert right >= len(colours) - 1
