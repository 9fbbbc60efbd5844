"""The latents of mini: the best linear code of picture patches, known before anything is trained.

A latent holds 16 principal components of a 64 x 64 patch of the canvas, seen at a quarter of its sides (16 x 16
pixels). So the transformer can be trained at once and on small pictures; the autoencoder learns to read and to draw
this code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

from training import work
from training.stream import GENERATOR_SETS, Stream

CHANNELS = 16
#: Side of a patch in pixels of the shrunk canvas.
PATCH = 16
#: Components are divided by their deviation to this power: 1 would whiten, 0 would leave the first far ahead.
_WHITENING = 0.6
_PICTURES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """`mean` (768,) of the patches; `into` (768, 16) and `back` (16, 768) turn patches into latents and back."""

    mean: Tensor
    into: Tensor
    back: Tensor

    def encode(self, pictures: Tensor) -> Tensor:
        """Shrunk pictures (B, 3, H, W) in -1 ... 1 -> (B, 16, H/16, W/16), of unit variance over all."""
        kernels = self.into.T.reshape(CHANNELS, 3, PATCH, PATCH)
        return F.conv2d(pictures, kernels, -self.mean @ self.into, stride=PATCH)

    def decode(self, latents: Tensor) -> Tensor:
        """The linear inverse: (B, 16, h, w) -> (B, 3, 16 h, 16 w), a blocky preview of what the decoder draws."""
        kernels = self.back.reshape(CHANNELS, 3, PATCH, PATCH)
        patches = F.conv_transpose2d(latents, kernels, stride=PATCH)
        _, _, rows, columns = latents.shape
        return patches + self.mean.view(3, PATCH, PATCH).repeat(1, rows, columns)

    def to(self, device: str) -> Code:
        """The same on `device`."""
        return Code(mean=self.mean.to(device), into=self.into.to(device), back=self.back.to(device))

    def save(self, path: Path) -> None:
        """As safetensors."""
        save_file({"mean": self.mean, "into": self.into.contiguous(), "back": self.back.contiguous()}, path)


def fit(pictures: Tensor) -> Code:
    """The code of `pictures` (B, 3, H, W): principal components of their patches (Pearson 1901)."""
    patches = (
        pictures.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * PATCH**2)
    )
    mean = patches.mean(dim=0)
    centred = (patches - mean).double()
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    deviations, basis = values.flip(0)[:CHANNELS].sqrt(), vectors.flip(1)[:, :CHANNELS]
    overall = deviations.pow(2 - 2 * _WHITENING).mean().sqrt()
    scale = 1 / (deviations.pow(_WHITENING) * overall)
    return Code(mean=mean, into=(basis * scale).float(), back=(basis / scale).T.contiguous().float())


def load() -> Code:
    """What the command wrote."""
    return Code(**load_file(path()))


def command(seed: Annotated[int, typer.Option(help="Of the pictures it is fitted to.")] = 0) -> None:
    """Fit the latents' code to painted pictures, unless that is done."""
    if path().is_file():
        print(f"{path()} is there")
        return
    stream = Stream(GENERATOR_SETS, seed)
    seen = torch.cat([stream.draw(100, (128, 128)) for _ in range(_PICTURES // 100)])
    code = fit(seen)
    code.save(path())
    error = F.mse_loss(code.decode(code.encode(seen[:200])), seen[:200]).item()
    print(f"code of {CHANNELS} components: {-10 * torch.log10(torch.tensor(error / 4)).item():.2f} dB as it is")


def path() -> Path:
    """Where the command writes it."""
    return work.folder() / "latents.safetensors"


if __name__ == "__main__":
    typer.run(command)
