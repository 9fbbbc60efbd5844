"""The network as training calls it is the network as diffusers and transformers call it."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from diffusers import FluxPipeline  # noqa: E402
from small_house import WIDTH, awake, small_encoders, small_network, small_texts, small_tokenizers  # noqa: E402
from torch import Tensor  # noqa: E402

from training.network import Illustrator, Shape, Texts, build_transformer, pack, unpack  # noqa: E402

SHAPE = Shape(heads=2, double=2, single=2)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def inputs(count: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, sigmas, guidance."""
    return torch.randn(count, tokens, 64), torch.rand(count), 1 + 5 * torch.rand(count)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (9, 2)])
@torch.no_grad()
def test_the_forward_pass_equals_the_published_one(grid: tuple[int, int]) -> None:
    clip, t5 = (encoder.eval() for encoder in small_encoders(small_tokenizers()))
    transformer = awake(build_transformer(SHAPE, WIDTH, WIDTH))
    stock = copy.deepcopy((clip, t5, transformer))
    texts, (latents, sigmas, guidance) = small_texts(4), inputs(4, grid[0] * grid[1])
    expected = stock[2](
        hidden_states=latents,
        timestep=sigmas,
        guidance=guidance,
        pooled_projections=stock[0](texts.clip).pooler_output,
        encoder_hidden_states=stock[1](texts.t5)[0],
        txt_ids=torch.zeros(texts.t5.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(4, *grid, "cpu", torch.float32),
        return_dict=False,
    )[0]
    found = Illustrator(clip, t5, transformer)(latents, sigmas, guidance, texts, grid)
    assert float(expected.std()) > 0.1
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_wide_grid_is_not_a_high_one() -> None:
    network, texts, (latents, sigmas, guidance) = small_network(), small_texts(2), inputs(2, 12)
    wide = network(latents, sigmas, guidance, texts, (2, 6))
    assert not torch.allclose(wide, network(latents, sigmas, guidance, texts, (6, 2)), atol=1e-2)


@torch.no_grad()
def test_every_input_counts() -> None:
    network, texts, (latents, sigmas, guidance) = small_network(), small_texts(2), inputs(2, 16)
    found = network(latents, sigmas, guidance, texts, (4, 4))
    for other in (
        network(latents, sigmas.flip(0), guidance, texts, (4, 4)),
        network(latents, sigmas, guidance.flip(0), texts, (4, 4)),
        network(latents, sigmas, guidance, Texts(texts.clip.flip(0), texts.t5), (4, 4)),
        network(latents, sigmas, guidance, Texts(texts.clip, texts.t5.flip(0)), (4, 4)),
    ):
        assert float((found - other).abs().max()) > 1e-3


@torch.no_grad()
def test_a_picture_does_not_depend_on_the_texts_beside_it() -> None:
    network, texts, (latents, sigmas, guidance) = small_network(), small_texts(4), inputs(4, 16)
    together = network(latents, sigmas, guidance, texts, (4, 4))
    for row in range(4):
        one = slice(row, row + 1)
        alone = network(latents[one], sigmas[one], guidance[one], texts.rows(one), (4, 4))
        assert torch.allclose(alone, together[one], atol=1e-4)


def test_gradients_equal_those_of_the_published_forward_pass() -> None:
    network = small_network()
    stock = copy.deepcopy(network.transformer)
    stock.set_attn_processor(type(build_transformer(SHAPE, WIDTH, WIDTH).transformer_blocks[0].attn.processor)())
    texts, (latents, sigmas, guidance) = small_texts(2), inputs(2, 12)
    network(latents, sigmas, guidance, texts, (3, 4)).square().mean().backward()
    with torch.no_grad():
        pooled, sequence = network.clip(texts.clip).pooler_output, network.t5(texts.t5)[0]
    stock(
        hidden_states=latents,
        timestep=sigmas,
        guidance=guidance,
        pooled_projections=pooled,
        encoder_hidden_states=sequence,
        txt_ids=torch.zeros(texts.t5.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(2, 3, 4, "cpu", torch.float32),
        return_dict=False,
    )[0].square().mean().backward()
    for (name, found), expected in zip(network.transformer.named_parameters(), stock.parameters(), strict=True):
        assert found.grad is not None, name
        assert torch.allclose(found.grad, expected.grad, atol=1e-4, rtol=1e-3), name
    assert all(parameter.grad is not None for parameter in (*network.clip.parameters(), *network.t5.parameters()))


def test_an_untrained_transformer_predicts_nothing_whatever_it_is_given() -> None:
    clip, t5 = small_encoders(small_tokenizers())
    network = Illustrator(clip, t5, build_transformer(SHAPE, WIDTH, WIDTH))
    assert not network(*inputs(2, 16), small_texts(2), (4, 4)).any()


def test_packing_is_what_the_pipeline_does_and_unpacking_its_inverse() -> None:
    latents = torch.randn(2, 16, 6, 10)
    assert torch.equal(pack(latents), FluxPipeline._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(unpack(pack(latents), (3, 5)), latents)
    assert torch.equal(unpack(pack(latents), (3, 5)), FluxPipeline._unpack_latents(pack(latents), 384, 640, 64))


def test_texts_are_chosen_row_by_row() -> None:
    texts, silence = small_texts(4), small_texts(3).rows(slice(2, 3))
    chosen = texts.where(torch.tensor([True, False, True, False]), silence)
    for ids, own, other in ((chosen.clip, texts.clip, silence.clip), (chosen.t5, texts.t5, silence.t5)):
        assert torch.equal(ids, torch.stack([own[0], other[0], own[2], other[0]]))
    assert torch.equal(silence.repeat(3).t5, silence.t5.expand(3, -1))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
@torch.no_grad()
def test_compiled_blocks_compute_the_same() -> None:
    network, texts = small_network(), small_texts(4)
    calls = [(inputs(4, rows * columns), (rows, columns)) for rows, columns in ((4, 4), (3, 5), (2, 7))]
    plain = [network(*given, texts, grid) for given, grid in calls]
    network.compile_blocks()
    for (given, grid), expected in zip(calls, plain, strict=True):
        assert torch.allclose(network(*given, texts, grid), expected, atol=1e-4)
