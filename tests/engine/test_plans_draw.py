"""Memory plans carried out, with tiny real networks; the CPU stands for a GPU, where moving makes real copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from flux2_folders import build_klein
from kinds import begin, end, wish
from peaks import Peak
from tiny import CPU

from fluxserve.catalogue.recipes import TextToImage
from fluxserve.engine.cache import Cache
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.fingerprint import fingerprint
from fluxserve.engine.forward import Company
from fluxserve.engine.means import USUAL, Means, Stage
from fluxserve.engine.needs import TILE
from fluxserve.engine.networks.flux1 import Flux1
from fluxserve.engine.networks.flux2 import klein
from fluxserve.engine.plans import PLANS
from fluxserve.engine.trajectory import Trajectory
from fluxserve.engine.weights import load

APPLE = wish(TextToImage(), {})
MOVING = ("encoder-blocks", "turns", "blocks")


@pytest.fixture(scope="module")
def usual(checkpoints: dict[str, Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawer]:
    folder = build_klein(tmp_path_factory.mktemp("weights") / "klein", is_distilled=True)
    return {
        name: open_drawer(one, CPU) for name, one in {"dev": checkpoints["dev"], "klein": find(str(folder))}.items()
    }


def held_by(drawer: Drawer, plan: str) -> Drawer:
    """The same weights by another plan."""
    runtime = replace(CPU, plan=PLANS[plan])
    parts = load(drawer.checkpoint.path, runtime)
    network = (Flux1 if drawer.checkpoint.family.title == "FLUX.1" else klein)(drawer.checkpoint, parts)
    return replace(drawer, network=network, prompts=Cache(0), fingerprint=fingerprint("", runtime, {}))


def drawn(drawer: Drawer, means: Means = USUAL) -> tuple[Trajectory, str]:
    with torch.inference_mode():
        trajectory = end(drawer, drawer.start("a", APPLE, 0, means))
        return trajectory, str(drawer.finish(trajectory, means).facts["pixels_sha256"])


@pytest.mark.parametrize("name", ["dev", "klein"])
@pytest.mark.parametrize("plan", MOVING)
@pytest.mark.parametrize("means", [USUAL, Means(exact=True)], ids=["usual", "exact"])
def test_weights_that_are_moved_draw_the_same_bits(
    usual: dict[str, Drawer], name: str, plan: str, means: Means
) -> None:
    moved = held_by(usual[name], plan)
    for _ in range(2):  # what went away comes back
        assert drawn(moved, means)[1] == drawn(usual[name], means)[1]


@pytest.mark.parametrize("name", ["dev", "klein"])
@pytest.mark.parametrize("plan", ["resident", "float8", *MOVING])
def test_a_checkpoint_that_had_to_leave_draws_the_same_bits_when_it_is_back(
    usual: dict[str, Drawer], name: str, plan: str
) -> None:
    moved = held_by(usual[name], plan)
    before = drawn(moved)[1]
    with torch.inference_mode():
        moved.network.leave()
        moved.network.come()
    assert drawn(moved)[1] == before


@contextmanager
def counted() -> Iterator[Peak]:
    with torch.inference_mode(), Peak() as peak:
        yield peak


def test_a_plan_holds_no_more_on_the_device_than_it_is_expected_to(usual: dict[str, Drawer]) -> None:
    most = {}
    for plan in ("resident", *MOVING):
        drawer = held_by(usual["klein"], plan)
        with torch.inference_mode():
            trajectory = begin(drawer, APPLE, {})
        with counted() as peak:
            drawer.velocities([trajectory])
        most[plan] = peak.most - most.get("resident", 0)
    transformer = usual["klein"].network.transformer
    whole = sum(tensor.nbytes for tensor in transformer.parameters())
    blocks = [
        sum(tensor.nbytes for tensor in block.parameters())
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    ]
    assert most["encoder-blocks"] == pytest.approx(0, abs=1000)
    assert most["turns"] == pytest.approx(whole, rel=0.05)
    assert most["blocks"] <= whole - sum(blocks) + sum(sorted(blocks)[-2:]) + 1000 < whole


@pytest.mark.parametrize("name", ["dev", "klein"])
@pytest.mark.parametrize("plan", ["float8", "int8"])
def test_weights_in_eight_bits_draw_nearly_the_same(usual: dict[str, Drawer], name: str, plan: str) -> None:
    eighths = held_by(usual[name], plan)
    with torch.inference_mode():
        trajectory = begin(usual[name], APPLE, {})
        (exact,), (near,) = usual[name].velocities([trajectory]), eighths.velocities([trajectory])
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("plan", ["float8", "float8-blocks", "int8"])
def test_eight_bits_draw_the_same_alone_in_company_and_taken_up(usual: dict[str, Drawer], plan: str) -> None:
    drawer = held_by(usual["dev"], plan)
    together = replace(drawer, company={usual["dev"].start("a", APPLE, 0).drawn_size: Company(most=2)})
    with torch.inference_mode():
        one, other = (begin(drawer, replace(APPLE, seed=seed), {}) for seed in (1, 2))
        alone = [drawer.velocities([trajectory])[0] for trajectory in (one, other)]
        assert all(map(torch.equal, alone, together.velocities([one, other])))
        saved = drawer.save(one.moved(alone[0]))
        assert saved is not None
        assert torch.equal(end(drawer, drawer.resume("b", one.generation, 0, saved)).latents, end(drawer, one).latents)


def test_matrices_in_eight_bits_take_a_byte_a_number(usual: dict[str, Drawer]) -> None:
    whole = usual["dev"].network.transformer.transformer_blocks[0].attn.to_q
    held = held_by(usual["dev"], "float8").network.transformer.transformer_blocks[0].attn.to_q
    assert held.weight.nbytes == whole.weight.nbytes // 4  # of float32
    assert torch.allclose(held.weight.float() * held.scale, whole.weight, rtol=1 / 16, atol=1e-3)


def test_a_tiled_plan_decodes_large_pictures_in_tiles_and_small_ones_as_ever(usual: dict[str, Drawer]) -> None:
    tiled = held_by(usual["dev"], "tiled")
    assert APPLE.size.width == APPLE.size.height <= TILE
    assert drawn(tiled)[1] == drawn(usual["dev"])[1]
    with tiled.network.using(Stage.DECODE, USUAL):
        assert tiled.network._parts.vae.use_tiling  # type: ignore[attr-defined]


def test_only_plans_that_change_bits_have_fingerprints_of_their_own() -> None:
    words = {name: fingerprint("", replace(CPU, plan=plan), {}) for name, plan in PLANS.items()}
    assert len({words[name] for name in ("resident", *MOVING)}) == 1
    assert len(set(words.values())) == 6


def test_a_checkpoint_is_opened_by_its_plan(checkpoints: dict[str, Checkpoint]) -> None:
    drawer = open_drawer(checkpoints["dev"], replace(CPU, memory_plan="float8"))
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in drawer.network.transformer.parameters())
