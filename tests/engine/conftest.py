"""Tiny checkpoints (see `tiny`), and the drawers that open them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import flux2_folders
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from tiny import CPU, TINY_TOKENS, build, build_in_float8, stock

from fluxserve import mini
from fluxserve.catalogue import MODELS
from fluxserve.engine import device
from fluxserve.engine.cache import Cache
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.device import Runtime
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.weights import load
from fluxserve.settings import Settings

# torch writes down all that it compiles where anything listens to this logger, and pytest listens to each that hands
# nothing on.
logging.getLogger("torch.__trace").propagate = True

OpenDrawer = Callable[[Checkpoint, Runtime], Drawer]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    device.apply(CPU)


@pytest.fixture(scope="session")
def dev_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like FLUX.1-dev: a guidance embedding, a shift that grows with the picture."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return build(tmp_path_factory.mktemp("weights") / "tiny-dev", guidance_embeds=True, scheduler=scheduler)


@pytest.fixture(scope="session")
def schnell_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like FLUX.1-schnell: no guidance embedding, a fixed shift."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    return build(tmp_path_factory.mktemp("weights") / "tiny-schnell", guidance_embeds=False, scheduler=scheduler)


@pytest.fixture(scope="session")
def shifted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fixed shift that is not 1, and steps that are predicted with and without the prompt."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=False)
    folder = tmp_path_factory.mktemp("weights") / "tiny-shifted"
    build(folder, guidance_embeds=False, scheduler=scheduler)
    (folder / "fluxserve.toml").write_text("cfg_scale = 2.0")
    return folder


@pytest.fixture(scope="session")
def float8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six levels of VAE, and every matrix in 8 bits."""
    return build_in_float8(tmp_path_factory.mktemp("weights") / "tiny-float8")


@pytest.fixture(scope="session")
def checkpoints(
    dev_folder: Path, schnell_folder: Path, shifted_folder: Path, float8_folder: Path
) -> dict[str, Checkpoint]:
    """By name: dev, schnell, shifted, float8 and mini."""
    folders = {
        "dev": dev_folder,
        "schnell": schnell_folder,
        "shifted": shifted_folder,
        "float8": float8_folder,
        "mini": mini.folder(),
    }
    return {name: find(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def drawers(checkpoints: dict[str, Checkpoint]) -> dict[str, Drawer]:
    """An open drawer for each of `checkpoints`, one row a pass."""
    return {name: open_drawer(checkpoint, CPU) for name, checkpoint in checkpoints.items()}


@pytest.fixture(scope="session")
def flux2_drawers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawer]:
    """An open drawer, one row a pass, for tiny weights of FLUX.2 by name: dev, klein and klein-base."""
    home = tmp_path_factory.mktemp("flux2")
    folders = (
        flux2_folders.build_dev(home / "dev"),
        flux2_folders.build_klein(home / "klein", is_distilled=True),
        flux2_folders.build_klein(home / "klein-base", is_distilled=False),
    )
    return {folder.name: open_drawer(find(str(folder)), CPU) for folder in folders}


@pytest.fixture(scope="session")
def open_once() -> OpenDrawer:
    """Like `open_drawer`, but each checkpoint is opened once a runtime, and its networks and what was found with them
    are shared: for engines that tell of something else than opening. What was read of prompts is each engine's own.
    """
    opened: dict[tuple[Path, Runtime], Drawer] = {}

    def open_shared(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
        known = (checkpoint.path, runtime)
        if known not in opened:
            opened[known] = open_drawer(checkpoint, runtime)
        return replace(opened[known], prompts=Cache(runtime.prompt_cache))

    return open_shared


@pytest.fixture(scope="session")
def pipelines(checkpoints: dict[str, Checkpoint]) -> dict[str, FluxPipeline]:
    """The stock pipeline over the same weights, for each of `checkpoints`."""
    return {name: stock(load(checkpoint.path, CPU), checkpoint) for name, checkpoint in checkpoints.items()}


@pytest.fixture(scope="session")
def settings_for() -> Callable[..., Settings]:
    """Settings that map every named model to a folder, or all of them to one, so that no other is opened.

    So many pictures of 256 x 256 step `together`.
    """

    def make(models: dict[str, Path] | Path, together: int = 1) -> Settings:
        folders = dict.fromkeys(MODELS, models) if isinstance(models, Path) else models
        named = {model: str(folder) for model, folder in folders.items()}
        return Settings(models=named, device="cpu", token_budget=TINY_TOKENS * together if together > 1 else 1)

    return make
