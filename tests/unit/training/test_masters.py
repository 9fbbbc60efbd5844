"""Masters in float32, a network in bfloat16 that computes, and the average of both ways."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from training.masters import Masters  # noqa: E402


class Pair(nn.Module):
    """A matrix, a bias that is not trained, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.line = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.line.bias.requires_grad_(requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        """(B, 4) -> (B, 3)."""
        scaled: Tensor = self.line(values) * self.scale
        return scaled


def started() -> tuple[Pair, Masters]:
    network = Pair()
    return network, Masters(network, torch.bfloat16)


def test_what_computes_is_bfloat16_and_what_is_trained_float32() -> None:
    network, masters = started()
    exact = Pair()
    assert network.line.weight.dtype == network.line.bias.dtype == torch.bfloat16
    assert set(masters.parameters()) == {"line.weight", "scale"}
    assert torch.equal(masters.parameters()["line.weight"], exact.line.weight)
    assert torch.equal(masters.averages()["line.weight"], exact.line.weight)


def test_gradients_move_into_one_flat_buffer_and_to_the_right_master() -> None:
    network, masters = started()
    network(torch.ones(2, 4, dtype=torch.bfloat16)).sum().backward()
    expected = network.line.weight.grad, network.scale.grad
    masters.gather()
    assert network.line.weight.grad is None
    found = masters.parameters()
    for name, gradient in zip(("line.weight", "scale"), expected, strict=True):
        assert gradient is not None
        assert torch.equal(found[name].grad, gradient.float())
    masters.gradient.zero_()
    assert not found["line.weight"].grad.any()


def test_steps_too_small_for_bfloat16_add_up() -> None:
    network, masters = started()
    optimizer = torch.optim.SGD(masters.parameters().values(), lr=1.0)
    for _ in range(10):
        masters.gradient.fill_(0.001)
        optimizer.step()
    assert torch.allclose(masters.parameters()["scale"], torch.full((3,), 0.99))
    assert torch.equal(network.scale, torch.ones(3, dtype=torch.bfloat16))
    masters.publish()
    assert torch.equal(network.scale, torch.full((3,), 0.99).bfloat16())


def test_the_average_follows_and_is_taught() -> None:
    _, masters = started()
    masters.parameters()["scale"].data.fill_(2.0)
    masters.follow(0.75)
    assert torch.allclose(masters.averages()["scale"], torch.full((3,), 1.25))
    assert torch.equal(masters.parameters()["scale"], torch.full((3,), 2.0))
    pupil = Pair().bfloat16()
    masters.teach(pupil)
    assert torch.equal(pupil.scale, torch.full((3,), 1.25, dtype=torch.bfloat16))


def test_averages_are_copies() -> None:
    _, masters = started()
    taken = masters.averages()
    masters.parameters()["scale"].data.fill_(9.0)
    masters.follow(0.0)
    assert torch.equal(taken["scale"], torch.ones(3))


def test_weights_taken_are_masters_average_and_what_computes() -> None:
    network, masters = started()
    masters.take({"scale": torch.full((3,), 1.3), "line.weight": torch.zeros(3, 4)})
    for found in (masters.parameters()["scale"], masters.averages()["scale"]):
        assert torch.equal(found, torch.full((3,), 1.3))
    assert torch.equal(network.scale, torch.full((3,), 1.3).bfloat16())
    assert masters.parameters()["scale"].requires_grad


def test_a_state_comes_back_and_is_published() -> None:
    _, masters = started()
    masters.parameters()["scale"].data.fill_(3.0)
    masters.follow(0.5)
    state = {name: value.clone() for name, value in masters.state_dict().items()}
    network, others = started()
    others.load_state_dict(state)
    assert torch.equal(network.scale, torch.full((3,), 3.0, dtype=torch.bfloat16))
    assert torch.equal(others.averages()["scale"], torch.full((3,), 2.0))
    assert torch.equal(others.parameters()["scale"], torch.full((3,), 3.0))
