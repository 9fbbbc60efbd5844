"""The optimizer of all training here: Muon for the weights in the middle of a network, AdamW for the rest.

Muon shares AdamW's learning rate. A convolution's kernel counts as the matrix (out, in * height * width).
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from training.masters import Masters
from training.muon import Muon
from training.ranks import Rank


class Optimizers:
    """Both, over a network's float32 masters; `matrices` names the parameters that go to Muon."""

    def __init__(self, masters: Masters, matrices: Collection[str], rate: float, rank: Rank) -> None:
        parameters = masters.parameters()
        rest = [value for name, value in parameters.items() if name not in matrices]
        self._rate = rate
        self._all: list[torch.optim.Optimizer] = [torch.optim.AdamW(rest, rate, betas=(0.9, 0.97), weight_decay=0.0)]
        if matrices:
            chosen = [_as_matrix(parameters[name]) for name in sorted(matrices)]
            self._all.append(Muon(chosen, rate, rank))

    def step(self, share: float) -> None:
        """One step of each at `share` of the highest rate."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = self._rate * share
            optimizer.step()

    def state_dict(self) -> dict[str, object]:
        """Of both, by number."""
        return {str(number): optimizer.state_dict() for number, optimizer in enumerate(self._all)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """What `state_dict` gave."""
        for number, optimizer in enumerate(self._all):
            optimizer.load_state_dict(state[str(number)])  # type: ignore[arg-type]


def _as_matrix(parameter: torch.Tensor) -> torch.Tensor:
    """The same memory, parameter and gradient alike, as (out, all the rest)."""
    if parameter.dim() == 2:
        return parameter
    assert parameter.grad is not None  # noqa: S101 - masters have their gradients from the start
    matrix = parameter.detach().flatten(1).requires_grad_()
    matrix.grad = parameter.grad.flatten(1)
    return matrix
