"""What makes networks faster, on the device it is made for: near the plain way, and the numerics contract with each."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Event, Finished
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.speed import Speed
from fluxserve.settings import AttentionChoice, Settings, SpeedWord

pytestmark = pytest.mark.gpu
sys.path += [str(Path(__file__).parents[2] / "benchmarks" / "gpu")]
COMPILED = Speed(compiled=True, fused=True)
#: Each with how far two blocks of each kind may be from float32, in lengths of that.
SPEEDS = {
    "plain": (Speed(), 0.05),
    "fused": (Speed(fused=True), 0.05),
    "cudnn": (Speed(attention="cudnn"), 0.05),
    "flash": (Speed(attention="flash"), 0.05),
    "efficient": (Speed(attention="efficient"), 0.05),
    "math": (Speed(attention="math"), 0.05),
    "compiled": (Speed(compiled=True), 0.05),
    "all": (replace(COMPILED, attention="cudnn", graphs=True), 0.05),
    "float8": (replace(COMPILED, attention="cudnn", float8=True), 0.15),
}
WORDS: list[tuple[SpeedWord, ...]] = [("graphs",), ("fused", "channels-last"), ("compiled", "fused", "graphs")]


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    import torch

    yield
    torch.compiler.reset()


@pytest.mark.parametrize("model", ["FLUX.1-dev", "FLUX.2-klein-4B"])
@pytest.mark.parametrize("name", SPEEDS)
def test_blocks_of_the_published_width_are_near_float32(model: str, name: str, tmp_path: Path) -> None:
    import lab

    bench = replace(lab.begin("", ["--out", str(tmp_path / "results")]), model=model)
    speed, far = SPEEDS[name]
    assert lab.off_by(bench, speed, 512) < far


@pytest.mark.parametrize("attention", ["torch", "cudnn"])
def test_a_size_that_was_never_seen_is_not_compiled_for(attention: AttentionChoice, tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    import lab

    bench = replace(lab.begin("", ["--out", str(tmp_path / "results")]), model="FLUX.1-dev")
    network = lab.made_fast(bench, replace(COMPILED, attention=attention), thin=True)
    lab.warm(network, lab.inputs(bench, network, 512))
    for rows in (1, 2):
        lab.passed(network, lab.inputs(bench, network, 576, rows))
    compiled = counters["stats"]["unique_graphs"]
    for size, rows in ((512, 1), (640, 1), (720, 3), (1024, 1), (256, 4)):
        lab.passed(network, lab.inputs(bench, network, size, rows))
    assert counters["stats"]["unique_graphs"] == compiled


def test_a_recorded_pass_has_the_bits_of_the_pass_and_follows_weights_that_are_moved(tmp_path: Path) -> None:
    import torch

    import lab
    from fluxserve.engine.moving import tensors_of

    bench = replace(lab.begin("", ["--out", str(tmp_path / "results")]), model="FLUX.2-klein-4B")
    plain, recorded = (lab.made_fast(bench, speed, thin=True) for speed in (Speed(), Speed(graphs=True)))
    given = lab.inputs(bench, plain, 256)
    expected = lab.passed(plain, given)
    lab.warm(recorded, given)
    for _ in range(3):
        assert lab.passed(recorded, given).equal(expected)
    with torch.inference_mode():
        for tensor in tensors_of(recorded):
            tensor.data = tensor.data.clone()
    assert lab.passed(recorded, given).equal(expected)


def _generation(seed: int) -> Generation:
    return Generation(
        model="flux-dev", prompt="a red apple", size=Size(512, 512), seed=seed, steps=6, guidance=3.5,
        output_format="png",
    )  # fmt: skip


def _drawn(engine: DiffusionEngine, *generations: Generation) -> list[object]:
    for generation in generations:
        engine.admit(str(generation.seed), generation)
    done: dict[str, object] = {}
    while engine.active:
        done |= {one.ref: one.facts["pixels_sha256"] for one in engine.step() if isinstance(one, Finished)}
    return [done[str(generation.seed)] for generation in generations]


@pytest.mark.parametrize("words", WORDS)
def test_the_numerics_contract_holds_with_what_is_made_faster(words: tuple[SpeedWord, ...]) -> None:
    engines = [DiffusionEngine(Settings(device="cuda", speed=words)) for _ in range(2)]
    for engine in engines:
        engine.warm()
    assert engines[0].fingerprints == engines[1].fingerprints
    one, other = engines
    alone = [_drawn(one, _generation(seed))[0] for seed in range(3)]
    assert _drawn(one, *map(_generation, range(3))) == alone
    one.admit("a", _generation(0))
    for _ in range(3):
        while not one.step():
            pass  # its prompt is being read
    saved = one.save("a")
    assert saved is not None
    other.admit("b", _generation(0), saved)
    events: list[Event] = []
    while other.active:
        events += other.step()
    assert [event.facts["pixels_sha256"] for event in events if isinstance(event, Finished)] == alone[:1]
