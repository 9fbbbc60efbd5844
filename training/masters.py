"""Parameters trained in float32 and used in another format, with a moving average: three flat buffers, a view for each.

A flat buffer makes averaging between processes, clipping and the moving average one call each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn


class Masters:
    """`used` computes, in `dtype`; `values` are its float32 masters, `average` their moving average (same order).

    The optimizer works on `parameters()`, whose gradients `gather()` copies from the network's.
    """

    def __init__(self, used: nn.Module, dtype: torch.dtype) -> None:
        self._used = [(name, parameter) for name, parameter in used.named_parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for _, parameter in self._used]
        self.values = torch.cat([parameter.detach().float().reshape(-1) for _, parameter in self._used])
        self.average = self.values.clone()
        self.gradient = torch.zeros_like(self.values)
        self._views = self._split(self.values, sizes)
        for view, gradient in zip(self._views, self._split(self.gradient, sizes), strict=True):
            view.requires_grad_()
            view.grad = gradient
        self._averages = self._split(self.average, sizes)
        used.to(dtype)

    def parameters(self) -> Mapping[str, Tensor]:
        """The float32 masters by the names of the network's parameters; each has its gradient."""
        return {name: view for (name, _), view in zip(self._used, self._views, strict=True)}

    def gather(self) -> None:
        """Move the network's gradients into `gradient`."""
        for (_, parameter), view in zip(self._used, self._views, strict=True):
            cast("Tensor", view.grad).copy_(cast("Tensor", parameter.grad))
            parameter.grad = None

    def publish(self) -> None:
        """Copy the masters into the network that computes."""
        with torch.no_grad():
            torch._foreach_copy_([parameter for _, parameter in self._used], self._views)

    def follow(self, decay: float) -> None:
        """Move the average towards the masters."""
        self.average.lerp_(self.values, 1 - decay)

    def teach(self, network: nn.Module) -> None:
        """Copy the average into a network with the same parameters."""
        parameters = dict(network.named_parameters())
        with torch.no_grad():
            torch._foreach_copy_([parameters[name] for name, _ in self._used], self._averages)

    def averages(self) -> dict[str, Tensor]:
        """The moving average by parameter name, float32."""
        return {name: view.clone() for (name, _), view in zip(self._used, self._averages, strict=True)}

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Go on from these weights by parameter name, as masters, average and what computes."""
        with torch.no_grad():
            for (name, _), view in zip(self._used, self._views, strict=True):
                view.copy_(weights[name])
        self.average.copy_(self.values)
        self.publish()

    def state_dict(self) -> dict[str, Tensor]:
        """Masters and their average, flat."""
        return {"values": self.values, "average": self.average}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave, and publish it."""
        self.values.copy_(state["values"])
        self.average.copy_(state["average"])
        self.publish()

    def _split(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        parts = torch.split(flat, sizes)
        return [part.view(parameter.shape) for part, (_, parameter) in zip(parts, self._used, strict=True)]
