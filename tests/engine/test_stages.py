"""Stages as they are measured: what is run, what is counted, and what is refused before anything is loaded."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CPU
from torch._dynamo import register_backend

from fluxserve import bench
from fluxserve.catalogue import Size
from fluxserve.engine import flops, published, stages, weights
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.speed import PLAIN, Speed
from fluxserve.errors import ConfigurationError, LicenseNotAccepted, MemoryTooSmall
from fluxserve.settings import Settings, StepCacheChoice

SIZE = Size(256, 256)
WISH = bench.Wish(model="flux-dev", shape=None, size=SIZE, steps=None, references=None, rounds=2)


def test_a_report_has_every_stage_of_every_round_and_a_picture_is_their_sum(checkpoints: dict[str, Checkpoint]) -> None:
    report = stages.measure(checkpoints["shifted"], CPU, stages.Wish(size=SIZE, steps=3), rounds=2)
    assert [(stage.name, stage.times, len(stage.seconds)) for stage in report.stages] == [
        ("encode", 1, 2), ("predict", 3, 2), ("decode", 1, 2), ("file", 1, 2),
    ]  # fmt: skip
    by_name = {stage.name: stage for stage in report.stages}
    step = flops.of_step(checkpoints["shifted"], SIZE)
    assert by_name["predict"].flop == step
    assert report.flop == 3 * step + by_name["encode"].flop + by_name["decode"].flop
    assert report.seconds == pytest.approx(sum(stage.times * stage.median for stage in report.stages))
    assert by_name["predict"].of_floor(report.product_rate) == pytest.approx(
        step / report.product_rate / by_name["predict"].median
    )


@register_backend(name="refusing")
def _refusing(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> object:
    """A compiler that finds no tool of its own."""
    raise RuntimeError(f"no kernels for {len(graph.graph.nodes)} operations")


def test_what_is_measured_is_warm_and_told_with_the_speed_that_held(checkpoints: dict[str, Checkpoint]) -> None:
    wish, told = stages.Wish(size=SIZE, steps=3), []
    fused = stages.measure(checkpoints["dev"], replace(CPU, speed=Speed(fused=True)), wish, rounds=1, tell=told.append)
    assert told == ["loading tiny-dev", "warming: fused", "round 1 of 1"]
    assert bench.about(fused)[2] == "speed: fused"
    facts = json.loads(bench.as_json(fused))
    assert (facts["speed"], facts["numerics"], facts["step_cache"]) == (["fused"], "exact", "off")
    compiled = replace(CPU, speed=Speed(compiled=True, backend="refusing"))
    failed = stages.measure(checkpoints["dev"], compiled, wish, rounds=1)
    torch.compiler.reset()
    assert failed.runtime.speed == PLAIN
    assert bench.about(failed)[2] == "speed: plain"
    assert failed.flop == fused.flop


@pytest.mark.parametrize(("cache", "foretold"), [("taylor", 3), ("first-block", 4)])
def test_steps_that_are_foretold_are_a_stage_of_their_own(
    checkpoints: dict[str, Checkpoint], cache: StepCacheChoice, foretold: int
) -> None:
    runtime = replace(CPU, speed=Speed(step_cache=cache))
    report = stages.measure(checkpoints["dev"], runtime, stages.Wish(size=SIZE, steps=12), rounds=1)
    by_name = {stage.name: stage for stage in report.stages}
    assert (by_name["predict"].times, by_name["foretell"].times) == (12 - foretold, foretold)
    assert (by_name["foretell"].flop > 0) == (cache == "first-block")
    assert by_name["foretell"].flop < by_name["predict"].flop
    assert bench.about(report)[2] == f"speed: step cache {cache}; {foretold} of 12 steps are foretold"


@pytest.mark.parametrize("family", ["flux1", "flux2"])
def test_numbers_at_random_need_no_more_than_headers_and_are_no_zeros(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, family: str
) -> None:
    import flux2_folders

    klein = flux2_folders.build_klein(tmp_path / "klein", is_distilled=True) if family == "flux2" else None
    checkpoint = checkpoints["dev"] if klein is None else find(str(klein))
    parts = weights.load(checkpoint.path, CPU, at_random=True)
    stored = weights.load(checkpoint.path, CPU)
    for part in checkpoint.family.networks:
        drawn, read = parts.by_name[part].state_dict(), stored.by_name[part].state_dict()  # type: ignore[union-attr]
        assert {name: one.shape for name, one in drawn.items()} == {name: one.shape for name, one in read.items()}
        matrices = [one for name, one in drawn.items() if one.ndim == 2 and one.shape[1] >= 16]
        assert all(one.ne(0).double().mean() > 0.999 for one in matrices)  # some of many millions are 0 by chance
        assert not all(torch.equal(one, read[name]) for name, one in drawn.items())


def test_references_stand_beside_the_picture_and_are_looked_at(tmp_path: Path) -> None:
    import flux2_folders

    checkpoint = find(str(flux2_folders.build_klein(tmp_path / "klein", is_distilled=True)))
    alone, beside = (
        stages.measure(checkpoint, CPU, stages.Wish(size=SIZE, steps=1, references=count), rounds=1, at_random=True)
        for count in (0, 1)
    )
    assert [stage.name for stage in beside.stages] == ["encode", "look", "predict", "decode", "file"]
    counts = [{stage.name: stage.flop for stage in report.stages} for report in (alone, beside)]
    assert counts[1]["look"] > 0
    assert counts[1]["predict"] > 1.4 * counts[0]["predict"]


@pytest.mark.parametrize("name", published.SHAPES)
def test_every_shape_is_refused_before_it_is_loaded_where_it_does_not_fit(tmp_path: Path, name: str) -> None:
    settings = Settings(device="cpu", memory_budget=2**28, data_dir=tmp_path)
    with pytest.raises(MemoryTooSmall, match="does not fit"):
        bench.measure(settings, replace(WISH, shape=name))


def test_what_is_not_there_or_not_allowed_is_refused(tmp_path: Path, dev_folder: Path, checkpoints: object) -> None:
    settings = Settings(device="cpu", data_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="the shapes are flux-dev"):
        bench.measure(settings, replace(WISH, shape="flux-9"))
    with pytest.raises(ConfigurationError, match="reads 0 pictures"):
        bench.measure(settings, replace(WISH, references=1))
    licensed = settings.model_copy(update={"models": {"flux-dev": str(dev_folder)}})
    with pytest.raises(LicenseNotAccepted, match="flux-1-dev"):
        bench.measure(licensed, WISH)


def test_mini_is_measured_as_it_stands_and_told_for_people_and_for_programs(tmp_path: Path) -> None:
    report = bench.measure(Settings(device="cpu", threads=1, data_dir=tmp_path), replace(WISH, rounds=1))
    told = json.loads(bench.as_json(report))
    assert (told["checkpoint"], told["dtype"], told["size"], told["drawn_at"]) == (
        "fluxserve-mini", "float32", "256x256", "512x512",
    )  # fmt: skip
    assert [(one["name"], one["times"]) for one in told["stages"]] == [
        ("encode", 1), ("predict", 28), ("decode", 1), ("file", 1),
    ]  # fmt: skip
    assert told["flop"] == report.flop > 0
    rows = bench.rows(report)
    assert [row[0] for row in rows] == ["encode", "predict", "decode", "file", "picture"]
    assert {len(row) for row in rows} == {len(bench.HEADINGS)}
    assert "512x512" in bench.about(report)[1]
