"""Operations as they are counted, against what is published, and against what the catalogue predicts for fair turns."""

import pytest
import torch
from torch.nn import Conv2d, Linear
from torch.nn.functional import scaled_dot_product_attention

from fluxserve.catalogue import Size, find
from fluxserve.engine import flops
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.checkpoints import find as find_checkpoint
from fluxserve.engine.published import SHAPES, build

#: Shape, the catalogue's model that is drawn by it, side in pixels, pictures beside it, TFLOP of a step.
PUBLISHED = [
    ("flux-dev", "flux-dev", 1024, 0, 74.4),
    ("flux-dev", "flux-dev", 512, 0, 21.5),
    ("flux-schnell", "flux-schnell", 1024, 0, 69.5),
    ("kontext", "flux-kontext-dev", 1024, 1, 165.5),
    ("flux-2-dev", "flux-2-dev", 1024, 0, 282.6),
    ("klein-4b", "flux-2-klein-4b", 1024, 0, 34.8),
    ("klein-9b", "flux-2-klein-9b", 1024, 0, 75.5),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    home = tmp_path_factory.mktemp("shapes")
    return {
        word: find_checkpoint(str(build(home / SHAPES[word].title, word))) for word in {one[0] for one in PUBLISHED}
    }


@pytest.mark.parametrize(("shape", "model", "side", "references", "tera"), PUBLISHED)
def test_a_step_takes_what_is_published_and_what_turns_are_made_of(
    shapes: dict[str, Checkpoint], shape: str, model: str, side: int, references: int, tera: float
) -> None:
    size = Size(side, side)
    count = flops.of_step(shapes[shape], size, references * size.area // 256) / 1e12
    assert count == pytest.approx(tera, rel=2e-3)
    predicted = find(model).network.step_work(size, [size] * references)
    assert count == pytest.approx(predicted, rel=2e-3)


def test_true_guidance_is_two_rows_of_the_same(checkpoints: dict[str, Checkpoint]) -> None:
    size = Size(256, 256)
    alone, guided = (flops.of_step(checkpoints[name], size) for name in ("schnell", "shifted"))
    assert guided == 2 * alone


def test_products_convolutions_and_attention_on_a_cpu_are_counted_to_the_last() -> None:
    rows, query, picture = torch.randn(7, 16), torch.randn(2, 3, 40, 8), torch.randn(1, 4, 10, 12)
    linear, filters = Linear(16, 5), Conv2d(4, 6, 3, padding=1)

    def act() -> None:
        linear(rows)
        scaled_dot_product_attention(query, query, query)
        filters(picture)

    with torch.inference_mode():
        count = flops.counted(act)
    assert count == 2 * 7 * 16 * 5 + 4 * 2 * 3 * 40 * 40 * 8 + 2 * 4 * 6 * 9 * 10 * 12
