"""How a picture is drawn: networks, trajectories, the batcher, sampling, pixels.

The only room with torch. It imports the catalogue, settings, errors and logs, and nothing else of ours.
What it does not know: for whom it draws, tasks, databases, HTTP.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import cast

from fluxserve.engine.base import Engine
from fluxserve.engine.checkpoints import plan
from fluxserve.engine.device import check_speed, gpus, sensible_workers
from fluxserve.errors import EngineNotInstalled
from fluxserve.settings import EngineChoice, Settings

__all__ = ["ENGINES", "Engine", "check", "choose", "create", "gpus", "is_installed", "missing", "worker_count"]

#: name -> "module:Class", imported when used.
ENGINES: dict[str, str] = {
    "diffusion": "fluxserve.engine.diffusion:DiffusionEngine",
    "fake": "fluxserve.engine.fake:FakeEngine",
}
INSTALL_HINT = "pip install 'fluxserve[local]'"


def choose(settings: Settings) -> EngineChoice:
    """The engine `auto` stands for on this machine: diffusion where its packages are, else none."""
    if settings.engine != "auto":
        return settings.engine
    return "diffusion" if is_installed() else "none"


def is_installed() -> bool:
    """Whether the packages of the diffusion engine are installed; imports none of them."""
    return all(importlib.util.find_spec(name) for name in ("torch", "diffusers", "transformers", "safetensors"))


def missing(settings: Settings) -> str:
    """Why nothing here can draw, and what to do; empty where a local worker can."""
    if choose(settings) != "none" and settings.workers != 0:
        return ""
    remedy = "choose engine = auto" if is_installed() else INSTALL_HINT
    return f"Nothing here can draw yet: {remedy} and start again, or connect a worker. Tasks are accepted and wait."


def check(settings: Settings) -> None:
    """Raise ConfigurationError where local workers would refuse the settings, as far as that shows without torch."""
    if choose(settings) == "diffusion" and settings.workers != 0:
        check_speed(settings)


def worker_count(settings: Settings) -> int:
    """How many local workers a server starts. Raises ConfigurationError where the settings name no sound weights."""
    choice = choose(settings)
    if choice == "none":
        return 0
    if settings.workers is not None:
        return settings.workers
    if choice == "fake":
        return 1
    checkpoints = {checkpoint.origin: checkpoint for checkpoint in plan(settings).values()}
    return sensible_workers(settings, sum(checkpoint.weight_bytes for checkpoint in checkpoints.values()))


def create(settings: Settings) -> Engine:
    """The engine the settings ask for, not yet warm. Raises EngineNotInstalled."""
    name = choose(settings)
    if name == "none" or (name == "diffusion" and not is_installed()):
        raise EngineNotInstalled(f"This worker has nothing to draw with: {INSTALL_HINT}")
    module, _, attribute = ENGINES[name].partition(":")
    return cast("Engine", getattr(importlib.import_module(module), attribute)(settings))
