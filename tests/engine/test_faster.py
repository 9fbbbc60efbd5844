"""What makes transformers faster computes what plain ones do: the published classes at tiny sizes, on a CPU."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from itertools import product

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from flux2_folders import tiny_autoencoder, tiny_transformer
from tiny import tiny_networks
from torch import Tensor
from torch._dynamo import register_backend
from torch.fx import GraphModule
from torch.nn import Linear, Module

from fluxserve.engine import eight_bits, lora
from fluxserve.engine.faster import eighths, plainly, prepare, prepare_decoder, switch_of
from fluxserve.engine.faster.fused import Part
from fluxserve.engine.faster.graphs import record_passes
from fluxserve.engine.faster.switch import Learning
from fluxserve.engine.lora import Change, Lora
from fluxserve.engine.moving import tensors_of
from fluxserve.engine.speed import PLAIN, Speed
from fluxserve.settings import AttentionChoice

TEXT = 24
compiled: list[int] = []


@register_backend(name="counting")
def _counting(graph: GraphModule, _: list[Tensor]) -> Callable[..., object]:
    """What was compiled runs as it is; how often something was is counted."""
    compiled.append(1)
    return graph.forward


COUNTED = Speed(compiled=True, backend="counting")


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    compiled.clear()
    yield
    torch.compiler.reset()


def network(family: str) -> Module:
    """FLUX.1's or FLUX.2's transformer with random weights, always the same."""
    torch.manual_seed(2)
    made = tiny_networks()[0] if family == "flux1" else tiny_transformer(guidance_embeds=True)
    return made.eval().requires_grad_(requires_grad=False)


def prepared(family: str, speed: Speed = PLAIN) -> Module:
    made = network(family)
    prepare(made, speed)
    return made


def velocity(transformer: Module, rows: int = 1, tokens: int = 48, words: int = TEXT, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    is_flux2 = isinstance(transformer, Flux2Transformer2DModel)
    axes = 4 if is_flux2 else 3
    places, no_places = torch.zeros(tokens, axes), torch.zeros(words, axes)
    places[:, 1], places[:, 2] = torch.arange(tokens) // 8, torch.arange(tokens) % 8
    width = transformer.config.joint_attention_dim
    more = {} if is_flux2 else {"pooled_projections": torch.randn(rows, 32, generator=draw)}
    with torch.inference_mode():
        found: Tensor = transformer(
            hidden_states=torch.randn(rows, tokens, transformer.config.in_channels, generator=draw),
            encoder_hidden_states=torch.randn(rows, words, width, generator=draw),
            timestep=torch.linspace(0.3, 0.9, rows),
            guidance=torch.full((rows,), 3.5),
            img_ids=places,
            txt_ids=no_places,
            return_dict=False,
            **more,
        )[0]
    return found


FAMILIES = pytest.mark.parametrize("family", ["flux1", "flux2"])
#: Where something is compiled, which takes seconds, one of them by default.
ONE_FAMILY = pytest.mark.parametrize("family", [pytest.param("flux1", marks=pytest.mark.long), "flux2"])


@FAMILIES
@pytest.mark.parametrize("rows", [1, 3])
def test_fused_projections_are_the_same_map_with_the_same_weights_once(family: str, rows: int) -> None:
    plain, fused = prepared(family), prepared(family, Speed(fused=True))
    assert any(isinstance(layer, Part) for layer in fused.modules())
    torch.testing.assert_close(velocity(fused, rows), velocity(plain, rows), atol=1e-5, rtol=0)
    assert sum(one.numel() for one in tensors_of(fused)) == sum(one.numel() for one in tensors_of(plain))


@FAMILIES
@pytest.mark.parametrize("choice", ["flash", "math"])
def test_each_kernel_of_attention_computes_what_torch_chooses(family: str, choice: AttentionChoice) -> None:
    fast = prepared(family, Speed(attention=choice))
    torch.testing.assert_close(velocity(fast, 2), velocity(prepared(family), 2), atol=1e-5, rtol=0)


@pytest.mark.long
@FAMILIES
def test_compiled_blocks_compute_what_plain_ones_do(family: str) -> None:
    fast = prepared(family, Speed(compiled=True, backend="aot_eager", fused=True))
    with switch_of(fast).learning(Learning.ALONE):
        velocity(fast)
    for rows, tokens in ((1, 48), (1, 40), (2, 56)):
        expected = velocity(prepared(family), rows, tokens)
        torch.testing.assert_close(velocity(fast, rows, tokens), expected, atol=1e-3, rtol=0)


@ONE_FAMILY
def test_a_compiled_decoder_makes_the_pictures_of_the_plain_one(family: str) -> None:
    torch.manual_seed(2)
    plain = (tiny_networks()[1] if family == "flux1" else tiny_autoencoder()).eval()
    fast = deepcopy(plain)
    switch = prepare_decoder(fast, Speed(compiled=True, backend="aot_eager", channels_last=True))
    for learns, side in ((Learning.ALONE, 8), (Learning.NOTHING, 12)):
        latents = torch.randn(1, plain.config.latent_channels, side, side)
        with torch.inference_mode(), switch.learning(learns):
            expected, found = (one.decode(latents, return_dict=False)[0] for one in (plain, fast))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("family", "counts"),
    [
        pytest.param("flux1", (1,), marks=pytest.mark.long),
        pytest.param("flux1", (2, 1, 3, 5), marks=pytest.mark.long),
        pytest.param("flux2", (2, 3, 5)),
        pytest.param("flux2", (1,), marks=pytest.mark.long),
    ],
)
def test_no_new_size_is_compiled_for_once_warm(family: str, counts: tuple[int, ...]) -> None:
    fast, plain = prepared(family, COUNTED), prepared(family)
    with switch_of(fast).learning(Learning.ALONE):
        velocity(fast)
    like_the_width = fast.inner_dim - TEXT  # what is equal by chance may not stay so
    for rows in {counts[0], min(counts)}:
        velocity(fast, rows, like_the_width)
    warm = len(compiled)
    assert warm
    for rows, tokens, words in product(counts, (16, 24, 48, 64, 72), (16, TEXT)):
        found = velocity(fast, rows, tokens, words)
        torch.testing.assert_close(found, velocity(plain, rows, tokens, words), atol=1e-3, rtol=0)
    assert len(compiled) == warm


def test_blocks_of_a_kind_share_their_kernels_however_many_there_are() -> None:
    fast = tiny_transformer(guidance_embeds=True, blocks=(2, 3)).eval().requires_grad_(requires_grad=False)
    prepare(fast, replace(COUNTED, fused=True, attention="flash"))
    with switch_of(fast).learning(Learning.ALONE):
        velocity(fast)
    assert len(compiled) == 2


@ONE_FAMILY
def test_exchanged_weights_are_what_is_drawn_with_and_nothing_is_compiled_again(family: str) -> None:
    with torch.inference_mode():  # as engines load and move them
        fast = prepared(family, COUNTED)
        with switch_of(fast).learning(Learning.ALONE):
            before = velocity(fast)
        warm = len(compiled)
        usual = [(tensor, tensor.data) for tensor in tensors_of(fast)]
        for tensor, data in usual:
            tensor.data = data * 1.1
        assert not velocity(fast).equal(before)
        for tensor, data in usual:
            tensor.data = data.clone()
        assert velocity(fast).equal(before)
    assert len(compiled) == warm


@ONE_FAMILY
def test_the_numbers_of_an_exact_pass_are_not_compiled_for(family: str) -> None:
    fast = prepared(family, COUNTED).to(torch.bfloat16)
    with switch_of(fast).learning(Learning.ALONE):
        fast.forward(**_in_bfloat16(fast))
    warm = len(compiled)
    exact = fast.to(torch.float32)
    velocity(exact)
    assert len(compiled) == warm


def _in_bfloat16(transformer: Module) -> dict[str, object]:
    """What `velocity` hands over, in 16 bits."""
    kept: dict[str, object] = {}

    def keep(_: Module, __: object, inputs: dict[str, object]) -> None:
        kept.update(inputs)

    hook = transformer.register_forward_pre_hook(keep, with_kwargs=True)
    with plainly(transformer, when=True):
        velocity(transformer.float())
    hook.remove()
    transformer.to(torch.bfloat16)
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
    return {name: one.bfloat16() if name in names and isinstance(one, Tensor) else one for name, one in kept.items()}


@ONE_FAMILY
def test_a_fine_tune_changes_a_part_of_a_fused_layer_and_leaves_the_rest_out(family: str) -> None:
    torch.manual_seed(5)
    layer = "transformer_blocks.0.attn.to_k"
    wide = network(family).get_submodule(layer)
    assert isinstance(wide, Linear)
    change = Change(down=0.3 * torch.randn(2, wide.in_features), up=0.3 * torch.randn(wide.out_features, 2))
    plain, fast = prepared(family), prepared(family, Speed(fused=True, compiled=True, backend="counting"))
    with switch_of(fast).learning(Learning.ALONE):
        before = velocity(fast)
    warm = len(compiled)
    drawn = []
    for one in (plain, fast):
        with plainly(one, when=True), lora.applied(one, Lora(changes={layer: change}), 0.8):
            drawn.append(velocity(one))
    assert drawn[0].equal(drawn[1])
    assert (drawn[0] - before).abs().max() > 1e-3
    assert velocity(fast).equal(before)
    assert len(compiled) == warm


@FAMILIES
def test_passes_are_replayed_with_their_own_inputs_and_recorded_anew_for_other_weights(family: str) -> None:
    recorded: list[int] = []

    def on_cpu(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """A record as a GPU makes one: fixed memory that is read, fixed memory that is written."""
        recorded.append(1)
        output = call().clone()

        def replay() -> None:
            output.copy_(call())

        return replay, output

    plain, fast = prepared(family), prepared(family)
    record_passes(fast, switch_of(fast), on_cpu)
    velocity(fast)
    assert not recorded  # not learnt
    with switch_of(fast).learning(Learning.COMPANY):
        for rows, tokens in ((1, 48), (2, 48), (1, TEXT)):
            velocity(fast, rows, tokens)
    assert len(recorded) == 3
    for rows, tokens, seed in product((1, 2), (48, TEXT, 32), range(2)):
        assert velocity(fast, rows, tokens, seed=seed).equal(velocity(plain, rows, tokens, seed=seed))
    first = velocity(fast)
    second = velocity(fast, seed=9)
    assert first.equal(velocity(plain))  # what was answered is not written over
    assert not second.equal(first)
    with plainly(fast, when=True):
        assert velocity(fast).equal(first)
    assert len(recorded) == 3
    with torch.inference_mode():
        for tensor in tensors_of(fast):
            tensor.data = tensor.data.clone()
    assert velocity(fast).equal(first)
    assert len(recorded) == 4
    switch_of(fast).forget()
    assert velocity(fast).equal(first)
    assert len(recorded) == 5


def eighth(seed: int = 0, width: int = 64, out: int = 96) -> Linear:
    torch.manual_seed(seed)
    layer = Linear(width, out)
    eight_bits.hold(layer, layer.weight.data, "float8")
    return layer


def test_products_in_8_bits_are_those_of_torchs_own_kernel() -> None:
    layer = eighth()
    rows = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    bits, scales = eighths.quantised(rows)
    own = [
        torch._scaled_mm(
            bits[row], layer.weight.t(), scales[row], eight_bits.scale_of(layer).float().t(), out_dtype=torch.bfloat16
        )
        for row in range(2)
    ]
    found = eighths.multiply(layer, rows, apart=True) - layer.bias
    torch.testing.assert_close(found.float(), torch.stack(own).float(), atol=2e-2, rtol=1e-2)


def test_products_in_8_bits_are_as_near_as_is_stated() -> None:
    layer, rows = eighth(), torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(1))
    exact = rows @ eight_bits.weight_of(layer).t() + layer.bias
    found = eighths.multiply(layer, rows, apart=True)
    # Each number of a token is off by at most a sixteenth of itself, most by far less.
    bound = (rows.abs() / 16) @ eight_bits.weight_of(layer).abs().t()
    assert ((found - exact).abs() <= bound + 1e-4).all()
    assert (found - exact).norm() / exact.norm() < 0.03


def test_a_token_of_zeros_stays_one() -> None:
    layer = eighth()
    assert eighths.multiply(layer, torch.zeros(1, 3, 64), apart=True).equal(layer.bias.expand(1, 3, -1))


@FAMILIES
def test_rows_of_8_bits_are_kept_apart_and_float32_weights_are_multiplied_as_usual(family: str) -> None:
    made = network(family)
    _hold_blocks(made)
    prepare(made, Speed(float8=True, fused=True))
    reference = network(family)
    _hold_blocks(reference)
    prepare(reference, PLAIN)
    together, alone = velocity(made, 3), velocity(made, 1)
    assert alone.shape == together[:1].shape
    expected = velocity(reference, 3)
    off_by = float((together - expected).norm() / expected.norm())
    assert 0 < off_by < 0.1
    with plainly(made, when=True):
        torch.testing.assert_close(velocity(made, 3), expected, atol=1e-5, rtol=0)


def _hold_blocks(transformer: Module) -> None:
    for lists in ("transformer_blocks", "single_transformer_blocks"):
        for layer in transformer.get_submodule(lists).modules():
            if isinstance(layer, Linear):
                eight_bits.hold(layer, layer.weight.data, "float8")
