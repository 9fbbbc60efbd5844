"""Checkpoints that are not whole: what is said of them, and that all others are drawn all the same."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kinds import build_depth, build_kind, build_redux
from safetensors.torch import load_file, save_file

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine.base import Finished
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.device import Room, Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import open_drawer
from fluxserve.engine.duty import RETRY_S, Duty
from fluxserve.engine.planning import fit
from fluxserve.engine.pool import Pool
from fluxserve.engine.recovery import Recovery
from fluxserve.engine.weights import load
from fluxserve.errors import CheckpointRefused
from fluxserve.settings import Composed, Settings

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)
DEV = Generation(
    model="flux-dev", prompt="a red apple", size=Size(256, 256), seed=7, steps=1, guidance=3.5, output_format="png"
)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
PATIENCE_S = 60.0


def without(file: Path, name: str) -> None:
    """Take a tensor out of a file of weights."""
    tensors = load_file(file)
    del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


def first_of(file: Path) -> str:
    return min(load_file(file))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kind(tmp_path_factory.mktemp("plain") / "tiny-plain", "plain")


@pytest.mark.parametrize(
    "file", ["image_embedder/diffusion_pytorch_model.safetensors", "image_encoder/model.safetensors"]
)
def test_a_redux_that_lacks_a_tensor_is_refused_and_never_drawn_with_what_chance_put_there(
    plain: Path, tmp_path: Path, file: str
) -> None:
    redux = build_redux(tmp_path / "tiny-redux")
    name = first_of(redux / file)
    without(redux / file, name)
    checkpoint = find(Composed(base=str(plain), redux=str(redux)))
    with pytest.raises(CheckpointRefused, match=r"tiny-redux.* lacks the tensor .*Copy or download the folder again"):
        load(checkpoint.path, CPU, checkpoint.pieces, checkpoint.beside)


def test_a_depth_network_that_lacks_a_tensor_is_refused(plain: Path, tmp_path: Path) -> None:
    folder = build_depth(tmp_path / "tiny-depth")
    without(folder / "model.safetensors", first_of(folder / "model.safetensors"))
    checkpoint = find(Composed(base=str(plain), depth=str(folder)))
    with pytest.raises(CheckpointRefused, match="tiny-depth lacks the tensor"):
        load(checkpoint.path, CPU, checkpoint.pieces, checkpoint.beside)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors | {"x_embedder.bias": torch.ones(3)}, r"x_embedder\.bias is \[3\] and not \["),
        (lambda tensors: tensors | {"stranger": torch.ones(3)}, "which knows no tensor stranger"),
        (lambda tensors: {k: v for k, v in tensors.items() if k != "proj_out.bias"}, r"lacks .*proj_out\.bias"),
    ],
)  # fmt: skip
def test_a_misfit_is_named_with_its_part_and_its_tensor(
    dev_folder: Path, tmp_path: Path, change: Callable[..., dict[str, torch.Tensor]], said: str
) -> None:
    folder = Path(shutil.copytree(dev_folder, tmp_path / "misfit"))
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointRefused, match=rf"The transformer in .*misfit/transformer .*{said}"):
        load(folder, CPU)


@pytest.fixture
def broken(dev_folder: Path, tmp_path: Path) -> Path:
    """A folder that looks sound until it is loaded."""
    folder = Path(shutil.copytree(dev_folder, tmp_path / "broken"))
    without(folder / WEIGHTS, "x_embedder.bias")
    return folder


def settings_of(dev: Path, schnell: Path) -> Settings:
    models = {model: str(dev if model == DEV.model else schnell) for model in MODELS}
    return Settings(models=models, device="cpu", token_budget=1)


@pytest.mark.parametrize("is_there", [True, False], ids=["misfit", "gone"])
def test_one_that_is_broken_is_left_out_and_all_others_are_drawn(
    broken: Path, schnell_folder: Path, caplog: pytest.LogCaptureFixture, is_there: bool
) -> None:
    if not is_there:
        shutil.rmtree(broken)
    engine = DiffusionEngine(settings_of(broken, schnell_folder))
    with caplog.at_level(logging.ERROR):
        engine.warm()
    assert set(engine.models) == set(engine.fingerprints) == MODELS.keys() - {DEV.model}
    (line,) = engine.left_out
    assert str(broken) in line
    assert f"A checkpoint is left out: {line}" in caplog.messages
    engine.admit("a", replace(DEV, model="flux-schnell"))
    events = [event for _ in iter(lambda: engine.active, 0) for event in engine.step()]
    assert isinstance(events[-1], Finished)


def test_where_none_is_sound_the_start_fails(broken: Path) -> None:
    with pytest.raises(CheckpointRefused, match=r"lacks the tensor x_embedder\.bias"):
        DiffusionEngine(settings_of(broken, broken)).warm()


def test_weights_that_did_not_come_fail_what_asks_soon_after_and_are_tried_again_then(
    checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    two = [checkpoints["schnell"], checkpoints["dev"]]
    pool = Pool(Room(device=max(fit(one, CPU).peak for one in two), host=0), CPU, open_drawer)
    for one in two:
        pool.open(one)
    away, here = (one.origin for one in two)
    now, news, tries = [0.0], threading.Condition(), []
    duty = Duty(pool, CPU, Recovery(CPU), news, clock=lambda: now[0])

    def refuse(*_: object, **__: object) -> None:
        tries.append(now[0])
        raise CheckpointRefused("The disk could not be read.")

    def asked() -> str:
        """What becomes of something that asks for the weights now, once that is known."""
        end = time.monotonic() + PATIENCE_S
        while not (failed := duty.update({away: False})) and not duty.is_ready(away):
            assert time.monotonic() < end
            time.sleep(0.005)
        return failed[away].message if failed else "ready"

    with monkeypatch.context() as context:
        context.setattr("fluxserve.engine.weights.load", refuse)
        assert "could not be read" in asked()
        assert not duty.update({here: False})  # the sound ones' room is theirs again
        now[0] = RETRY_S - 1
        assert "could not be read" in asked()
        assert tries == [0.0]
        now[0] = RETRY_S
        assert not duty.update({away: False})
        while not duty.has_news:
            time.sleep(0.005)
        assert tries == [0.0, RETRY_S]
    now[0] = 3 * RETRY_S  # what nobody waited for any more is not told to who comes much later
    assert asked() == "ready"
