"""The weights in the package draw as well as docs/mini.md says."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.means import USUAL
from training import classifier, judge
from training.backdrops import COLOURS
from training.drawing import as_tensor, shrunk
from training.exams import GUIDANCE, STEPS, fifty
from training.measures import background_names

ROOT = Path(__file__).parents[2]
#: Pictures that another processor's rounding may turn.
ROUNDING = 2


@pytest.fixture(scope="module")
def drawer(drawers: Mapping[str, Drawer]) -> Drawer:
    return drawers["mini"]


def draw(drawer: Drawer, prompt: str, seed: int, steps: int = STEPS, guidance: float = GUIDANCE) -> Tensor:
    """(1, 3, 128, 128) in -1 ... 1."""
    wanted = Generation(
        model="flux-dev",
        prompt=prompt,
        size=Size(512, 512),
        seed=seed,
        steps=steps,
        guidance=guidance,
        output_format="png",
    )
    with torch.inference_mode():
        trajectory = drawer.start("one", wanted, 0)
        while not trajectory.is_done:
            trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
        return shrunk(as_tensor(drawer.finish(trajectory, USUAL).pixels)[None])


def recognised_in_the_docs() -> int:
    """Of the fifty pictures: the share that the published evaluation has, as a number."""
    told = (ROOT / "docs/mini/evaluation.md").read_text(encoding="utf-8")
    found = re.search(r"^\| fifty \| known top-1 \| ([\d.]+)% \|", told, re.MULTILINE)
    assert found is not None
    return round(50 * float(found[1]) / 100)


def test_fifty_pictures_show_what_their_prompts_name_as_often_as_the_docs_say(drawer: Drawer) -> None:
    known = classifier.load(judge.PUBLISHED / "known.safetensors")
    prompts = fifty()
    pictures = torch.cat([draw(drawer, prompt, seed) for seed, prompt in enumerate(prompts.values())])
    said = [known.labels[best] for best in known.look(pictures).labels.argmax(dim=1).tolist()]
    right = sum(one == label for one, label in zip(said, prompts, strict=True))
    assert len(prompts) == 50
    assert abs(right - recognised_in_the_docs()) <= ROUNDING


@pytest.mark.parametrize("steps", [4, 28])
def test_a_named_background_is_drawn(drawer: Drawer, steps: int) -> None:
    colours = list(COLOURS)[:12]
    pictures = torch.cat(
        [draw(drawer, f"a panda on a {colour} background", seed, steps) for seed, colour in enumerate(colours)]
    )
    right = sum(name == colour for name, colour in zip(background_names(pictures), colours, strict=True))
    assert right >= len(colours) - 1
