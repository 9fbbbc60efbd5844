"""Previews: a small picture of what a trajectory is heading for, before it is there.

From latents x at noise level sigma the velocity v points at the clean latents x - sigma v. A linear map takes each of
their tokens to the block of picture that it stands for, which costs next to nothing. The map is fitted by least
squares on decoded noise at the start: the same map every time, for whatever decoder the checkpoint has, without any
weights of its own.
What it does not know: trajectories, who looks, files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxserve.catalogue import Size
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels
from fluxserve.engine.networks import Network

if TYPE_CHECKING:
    from torch import Tensor

#: Pixels of the drawn picture to one of the preview, one way.
SHRINK = 4
#: Most tokens and pixels on a side of each picture of noise that the map is fitted on.
_FITTED_TOKENS, _FITTED_SIDE = 16, 512
#: How many tokens there are for an unknown.
_SAMPLES = 4
#: Added to the diagonal of the normal equations, against what few samples do not tell.
_RIDGE = 1.0


class Previewer:
    """Makes the previews of one checkpoint; `token_side`: pixels of the picture to an image token, one way."""

    def __init__(self, network: Network, token_side: int) -> None:
        #: Until the map is fitted: then weights may come and go without it.
        self._network: Network | None = network
        self._token_side = token_side
        self._map: Tensor

    def draw(self, clean: Tensor, drawn: Size, asked: Size) -> Pixels:
        """A preview of `clean` (1, image tokens, channels), drawn at one size, in the shape of the size asked for."""
        import torch

        blocks = _with_one(clean[0]) @ self.fit()
        levels = blocks.nan_to_num().clamp(0, 1).mul(255).round().to(torch.uint8).cpu()
        rows, columns, side = drawn.height // self._token_side, drawn.width // self._token_side, self._block_side
        picture = levels.view(rows, columns, side, side, 3).transpose(1, 2).contiguous()
        small = Pixels(size=Size(columns * side, rows * side), data=picture.numpy().tobytes())
        return pixels_of.fit_preview(small, asked)

    def fit(self) -> Tensor:
        """The map, which takes as long as a decoded picture when it is asked for the first time."""
        if self._network is not None:
            self._map = self._fitted(self._network)
            self._network = None
        return self._map

    @property
    def _block_side(self) -> int:
        return max(1, self._token_side // SHRINK)

    @property
    def _fitted_tokens(self) -> int:
        return max(1, min(_FITTED_TOKENS, _FITTED_SIDE // self._token_side))

    def _fitted(self, network: Network) -> Tensor:
        """(channels + 1, values of a block): what comes nearest to the decoder, on noise of fixed seeds."""
        import torch

        side = self._fitted_tokens * self._token_side
        size, count = Size(side, side), 1
        noise = [network.noise(0, size)]
        while count * self._fitted_tokens**2 < _SAMPLES * noise[0].shape[2]:
            noise.append(network.noise(count, size))
            count += 1
        tokens = torch.cat([_with_one(latents[0]) for latents in noise]).double().cpu()
        blocks = torch.cat([self._blocks(network.decode(latents, size)) for latents in noise])
        normal = tokens.T @ tokens + _RIDGE * torch.eye(tokens.shape[1], dtype=torch.float64)
        fitted: Tensor = torch.linalg.solve(normal, tokens.T @ blocks)
        return fitted.to(noise[0])

    def _blocks(self, decoded: Pixels) -> Tensor:
        """(tokens, values of a block) from 0 to 1: the picture shrunk, cut into the blocks of its tokens."""
        import torch

        side = self._block_side
        small = pixels_of.to_image(decoded).reduce(self._token_side // side)
        values = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).double() / 255
        tokens = self._fitted_tokens
        cut = values.view(tokens, side, tokens, side, 3).transpose(1, 2)
        return cut.reshape(tokens**2, 3 * side**2)


def _with_one(tokens: Tensor) -> Tensor:
    """(tokens, channels + 1): the last stands for what a token of zeros decodes to."""
    import torch

    return torch.cat([tokens, tokens.new_ones(tokens.shape[0], 1)], dim=1)
