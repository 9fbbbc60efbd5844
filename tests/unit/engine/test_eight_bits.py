"""Layers that hold int8: how near they come, and that nothing runs over or depends on what is beside it."""

import pytest
import torch
from torch.nn import Linear

from fluxserve.engine import eight_bits


def held(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
    layer = Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    if bias is not None:
        layer.bias.data = bias
    eight_bits.hold(layer, weight, "int8")
    return layer.requires_grad_(requires_grad=False)


def test_products_of_the_largest_numbers_do_not_run_over() -> None:
    layer = held(torch.ones(32, 512))
    for sign in (1.0, -1.0):
        rows = torch.full((5, 512), 3.0 * sign)
        assert torch.allclose(eight_bits.multiply(layer, rows), torch.full((5, 32), 1536.0 * sign))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_near_and_in_the_numbers_it_came_in(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(64, 96) / 10, torch.randn(64)
    rows = (torch.randn(2, 7, 96) * torch.rand(2, 7, 1) * 50).to(dtype)
    exact = torch.nn.functional.linear(rows.float(), weight, bias)
    near = eight_bits.multiply(held(weight, bias), rows)
    assert near.dtype == dtype
    assert near.shape == exact.shape
    assert float((near.float() - exact).norm() / exact.norm()) < 0.02


def test_a_row_is_the_same_alone_and_among_others() -> None:
    torch.manual_seed(1)
    layer, rows = held(torch.randn(48, 80)), torch.randn(3, 33, 80)
    together = eight_bits.multiply(layer, rows)
    for number in range(3):
        assert torch.equal(eight_bits.multiply(layer, rows[number : number + 1]), together[number : number + 1])
    assert torch.equal(eight_bits.multiply(layer, rows[1, 5:6]), together[1, 5:6])


def test_zeros_stay_zeros_and_what_is_no_number_stays_none() -> None:
    layer = held(torch.zeros(8, 16))
    assert torch.equal(eight_bits.multiply(layer, torch.zeros(2, 16)), torch.zeros(2, 8))
    broken = torch.ones(3, 16)
    broken[0, 3], broken[1, 4] = float("nan"), float("inf")
    out = eight_bits.multiply(held(torch.randn(8, 16)), broken)
    assert not out[0].isfinite().any()
    assert not out[1].isfinite().any()
    assert out[2].isfinite().all()
