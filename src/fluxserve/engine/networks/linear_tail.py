"""The end of a small decoder that is linear, as one convolution: the same map but for rounding, in a tenth of its time.

After its last activation an AutoencoderTiny may still enlarge several times, with convolutions of many channels at
the full size. All of that is one linear map from a cell (a pixel of the last activation) and its eight neighbours to
the cell's block of the picture. Convolutions see zeros outside the picture, so cells at an edge have maps of their own:
nine in all, found by sending impulses through a grid of 3 x 3 cells.
What it does not know: latents, sizes of pictures, other decoders.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

#: Cells of the grid, one way: one at either edge and one between, each with all the neighbours that it has.
_GRID = 3
#: The first edge and the last: which map it has, where it is, and the cells that its blocks depend on.
_EDGES = ((0, 0, slice(0, 2)), (2, -1, slice(-2, None)))


def fold_linear_tail(vae: AutoencoderKL | AutoencoderTiny) -> None:
    """Replace the linear layers at the end of an AutoencoderTiny's decoder; leave any other as it is."""
    layers = getattr(vae.decoder, "layers", None)
    if not isinstance(layers, nn.Sequential):
        return
    tail = _linear_end(layers)
    if len(tail) > 1 and _reach(tail) == 1:
        head = list(layers)[: len(layers) - len(tail)]
        vae.decoder.layers = nn.Sequential(*head, LinearTail(tail))


class LinearTail(nn.Module):
    """Implements layers that enlarge by doubling, and convolutions of 3 x 3, in this order or another.

    Of the maps, `kernels` (3, 3, outputs, channels, 3, 3) and `constants` (3, 3, outputs), the first two axes say
    whether a cell is at the first row or column, between, or at the last; an output is a channel's pixel of a block.
    """

    kernels: Tensor
    constants: Tensor

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self._layers = layers
        self._side = 1
        for layer in layers:
            self._side *= 2 if isinstance(layer, nn.Upsample) else 1
        kernels, constants = self._probe()
        self.register_buffer("kernels", kernels)
        self.register_buffer("constants", constants)

    def forward(self, cells: Tensor) -> Tensor:
        """(1, channels, rows, columns) -> (1, 3, side * rows, side * columns)."""
        if min(cells.shape[2:]) < _GRID:
            small: Tensor = self._layers(cells)
            return small
        blocks = self._map(cells, 1, 1)
        for row, at, place in _EDGES:
            blocks[:, :, at] = self._map(cells[:, :, place], row, 1)[:, :, at]
            blocks[..., at] = self._map(cells[..., place], 1, row)[..., at]
        for row, down, rows in _EDGES:
            for column, across, columns in _EDGES:
                corner = self._map(cells[:, :, rows, columns], row, column)
                blocks[:, :, down, across] = corner[:, :, down, across]
        return F.pixel_shuffle(blocks, self._side)

    def _map(self, cells: Tensor, row: int, column: int) -> Tensor:
        return F.conv2d(cells, self.kernels[row, column], self.constants[row, column], padding=1)

    @torch.no_grad()
    def _probe(self) -> tuple[Tensor, Tensor]:
        """The layers' answers to each channel of each cell: found in float32 at least, kept as their weights are.

        Found on the CPU, for the same numbers whatever a GPU makes of float32 and of how full it is.
        """
        weight = next(self._layers.parameters())
        exact = torch.promote_types(weight.dtype, torch.float32)
        layers = copy.deepcopy(self._layers).to("cpu", exact)
        channels = weight.shape[1]
        impulses = torch.eye(channels * _GRID**2, dtype=exact)
        impulses = impulses.view(-1, channels, _GRID, _GRID)
        silent = F.pixel_unshuffle(layers(torch.zeros_like(impulses[:1])), self._side)[0]
        answers = F.pixel_unshuffle(layers(impulses), self._side) - silent
        # (channels, cell's row, cell's column, outputs, block's row, block's column)
        answers = answers.view(channels, _GRID, _GRID, -1, _GRID, _GRID)
        kernels = answers.new_zeros(_GRID, _GRID, answers.shape[3], channels, _GRID, _GRID)
        for row in range(_GRID):
            for column in range(_GRID):
                # The cell itself is at the kernel's middle; what would lie outside the grid stays zero.
                for down in range(max(0, row - 1), min(_GRID, row + 2)):
                    for across in range(max(0, column - 1), min(_GRID, column + 2)):
                        answer = answers[:, down, across, :, row, column]
                        kernels[row, column, :, :, down - row + 1, across - column + 1] = answer.T
        return kernels.to(weight), silent.permute(1, 2, 0).contiguous().to(weight)


def _linear_end(layers: nn.Sequential) -> nn.Sequential:
    """The last layers, from the first that enlarges, as far as all are linear and of kinds that `LinearTail` knows."""
    first = len(layers)
    while first and _is_known(layers[first - 1]):
        first -= 1
    while first < len(layers) and not isinstance(layers[first], nn.Upsample):
        first += 1
    return nn.Sequential(*list(layers)[first:])


def _is_known(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Upsample):
        return layer.mode == "nearest" and layer.scale_factor == 2
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (3, 3)
        and layer.padding == layer.stride == layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
    )


def _reach(layers: nn.Sequential) -> int:
    """How many cells beside its own a block of the picture depends on."""
    first, last = 0, (1 << sum(isinstance(layer, nn.Upsample) for layer in layers)) - 1
    for layer in reversed(layers):
        first, last = (first // 2, last // 2) if isinstance(layer, nn.Upsample) else (first - 1, last + 1)
    return max(-first, last)
