"""Muon (Jordan et al. 2024): momentum, made a matrix with singular values all alike, scaled as in arXiv 2502.16982.

torch's own computes in bfloat16 whatever the machine, and in every process the same. Here the number format is the
machine's fast one, and each process turns its share of the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from training import formats
from training.ranks import Rank

_MOMENTUM = 0.95
#: Five steps of a Newton-Schulz iteration towards singular values around 1, the coefficients Jordan's.
_STEPS, _A, _B, _C = 5, 3.4445, -4.7750, 2.0315
_SCALE = 0.2


class Muon(torch.optim.Optimizer):
    """Over float32 matrices with gradients that are the same in all processes."""

    def __init__(self, matrices: Sequence[Tensor], rate: float, rank: Rank) -> None:
        super().__init__(matrices, {"lr": rate})
        self._rank = rank

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; the processes share what each has computed."""
        assert closure is None  # noqa: S101 - nobody needs the loss again
        for group in self.param_groups:
            matrices: list[Tensor] = group["params"]
            sizes = [matrix.numel() for matrix in matrices]
            flat = torch.zeros(sum(sizes), device=matrices[0].device)
            parts = torch.split(flat, sizes)
            directions = [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]
            for number, (matrix, direction) in enumerate(zip(matrices, directions, strict=True)):
                heading = self._heading(matrix)
                if number % self._rank.size == self._rank.index:
                    direction.copy_(alike(heading))
            self._rank.average(flat)
            for matrix, direction in zip(matrices, directions, strict=True):
                length = _SCALE * max(matrix.shape) ** 0.5 * self._rank.size
                matrix.sub_(direction, alpha=group["lr"] * length)

    def _heading(self, matrix: Tensor) -> Tensor:
        """Nesterov's momentum: where the matrix goes, as a mixture of its last gradients."""
        state = self.state[matrix]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(matrix)
        assert matrix.grad is not None  # noqa: S101 - masters have their gradients from the start
        momentum: Tensor = state["momentum"].lerp_(matrix.grad, 1 - _MOMENTUM)
        return matrix.grad.lerp(momentum, _MOMENTUM)


def alike(matrix: Tensor) -> Tensor:
    """About the orthogonal part of (rows, columns): U V^T of its singular value decomposition."""
    wide = matrix.to(formats.fast(matrix.device.type))
    is_tall = matrix.shape[0] > matrix.shape[1]
    wide = wide.T if is_tall else wide
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_STEPS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide.T if is_tall else wide
