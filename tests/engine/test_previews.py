"""Previews of real networks, tiny ones with random weights too: one map for whatever decoder there is."""

from __future__ import annotations

import pytest
import torch

from fluxserve.catalogue import Generation, Size
from fluxserve.engine.base import Pixels
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.networks import Network
from fluxserve.engine.previews import Previewer
from fluxserve.engine.trajectory import Trajectory

GENERATION = Generation(
    model="flux-dev", prompt="a red apple", size=Size(256, 192), seed=7, steps=4, guidance=3.5, output_format="png"
)
EVERY = ["dev", "schnell", "shifted", "float8", "mini"]


def begun(drawer: Drawer) -> tuple[Trajectory, torch.Tensor]:
    """A trajectory, and its velocity."""
    trajectory = drawer.start("a", GENERATION, 0)
    return trajectory, drawer.velocities([trajectory])[0]


@pytest.mark.parametrize("name", EVERY)
def test_every_checkpoint_has_previews_and_always_the_same(drawers: dict[str, Drawer], name: str) -> None:
    drawer = drawers[name]
    with torch.inference_mode():
        preview = drawer.preview(*begun(drawer))
        again = Previewer(drawer.network, 2 * drawer.checkpoint.vae_factor)
        trajectory, velocity = begun(drawer)
        clean = trajectory.latents - trajectory.sigma * velocity
        assert again.draw(clean, trajectory.drawn_size, GENERATION.size) == preview
    assert 0.9 <= preview.size.ratio * 3 / 4 <= 1.1
    assert len(set(preview.data)) > 1


def test_numbers_out_of_range_make_a_preview_too(drawers: dict[str, Drawer]) -> None:
    drawer = drawers["dev"]
    with torch.inference_mode():
        trajectory, velocity = begun(drawer)
        preview = drawer.preview(trajectory, velocity * float("nan"))
    assert len(preview.data) == 3 * preview.size.area


class Stripes:
    """A decoder that is linear: each token holds the colours of its four quarters."""

    def __init__(self, network: Network) -> None:
        self.encode, self.look, self.predict = network.encode, network.look, network.predict
        self.decoded: list[Size] = []

    def noise(self, seed: int, size: Size) -> torch.Tensor:
        """Standard normal."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, size.area // 64, 12, generator=generator)

    def decode(self, latents: torch.Tensor, size: Size) -> Pixels:
        """Each quarter in its colour, grey where the token is zero."""
        self.decoded.append(size)
        rows, columns = size.height // 8, size.width // 8
        levels = (latents[0] / 20 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        quarters = levels.view(rows, columns, 2, 2, 3).transpose(1, 2).reshape(2 * rows, 2 * columns, 3)
        picture = quarters.repeat_interleave(4, 0).repeat_interleave(4, 1)
        return Pixels(size=size, data=picture.numpy().tobytes())


def test_a_linear_decoder_is_found_again_and_asked_once_for_all_previews(drawers: dict[str, Drawer]) -> None:
    network, size = Stripes(drawers["mini"].network), Size(64, 48)
    previewer = Previewer(network, 8)
    assert network.decoded == []
    previews = [previewer.draw(network.noise(seed, size), size, size) for seed in (100, 101)]
    assert network.decoded == [Size(128, 128)]
    for seed, preview in zip((100, 101), previews, strict=True):
        exact = rows(network.decode(network.noise(seed, size), size))[::4, ::4]
        assert preview.size == Size(16, 12)
        assert (exact - rows(preview)).abs().max() <= 2


def rows(pixels: Pixels) -> torch.Tensor:
    """(height, width, 3)."""
    return torch.frombuffer(bytearray(pixels.data), dtype=torch.uint8).view(pixels.size.height, -1, 3).int()
