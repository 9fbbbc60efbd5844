"""Pictures drawn with what makes networks faster, whole, with tiny real networks on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flux2_folders import build_klein
from safetensors.torch import save_file
from tiny import CPU, TINY_TOKENS
from torch._dynamo import register_backend

from fluxserve.catalogue import Finetune, Generation, Size
from fluxserve.engine.checkpoints import Checkpoint, find
from fluxserve.engine.company import Freely, without
from fluxserve.engine.drawer import Drawer, open_drawer
from fluxserve.engine.fingerprint import fingerprint
from fluxserve.engine.forward import ALONE, Company
from fluxserve.engine.means import Means
from fluxserve.engine.planning import fit, planned
from fluxserve.engine.plans import PLANS
from fluxserve.engine.speed import PLAIN, Speed
from fluxserve.engine.trajectory import Trajectory
from fluxserve.engine.warming import warm, warm_company
from fluxserve.errors import MemoryTooSmall

APPLE = Generation(
    model="flux-dev", prompt="a red apple", size=Size(256, 256), seed=7, steps=4, guidance=3.5, output_format="png"
)
FUSED = Speed(fused=True, attention="flash")
EXACT = Means(exact=True)


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return find(str(build_klein(tmp_path_factory.mktemp("weights") / "klein", is_distilled=True)))


def opened(checkpoint: Checkpoint, speed: Speed, **more: object) -> Drawer:
    with torch.inference_mode():
        return open_drawer(checkpoint, replace(CPU, speed=speed, **more))  # type: ignore[arg-type]


def drawn(drawer: Drawer, wanted: Generation = APPLE, means: Means | None = None) -> Trajectory:
    with torch.inference_mode():
        trajectory = drawer.start("a", wanted, 0, means or Means())
        while not trajectory.is_done:
            trajectory = trajectory.moved(drawer.velocities([trajectory])[0])
        return trajectory


def facts(drawer: Drawer, trajectory: Trajectory) -> dict[str, object]:
    with torch.inference_mode():
        return dict(drawer.finish(trajectory, trajectory.means).facts)


@pytest.mark.parametrize("name", ["dev", pytest.param("klein", marks=pytest.mark.long)])
def test_a_picture_is_the_plain_one_but_for_rounding_under_a_fingerprint_of_its_own(
    checkpoints: dict[str, Checkpoint], drawers: dict[str, Drawer], klein: Checkpoint, name: str
) -> None:
    checkpoint = klein if name == "klein" else checkpoints[name]
    plain = opened(klein, PLAIN) if name == "klein" else drawers[name]
    fast = opened(checkpoint, FUSED)
    assert fast.fingerprint != plain.fingerprint
    assert fast.speed == FUSED
    torch.testing.assert_close(drawn(fast).latents, drawn(plain).latents, atol=1e-4, rtol=0)


def test_a_picture_that_is_drawn_once_more_in_float32_is_drawn_plainly(
    checkpoints: dict[str, Checkpoint], drawers: dict[str, Drawer]
) -> None:
    fast = opened(checkpoints["dev"], FUSED, dtype="bfloat16")
    plain = opened(checkpoints["dev"], PLAIN, dtype="bfloat16")
    assert drawn(fast, means=EXACT).latents.equal(drawn(plain, means=EXACT).latents)
    assert drawn(drawers["dev"]).latents.dtype is torch.float32


def test_a_fine_tune_of_a_fused_layer_draws_what_it_draws_plainly(
    checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    import hashlib

    layer, file = "transformer.transformer_blocks.0.attn.to_k", tmp_path / "style.safetensors"
    torch.manual_seed(3)
    save_file({f"{layer}.lora_A.weight": torch.randn(2, 32), f"{layer}.lora_B.weight": torch.randn(32, 2)}, file)
    finetune = Finetune(name="style", sha256=hashlib.sha256(file.read_bytes()).hexdigest(), strength=1.0)
    wanted = replace(APPLE, finetune=finetune)
    both = [opened(checkpoints["dev"], speed, finetunes=tmp_path, finetune_cache=2**20) for speed in (FUSED, PLAIN)]
    fast, plain = (drawn(one, wanted).latents for one in both)
    assert fast.equal(plain)
    in_8_bits = opened(
        checkpoints["dev"],
        Speed(float8=True, throughput=True),
        finetunes=tmp_path, finetune_cache=2**20, memory_plan="float8", token_budget=2 * TINY_TOKENS,
    )  # fmt: skip
    assert set(facts(in_8_bits, drawn(in_8_bits))) >= {"linears", "numerics"}
    assert not set(facts(in_8_bits, drawn(in_8_bits, wanted))) & {"linears", "numerics"}
    assert not fast.equal(drawn(both[1]).latents)


def test_fused_weights_that_take_turns_or_come_by_blocks_draw_the_same_bits(
    checkpoints: dict[str, Checkpoint], drawers: dict[str, Drawer]
) -> None:
    from fluxserve.engine.networks.flux1 import Flux1
    from fluxserve.engine.weights import load

    usual = opened(checkpoints["dev"], FUSED)
    expected = drawn(usual).latents
    for plan in ("turns", "blocks", "float8-blocks"):
        parts = load(checkpoints["dev"].path, replace(CPU, plan=PLANS[plan], speed=FUSED))
        moved = replace(usual, network=Flux1(checkpoints["dev"], parts))
        with torch.inference_mode():
            latents = drawn(moved).latents
        assert latents.isfinite().all()
        assert latents.equal(expected) == ("float8" not in plan)


def test_rows_in_8_bits_are_drawn_in_company_as_alone_and_told_of(checkpoints: dict[str, Checkpoint]) -> None:
    eighths = Speed(float8=True, fused=True)
    drawer = opened(checkpoints["dev"], eighths, token_budget=3 * TINY_TOKENS, memory_plan="float8")
    assert drawer.company[Size(256, 256)] == Company(most=3)
    assert facts(drawer, drawn(drawer))["linears"] == "float8-dynamic"
    assert "linears" not in facts(drawer, drawn(drawer, means=EXACT))  # whose products are of float32
    weight_only = opened(checkpoints["dev"], PLAIN, memory_plan="float8")
    found, expected = drawn(drawer).latents, drawn(weight_only).latents
    assert 0 < (found - expected).norm() / expected.norm() < 0.05


def test_8_bits_for_tokens_are_8_bits_for_weights(checkpoints: dict[str, Checkpoint]) -> None:
    eighths = replace(CPU, speed=Speed(float8=True), memory=2**40, memory_plan="auto")
    assert fit(checkpoints["dev"], eighths).plan.name == "float8"
    with pytest.raises(MemoryTooSmall, match="float8-dynamic"):
        fit(checkpoints["dev"], replace(eighths, memory_plan="resident"))


def test_what_fails_at_the_start_is_left_out_and_pictures_are_drawn_plainly(
    checkpoints: dict[str, Checkpoint], drawers: dict[str, Drawer]
) -> None:
    drawer = opened(checkpoints["dev"], Speed(compiled=True, backend="broken", fused=True))
    torch.compiler.reset()
    assert drawer.speed == PLAIN
    assert drawer.fingerprint == drawers["dev"].fingerprint
    assert drawn(drawer).latents.equal(drawn(drawers["dev"]).latents)


def test_what_comes_out_otherwise_at_the_start_is_left_out(
    checkpoints: dict[str, Checkpoint], drawers: dict[str, Drawer]
) -> None:
    drawer = opened(checkpoints["dev"], Speed(compiled=True, backend="wrong"))
    torch.compiler.reset()
    assert drawer.speed == PLAIN
    assert drawn(drawer).latents.equal(drawn(drawers["dev"]).latents)


def test_a_compiled_decoder_that_draws_something_else_is_left_out(
    checkpoints: dict[str, Checkpoint], drawers: dict[str, Drawer], caplog: pytest.LogCaptureFixture
) -> None:
    drawer = opened(checkpoints["dev"], Speed(compiled=True, backend="wrong pictures"))
    torch.compiler.reset()
    assert "of 255 from the plain one" in caplog.text
    assert drawer.speed == PLAIN
    trajectory = drawn(drawer)
    assert facts(drawer, trajectory)["pixels_sha256"] == facts(drawers["dev"], trajectory)["pixels_sha256"]


def test_where_compiled_passes_fail_in_company_each_picture_is_drawn_alone(
    checkpoints: dict[str, Checkpoint], caplog: pytest.LogCaptureFixture
) -> None:
    drawer = opened(checkpoints["dev"], Speed(compiled=True, backend="for one"), token_budget=2 * TINY_TOKENS)
    assert drawer.speed.compiled
    assert not drawer.company
    assert "each is drawn alone" in caplog.text
    assert drawn(drawer).is_done
    with torch.inference_mode():
        company = {APPLE.size: Company(most=2)}
        failed = warm_company(drawer.checkpoint, drawer.network, company, drawer.runtime)
    torch.compiler.reset()
    assert failed == {APPLE.size}
    assert without(company, failed) == {}


def test_for_throughput_a_size_that_fails_in_company_is_drawn_alone_and_others_are_not(
    checkpoints: dict[str, Checkpoint],
) -> None:
    company = without(Freely(checkpoints["dev"], 4 * TINY_TOKENS), {APPLE.size})
    assert company[APPLE.size] == ALONE
    assert company[Size(288, 224)].most == 4


@register_backend(name="broken")
def _broken(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> object:
    """A compiler that finds no tool of its own."""
    raise RuntimeError(f"no kernels for {len(graph.graph.nodes)} operations")


@register_backend(name="wrong")
def _wrong(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> object:
    """A compiler with a fault."""
    return lambda *inputs: tuple(2 * one for one in graph(*inputs))


@register_backend(name="wrong pictures")
def _wrong_pictures(graph: torch.fx.GraphModule, _: Sequence[torch.Tensor]) -> object:
    """A compiler with a fault in convolutions."""
    has_fault = any("conv" in str(node.target) for node in graph.graph.nodes)
    return (lambda *inputs: tuple(2 * one for one in graph(*inputs))) if has_fault else graph.forward


@register_backend(name="for one")
def _for_one(graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor]) -> object:
    """A compiler that has no kernels for more than one picture."""
    if any(isinstance(one, torch.Tensor) and one.ndim == 3 and one.shape[0] != 1 for one in inputs):
        raise RuntimeError("no kernels for two")
    return graph.forward


@pytest.mark.long
def test_a_compiled_picture_is_the_plain_one_but_for_rounding(
    checkpoints: dict[str, Checkpoint], drawers: dict[str, Drawer]
) -> None:
    fast = opened(checkpoints["dev"], Speed(compiled=True, fused=True, channels_last=True))
    assert fast.speed.compiled, "the compiler failed: see the log"
    torch.testing.assert_close(drawn(fast).latents, drawn(drawers["dev"]).latents, atol=1e-3, rtol=0)


def test_weights_that_come_and_go_at_each_step_are_not_compiled_for(checkpoints: dict[str, Checkpoint]) -> None:
    runtime = replace(CPU, device="cuda", memory=2**40, memory_plan="blocks", speed=Speed(compiled=True, graphs=True))
    assert planned(runtime, fit(checkpoints["dev"], runtime)).speed == PLAIN


def test_for_throughput_pictures_of_any_size_share_passes_and_say_so(checkpoints: dict[str, Checkpoint]) -> None:
    tokens = 4 * TINY_TOKENS
    drawer = opened(checkpoints["dev"], Speed(throughput=True), token_budget=tokens)
    exact = opened(checkpoints["dev"], PLAIN, token_budget=tokens)
    odd = Size(288, 224)
    assert drawer.company[odd].most == 4
    assert exact.company.get(odd, ALONE) == ALONE
    assert drawer.fingerprint != exact.fingerprint
    wanted = [replace(APPLE, size=odd, seed=seed) for seed in range(4)]
    with torch.inference_mode():
        together = [drawer.start(str(one.seed), one, 0) for one in wanted]
        while not together[0].is_done:
            velocities = drawer.velocities(together)
            together = [one.moved(velocity) for one, velocity in zip(together, velocities, strict=True)]
    for one, trajectory in zip(wanted, together, strict=True):
        torch.testing.assert_close(trajectory.latents, drawn(exact, one).latents, atol=1e-3, rtol=0)
        assert facts(drawer, trajectory)["numerics"] == "throughput"
    assert "numerics" not in facts(exact, drawn(exact))


def test_layers_that_have_no_widths_for_8_bits_are_not_said_to_multiply_in_them(
    checkpoints: dict[str, Checkpoint],
) -> None:
    drawer = opened(checkpoints["dev"], Speed(float8=True), memory_plan="float8")
    assert drawer.speed.float8
    for layer in drawer.network.transformer.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.in_features += 1
    assert not warm(drawer.checkpoint, drawer.network, drawer.runtime).speed.float8


def test_each_choice_has_a_fingerprint_of_its_own() -> None:
    speeds = [
        PLAIN,
        FUSED,
        Speed(compiled=True),
        Speed(compiled=True, backend="aot_eager"),
        Speed(graphs=True),
        Speed(channels_last=True),
        Speed(float8=True),
        Speed(throughput=True),
        Speed(step_cache="taylor"),
        Speed(step_cache="first-block"),
    ]
    assert len({fingerprint("weights", replace(CPU, speed=speed), {}) for speed in speeds}) == len(speeds)
