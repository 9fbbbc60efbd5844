"""Packed at home, trained elsewhere in several calls, collected and exported; on a CPU and tiny."""

from __future__ import annotations

import re
import shutil
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from small_house import small_network  # noqa: E402
from sprite_house import house_sprites  # noqa: E402

from training import collect, export, on_gpu, pack, render, results  # noqa: E402
from training.bank import Bank, Batch  # noqa: E402
from training.canvases import LARGE, SMALL  # noqa: E402
from training.feeders import Feeders  # noqa: E402
from training.flow import PRESETS, Phase, Sources  # noqa: E402
from training.on_gpu import cost, fitted  # noqa: E402
from training.results import Facts  # noqa: E402
from training.stream import GENERATOR_SETS  # noqa: E402

GPU = PRESETS["gpu"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packed house is, once a test has packed it."""
    return tmp_path_factory.mktemp("packed") / "training.zip"


@pytest.fixture
def packed(house: Path, archive: Path) -> Path:
    """The house, packed once."""
    if not archive.is_file():
        pack.pack(archive, quality=80)
    return archive


def elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Another machine's work folder."""
    folder.mkdir()
    monkeypatch.setenv("FLUXSERVE_TRAINING_WORK", str(folder))
    return folder


def test_a_sprite_comes_out_of_its_file_nearly_as_it_was() -> None:
    sprite = house_sprites(2)[1]
    found = pack.decoded(pack.encoded(sprite, 80)).astype(int)
    assert np.abs(found - sprite).mean() < 3
    assert (found[..., :3] <= found[..., 3:] + 1).all()


def test_what_is_unpacked_is_what_the_trainers_need(
    packed: Path, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprites, records = render.load_sprites(GENERATOR_SETS)
    there = elsewhere(monkeypatch, tmp_path / "there")
    pack.unpack(packed, processes=1)
    found, found_records = render.load_sprites(GENERATOR_SETS)
    assert found_records == records
    assert found.shape == sprites.shape
    assert np.abs(found.astype(int) - sprites).mean() < 3
    assert results.fingerprint(there / "text") == results.fingerprint(house / "text")
    assert (there / "latents.safetensors").read_bytes() == (house / "latents.safetensors").read_bytes()
    before = (there / "sprites" / "noto.npy").stat().st_mtime_ns
    pack.unpack(packed, processes=1)
    assert (there / "sprites" / "noto.npy").stat().st_mtime_ns == before


@pytest.mark.usefixtures("house")
def test_packing_again_gives_the_same_file(packed: Path, tmp_path: Path) -> None:
    pack.pack(tmp_path / "again.zip", quality=80)
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()


def rows(batch: Batch) -> list[tuple[bytes, bytes]]:
    latents = batch.latents.float().numpy()
    return [(one.tobytes(), ids.numpy().tobytes()) for one, ids in zip(latents, batch.texts.t5, strict=True)]


@pytest.mark.long
@pytest.mark.usefixtures("house")
def test_feeders_paint_what_the_trainer_itself_would_without_making_it_wait() -> None:
    with Feeders(0, 1) as feeders:
        fed = feeders.supply(3, (384, 640), 1000)
        bank = Bank(fed, 200)
        chance = torch.Generator().manual_seed(0)
        drawn = bank.draw(100, 10, chance)
        assert drawn.latents.shape == (100, 15, 64)
        for _ in range(50):
            bank.draw(100, 64, chance)
        assert len(fed._orders) <= 3  # what is under way is bounded, however often more is asked for
    alone = Sources(0, "cpu").supply(3, (384, 640), 1000).take(128, waiting=True)
    assert set(rows(drawn)) <= set(rows(alone))


def test_a_feeder_that_cannot_paint_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(monkeypatch, tmp_path / "empty")
    with Feeders(0, 1) as feeders, pytest.raises(BrokenProcessPool):
        feeders.supply(1, (512, 512), 0).take(8, waiting=True)


def measured(done: int, speed: float) -> Facts:
    return Facts(preset="gpu", text="", done=done, minutes=8.0, speed=speed)


def test_a_run_of_unknown_speed_follows_the_preset() -> None:
    assert fitted(GPU, measured(0, 0.0), 600) == GPU


@pytest.mark.parametrize("speed", [500.0, 10_000.0, 80_000.0])
def test_the_curriculum_is_stretched_to_the_time_that_is_left(speed: float) -> None:
    done = int(speed * 480)
    fit = fitted(GPU, measured(done, speed), 720)
    assert cost(fit, done, None) / speed == pytest.approx(720, rel=1e-3)
    shares = [phase.until / fit.phases[-1].until for phase in fit.phases]
    assert shares == pytest.approx([phase.until / GPU.phases[-1].until for phase in GPU.phases], rel=1e-3)
    assert (fit.batch, fit.shape, fit.settle) == (GPU.batch, GPU.shape, GPU.settle)


def test_a_run_whose_time_is_up_is_done() -> None:
    for seconds in (0.0, -30.0):
        assert fitted(GPU, measured(5_000_000, 10_000), seconds).phases[-1].until <= 5_000_000


def test_large_canvases_and_guidance_cost_more_and_costs_add_up() -> None:
    def costs(**changes: object) -> float:
        phase = Phase(**{"until": 100, "stage": 3, "areas": {SMALL: 1.0}, **changes})  # type: ignore[arg-type]
        return cost(replace(GPU, phases=(phase,)), 0, None)

    assert costs() == pytest.approx(100)
    assert costs(areas={LARGE: 1.0}) == pytest.approx(200)  # 64 + 32 tokens for 16 + 32
    assert costs(guided=0.3) == pytest.approx(120)
    assert cost(GPU, 0, 2_000_000) + cost(GPU, 2_000_000, None) == pytest.approx(cost(GPU, 0, None))


def train(packed: Path, out: Path, resume: Path | None, minutes: float = 30) -> Facts:
    torch.set_num_threads(1)
    on_gpu.command(
        out=out,
        resume=resume,
        minutes=minutes,
        flow_minutes=0.2,
        samples=4,
        preset="tiny",
        device="cpu",
        compiled=False,
        processes=1,
        packed=packed,
    )
    return results.facts(out)


@pytest.mark.long
def test_a_call_goes_on_elsewhere_and_what_it_makes_is_exported_at_home(
    packed: Path, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Facts(
        preset="tiny", text=results.fingerprint(house / "text"), done=1500, minutes=0.19, speed=200, is_finished=False
    )
    results.write(tmp_path / "one", dict(small_network().named_parameters()), before)
    there = elsewhere(monkeypatch, tmp_path / "there")
    found = train(packed, tmp_path / "two", tmp_path / "one")
    assert found.is_finished
    assert 1575 <= found.done < 1607  # 0.6 s are left, at 200 small pictures or 125 of this phase a second
    assert found.minutes > before.minutes
    files = [file for file in (tmp_path / "two").rglob("*") if file.is_file()]
    assert {file.parent.name for file in files} == {"weights", "vae"}
    assert not [file for file in files if file.suffix == ".state"]
    said = capsys.readouterr().out
    assert re.search(r"flow: \d+ pictures, unseen \d+\.\d+", said)
    assert re.search(r"decoder: 4 pieces, 512: \d+\.\d+ dB", said)
    assert re.search(r"encoder: 4 pieces, 512: explains", said)
    drawn, known = results.read(tmp_path / "two"), results.read(tmp_path / "one")
    changes = [float((drawn[name] - value).norm() / value.norm()) for name, value in known.items() if value.dim() == 2]
    assert 0 < max(changes) < 0.5  # not far from where it went on

    shutil.rmtree(tmp_path / "one")
    again = train(packed, tmp_path / "three", None)
    assert again == found
    assert (there / "flow" / "flow.state").is_file()

    monkeypatch.setenv("FLUXSERVE_TRAINING_WORK", str(house))
    collect.command(tmp_path / "three", name="gpu")
    export.command(name="gpu", preset="tiny", bits=8, out=tmp_path / "pipeline")
    assert (tmp_path / "pipeline" / "model_index.json").is_file()


def test_a_call_without_time_leaves_what_the_next_goes_on_from(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = elsewhere(monkeypatch, tmp_path / "there")
    found = train(packed, tmp_path / "out", None, minutes=0)
    assert (found.done, found.is_finished) == (0, False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["weights"]
    assert (there / "flow" / "flow.state").is_file()


def test_results_of_other_tokenizers_or_another_preset_are_refused(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, tmp_path / "there")
    for facts in (Facts(preset="tiny", text="other"), Facts(preset="gpu", text="other")):
        results.write(tmp_path / "results", {"a": torch.ones(2, 2)}, facts)
        with pytest.raises(SystemExit, match="tokenizers"):
            train(packed, tmp_path / "out", tmp_path / "results")
        with pytest.raises(SystemExit, match="tokenizers"):
            collect.command(tmp_path / "results", name="gpu")
