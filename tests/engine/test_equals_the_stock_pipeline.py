"""Our loop draws what diffusers' own FluxPipeline draws from the same weights, prompt and seed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import load_file

from fluxserve.catalogue import Generation, Size
from fluxserve.engine import sampling
from fluxserve.engine.device import Runtime
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.means import USUAL
from fluxserve.engine.trajectory import Trajectory, generator_seed
from fluxserve.engine.weights import load

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
NAMES = ("dev", "schnell", "shifted", "float8", "mini")
#: Of the pictures, where a test names none: one that the checkpoint draws at.
SIZES = {name: Size(128, 128) for name in NAMES} | {"mini": Size(512, 512)}
SEEDS = (0, 7, 2**32, 2**64 - 1)


def generation(*, seed: int = 7, steps: int = 4, guidance: float = 3.5, size: Size) -> Generation:
    return Generation(
        model="flux-dev",
        prompt="a red apple",
        size=size,
        seed=seed,
        steps=steps,
        guidance=guidance,
        output_format="png",
    )


def draw(drawer: Drawer, wanted: Generation) -> Trajectory:
    with torch.inference_mode():
        trajectory = drawer.start("a", wanted, 0)
        while not trajectory.is_done:
            trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
    return trajectory


def draw_stock(pipeline: FluxPipeline, drawer: Drawer, wanted: Generation, output_type: str) -> np.ndarray:
    checkpoint = drawer.checkpoint
    drawn = pipeline(
        wanted.prompt,
        negative_prompt="" if checkpoint.cfg_scale > 1 else None,
        true_cfg_scale=checkpoint.cfg_scale,
        height=wanted.size.height,
        width=wanted.size.width,
        num_inference_steps=wanted.steps,
        guidance_scale=wanted.guidance,
        generator=torch.Generator("cpu").manual_seed(generator_seed(wanted.seed)),
        max_sequence_length=checkpoint.text_length,
        output_type=output_type,
    ).images
    return np.asarray(drawn)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_latents_are_the_pipelines(
    drawers: dict[str, Drawer], pipelines: dict[str, FluxPipeline], name: str, seed: int
) -> None:
    wanted = generation(seed=seed, size=SIZES[name])
    ours = draw(drawers[name], wanted).latents.numpy()
    theirs = draw_stock(pipelines[name], drawers[name], wanted, "latent")
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["dev", "schnell"])
@pytest.mark.parametrize("steps", [1, 2, 28])
def test_the_latents_are_the_pipelines_at_any_number_of_steps_and_in_any_shape(
    drawers: dict[str, Drawer], pipelines: dict[str, FluxPipeline], name: str, steps: int
) -> None:
    wanted = generation(steps=steps, size=Size(160, 64))
    ours = draw(drawers[name], wanted).latents.numpy()
    np.testing.assert_allclose(ours, draw_stock(pipelines[name], drawers[name], wanted, "latent"), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_pixels_are_the_pipelines(
    drawers: dict[str, Drawer], pipelines: dict[str, FluxPipeline], name: str
) -> None:
    wanted = generation(size=SIZES[name])
    with torch.inference_mode():
        pixels = drawers[name].finish(draw(drawers[name], wanted), USUAL).pixels
    ours = np.frombuffer(pixels.data, dtype=np.uint8).reshape(SIZES[name].height, SIZES[name].width, 3).astype(int)
    theirs = (draw_stock(pipelines[name], drawers[name], wanted, "np")[0] * 255).round().astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() < 0.001


def test_guidance_changes_what_weights_with_an_embedding_for_it_draw(drawers: dict[str, Drawer]) -> None:
    low, high = (draw(drawers["dev"], generation(guidance=g, size=Size(64, 64))).latents for g in (1.5, 5.0))
    assert not low.equal(high)
    low, high = (draw(drawers["schnell"], generation(guidance=g, size=Size(64, 64))).latents for g in (1.5, 5.0))
    assert low.equal(high)


@pytest.mark.parametrize("name", ["mini", "float8"])
def test_the_stock_pipeline_loads_the_folder_as_it_lies_there(drawers: dict[str, Drawer], name: str) -> None:
    folder = drawers[name].checkpoint.path
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    wanted = generation(size=SIZES[name])
    theirs = draw_stock(pipeline, drawers[name], wanted, "latent")
    np.testing.assert_allclose(draw(drawers[name], wanted).latents.numpy(), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2"])
def test_weights_in_8_bits_are_loaded_as_the_very_numbers_of_the_file(float8_folder: Path, part: str) -> None:
    network = getattr(load(float8_folder, CPU), part)
    (file,) = (float8_folder / part).glob("*.safetensors")
    kept, loaded = load_file(file), network.state_dict()
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
    assert {tensor.dtype for tensor in kept.values()} >= ({torch.float8_e4m3fn} if part != "vae" else {torch.float16})
    assert all(loaded[name].equal(tensor.float()) for name, tensor in kept.items())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 4, 28, 50])
@pytest.mark.parametrize("tokens", [16, 256, 3072, 16464])
def test_the_noise_levels_are_the_schedulers(drawers: dict[str, Drawer], name: str, steps: int, tokens: int) -> None:
    checkpoint = drawers[name].checkpoint
    theirs = FlowMatchEulerDiscreteScheduler.from_pretrained(checkpoint.path / "scheduler")
    theirs.set_timesteps(sigmas=list(np.linspace(1.0, 1 / steps, steps)), mu=calculate_shift(tokens))
    ours = sampling.sigmas(checkpoint.schedule, steps, tokens)
    np.testing.assert_allclose(ours, theirs.sigmas.numpy(), atol=2e-7, rtol=0)


def test_a_step_is_the_schedulers_step(drawers: dict[str, Drawer]) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(drawers["dev"].checkpoint.path / "scheduler")
    scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.4], mu=0.8)
    latents, velocity = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))[:, None]
    theirs = scheduler.step(velocity, scheduler.timesteps[0], latents, return_dict=False)[0]
    ours = sampling.advance(latents, velocity, float(scheduler.sigmas[0]), float(scheduler.sigmas[1]))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
