"""Fine-tunes in the engine: fused as diffusers would, for the right pictures only, alone, beside others and resumed."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from tiny import CPU, TINY_TOKENS, stock

from fluxserve.catalogue import MODELS, Finetune, Generation, Size
from fluxserve.engine.base import Failed, Finished
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.lora import Change
from fluxserve.engine.trajectory import generator_seed
from fluxserve.engine.weights import load
from fluxserve.errors import DrawingFailed
from fluxserve.settings import Settings

SIZE = Size(256, 256)
LAYERS = {"transformer_blocks.0.attn.to_k": (32, 32), "single_transformer_blocks.0.proj_out": (160, 32)}
THREE = replace(CPU, token_budget=3 * TINY_TOKENS, finetune_cache=2**13)


@pytest.fixture(scope="module")
def finetunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three that fit, one that also changes text encoders, and one that does not fit."""
    folder = tmp_path_factory.mktemp("finetunes")
    for seed in range(3):
        write(folder, f"style-{seed}", seed)
    texts = {"lora_te1_a.lora_down.weight": torch.ones(1, 2), "lora_te1_a.lora_up.weight": torch.ones(2, 1)}
    save_file(load_file(folder / "style-1.safetensors") | texts, folder / "with-texts.safetensors")
    save_file(
        {"transformer.x.lora_A.weight": torch.ones(1, 2), "transformer.x.lora_B.weight": torch.ones(2, 1)},
        folder / "stranger.safetensors",
    )
    return folder


def changes(seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(seed)
    return {layer: (0.3 * torch.randn(2, wide), 0.3 * torch.randn(out, 2)) for layer, (wide, out) in LAYERS.items()}


def write(folder: Path, name: str, seed: int) -> None:
    tensors = {}
    for layer, (down, up) in changes(seed).items():
        tensors |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    save_file(tensors, folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def drawer(dev_folder: Path, finetunes: Path) -> Drawer:
    with torch.inference_mode():
        return open_drawer(find(str(dev_folder)), replace(THREE, finetunes=finetunes))


@pytest.fixture
def engine(drawer: Drawer) -> DiffusionEngine:
    models = dict.fromkeys(MODELS, str(drawer.checkpoint.path))
    engine = DiffusionEngine(
        Settings(models=models, device="cpu", threads=1, token_budget=THREE.token_budget), lambda *_: drawer
    )
    engine.warm()
    return engine


def wish(finetunes: Path, name: str | None, strength: float = 1.0, *, seed: int = 7, steps: int = 3) -> Generation:
    finetune = None
    if name is not None:
        sha256 = hashlib.sha256((finetunes / f"{name}.safetensors").read_bytes()).hexdigest()
        finetune = Finetune(name=name, strength=strength, sha256=sha256)
    return Generation(
        model="flux-dev",
        prompt="a red apple",
        size=SIZE,
        seed=seed,
        steps=steps,
        guidance=3.5,
        output_format="png",
        finetune=finetune,
    )


def draw(engine: DiffusionEngine, wishes: Sequence[Generation]) -> dict[str, Finished | Failed]:
    for number, wanted in enumerate(wishes):
        engine.admit(str(number), wanted)
    return run(engine)


def run(engine: DiffusionEngine) -> dict[str, Finished | Failed]:
    ended: dict[str, Finished | Failed] = {}
    while engine.active:
        ended |= {event.ref: event for event in engine.step() if isinstance(event, Finished | Failed)}
    return ended


def pixels(ended: Mapping[str, Finished | Failed]) -> list[bytes]:
    found = [ended[str(number)] for number in range(len(ended))]
    assert all(isinstance(one, Finished) for one in found), found
    return [one.pixels.data for one in found if isinstance(one, Finished)]


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_latents_are_those_of_the_stock_pipeline_with_fused_weights(
    drawer: Drawer, dev_folder: Path, finetunes: Path, strength: float
) -> None:
    parts, checkpoint = load(dev_folder, CPU), find(str(dev_folder))
    with torch.no_grad():
        for layer, (down, up) in changes(1).items():
            parts.transformer.get_submodule(layer).weight += strength * up @ down
    theirs = latents_of(stock(parts, checkpoint), checkpoint, wish(finetunes, "style-1"))
    with torch.inference_mode():
        trajectory = drawer.start("a", wish(finetunes, "style-1", strength), 0)
        usual = drawer.start("b", wish(finetunes, None), 0)
        while not trajectory.is_done:
            trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
            usual = usual.moved(drawer.velocities([usual])[0])
    torch.testing.assert_close(trajectory.latents, theirs, atol=1e-4, rtol=0)
    assert (trajectory.latents - usual.latents).abs().max() > 1e-2


def latents_of(pipeline: FluxPipeline, checkpoint: Checkpoint, wanted: Generation) -> torch.Tensor:
    found: torch.Tensor = pipeline(
        wanted.prompt,
        height=wanted.size.height,
        width=wanted.size.width,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance,
        generator=torch.Generator("cpu").manual_seed(generator_seed(wanted.seed)),
        max_sequence_length=checkpoint.text_length,
        output_type="latent",
    ).images
    return found


def test_each_picture_has_its_own_fine_tune_beside_any_others(engine: DiffusionEngine, finetunes: Path) -> None:
    wishes = [
        wish(finetunes, None),
        wish(finetunes, "style-0"),
        wish(finetunes, "style-0", 0.5),
        wish(finetunes, None, seed=8, steps=2),
        wish(finetunes, "style-1", steps=4),
        wish(finetunes, "style-0", seed=9),
        wish(finetunes, None, seed=9),
    ]
    alone = [pixels(draw(engine, [wanted]))[0] for wanted in wishes]
    assert len(set(alone)) == len(wishes)
    assert pixels(draw(engine, wishes)) == alone
    assert pixels(draw(engine, wishes[::-1])) == alone[::-1]


def test_what_is_taken_up_again_ends_in_the_same_pixels(engine: DiffusionEngine, finetunes: Path) -> None:
    wanted = wish(finetunes, "style-2", 0.8)
    undisturbed = pixels(draw(engine, [wanted]))
    engine.admit("0", wanted)
    while (saved := engine.save("0")) is None:
        engine.step()
    engine.discard("0")
    engine.admit("0", wanted, saved)
    assert pixels(run(engine)) == undisturbed


def test_fifty_switches_leave_the_weights_and_the_memory_as_they_were(
    engine: DiffusionEngine, drawer: Drawer, finetunes: Path
) -> None:
    before = {name: tensor.clone() for name, tensor in drawer.network.transformer.state_dict().items()}
    usual = pixels(draw(engine, [wish(finetunes, None, steps=1)]))
    for number in range(50):
        write(finetunes, "changing", number)
        assert isinstance(draw(engine, [wish(finetunes, "changing", steps=1)])["0"], Finished)
    assert pixels(draw(engine, [wish(finetunes, None, steps=1)])) == usual
    assert all(tensor.equal(before[name]) for name, tensor in drawer.network.transformer.state_dict().items())
    gc.collect()
    held = [thing for thing in gc.get_objects() if type(thing) is Change]
    assert sum(change.down.nbytes + change.up.nbytes for change in held) <= THREE.finetune_cache


@pytest.mark.parametrize("name", ["stranger", "gone", "changed"])
def test_a_fine_tune_that_cannot_be_used_fails_its_picture_alone(
    engine: DiffusionEngine, finetunes: Path, name: str
) -> None:
    write(finetunes, "changed", 5)
    write(finetunes, "gone", 6)
    bad, good = wish(finetunes, name), wish(finetunes, "style-0")
    write(finetunes, "changed", 7)
    (finetunes / "gone.safetensors").unlink()
    ended = draw(engine, [bad, good])
    assert isinstance(ended["1"], Finished)
    failed = ended["0"]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, DrawingFailed)
    assert f"The fine-tune {name} cannot be used here" in failed.error.message


def test_a_picture_is_told_that_changes_of_text_encoders_were_left_out(
    engine: DiffusionEngine, finetunes: Path
) -> None:
    without, with_texts = (draw(engine, [wish(finetunes, name)])["0"] for name in ("style-1", "with-texts"))
    assert isinstance(without, Finished)
    assert isinstance(with_texts, Finished)
    assert with_texts.pixels == without.pixels
    assert without.warnings == ()
    assert with_texts.warnings == ("with-texts also changes text encoders: that part of it was left out",)
