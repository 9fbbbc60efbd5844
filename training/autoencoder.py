"""The autoencoder of mini, AutoencoderTiny with factor 32: it learns to draw and to read the latents' code.

The code is fixed beforehand (training/latents.py), so the two halves learn apart from each other, beside or after
the flow: the decoder turns code, made a little noisy, into pictures at full resolution, sharper than the linear
inverse; the encoder imitates the code.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
import typer
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from training import checkpoints, latents, ranks, work
from training.latents import Code
from training.ranks import Rank
from training.stream import GENERATOR_SETS, Stream

WIDTH = 32
#: Residual blocks of each level, the coarsest first.
BLOCKS = (4, 4, 3, 2, 1, 0)
#: The code is shrunk by this on its way in: DecoderTiny squeezes its input into -3 ... 3.
SHRINK = 0.6
#: Largest deviation of the noise that the decoder learns to bear: what is drawn is never quite on the code's spot.
NOISE = 0.15
_SIDE = 128
_PICTURE = 256
_PIECES = 4


def build() -> AutoencoderTiny:
    """An untrained network; latents come out, and go in after the pipeline's scaling, as code times `SHRINK`."""
    levels = len(BLOCKS)
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * levels,
        decoder_block_out_channels=(WIDTH,) * levels,
        num_encoder_blocks=BLOCKS[::-1],
        num_decoder_blocks=BLOCKS,
        latent_channels=latents.CHANNELS,
        scaling_factor=1 / SHRINK,
        shift_factor=0.0,
    )


def code_of(code: Code, pictures: Tensor) -> Tensor:
    """Full-resolution pictures (B, 3, H, W) in -1 ... 1 -> (B, 16, H/32, W/32)."""
    return code.encode(F.avg_pool2d(pictures, 2))


def reconstruction_loss(drawn: Tensor, target: Tensor) -> Tensor:
    """L1 and L2 of the values, L1 of their differences to the neighbours at two scales: flat areas and sharp edges."""
    loss = F.l1_loss(drawn, target) + F.mse_loss(drawn, target)
    for scale in (1, 2):
        a, b = (F.avg_pool2d(picture, scale) for picture in (drawn, target))
        loss = loss + F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))
    return loss


def psnr(drawn: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1 ... 1."""
    return -10 * math.log10(F.mse_loss(drawn.clamp(-1, 1), target).item() / 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """`samples` over all processes decide the learning rate; `minutes` end a run before, to be resumed."""

    samples: int
    minutes: float
    batch: int
    rate: float
    device: str
    seed: int
    folder: Path


class Trainer:
    """One process's share of a run."""

    def __init__(self, rank: Rank, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        self._rank = rank
        self._plan = plan
        self._code = latents.load().to(plan.device)
        self._network = build().to(plan.device)
        self._parameters = list(self._network.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, plan.rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self._parts: dict[str, checkpoints.Stateful] = {"network": self._network, "optimizer": self._optimizer}
        self.done = checkpoints.resume(plan.folder / "vae.state", self._parts, plan.device)
        seed = plan.seed + 1000 * rank.index + self.done
        self._chance = np.random.default_rng(seed)
        self._noise = torch.Generator().manual_seed(seed)
        self._stream = Stream(GENERATOR_SETS, seed, plan.device)
        self._unseen = Stream(GENERATOR_SETS, plan.seed + 999_999, plan.device).draw(
            48, (_PICTURE, _PICTURE), (256, 256)
        )

    def run(self) -> None:
        """Until the plan's samples or minutes are used up."""
        started = told = time.monotonic()
        while self.done < self._plan.samples and time.monotonic() - started < 60 * self._plan.minutes:
            self.step()
            if self._rank.leader and time.monotonic() - told > 120:
                told = time.monotonic()
                print(f"vae: {self.done} pieces, {self.check()}", flush=True)
                self.save()
        if self._rank.leader:
            print(f"vae: {self.done} pieces, {self.check()}", flush=True)
            self.save()

    def step(self) -> None:
        """One step of the optimizer."""
        plan = self._plan
        for group in self._optimizer.param_groups:
            group["lr"] = plan.rate * _rate(self.done / plan.samples, self.done // plan.batch)
        torch.autograd.backward(self._loss(self._pieces(plan.batch)))
        _average_gradients(self._rank, self._parameters)
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.done += plan.batch * self._rank.size

    def save(self) -> None:
        """The state to resume from, and the network as diffusers keeps it."""
        checkpoints.save(self._plan.folder / "vae.state", self._parts, self.done)
        self._network.save_pretrained(self._plan.folder)

    @torch.no_grad()
    def check(self) -> str:
        """Quality on pictures that are never trained on."""
        network, unseen = self._network, self._unseen
        read = network.encoder(unseen)
        code = SHRINK * code_of(self._code, unseen)
        linear = F.interpolate(self._code.decode(code / SHRINK), scale_factor=2, mode="bilinear")
        explained = 1 - (F.mse_loss(read, code) / code.var()).item()
        return (
            f"decoder {psnr(network.decoder(code), unseen):.2f} dB, linear {psnr(linear, unseen):.2f} dB; "
            f"encoder explains {explained:.3f}, both {psnr(network.decoder(read), unseen):.2f} dB"
        )

    def _loss(self, pieces: Tensor) -> Tensor:
        code = SHRINK * code_of(self._code, pieces)
        amount = SHRINK * NOISE * torch.rand(len(code), 1, 1, 1, generator=self._noise)
        noisy = code + (amount * torch.randn(code.shape, generator=self._noise)).to(code)
        with torch.autocast(pieces.device.type, torch.bfloat16):
            drawn, read = self._network.decoder(noisy), self._network.encoder(pieces)
        return reconstruction_loss(drawn.float(), pieces) + F.mse_loss(read.float(), code)

    def _pieces(self, count: int) -> Tensor:
        """(count, 3, 128, 128), several of each painted picture, cut at the code's grid."""
        pictures = self._stream.draw(count // _PIECES, (_PICTURE, _PICTURE), (_PICTURE, _PICTURE))
        step = 2 * latents.PATCH
        places = step * self._chance.integers(0, (_PICTURE - _SIDE) // step + 1, (count, 2))
        return torch.stack(
            [
                pictures[number // _PIECES, :, top : top + _SIDE, left : left + _SIDE]
                for number, (top, left) in enumerate(places)
            ]
        )


def _rate(share: float, steps: int) -> float:
    """Rises over the first 100 steps, then half a cosine down to 2 %."""
    return min(1.0, (steps + 1) / 100) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * share))


def _average_gradients(rank: Rank, parameters: list[nn.Parameter]) -> None:
    if rank.size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    rank.average(flat)
    for gradient, mean in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


def _work(rank: Rank, plan: Plan) -> None:
    Trainer(rank, plan).run()


def command(
    samples: Annotated[int, typer.Option(help="Pieces of pictures to train on, over all processes.")] = 300_000,
    minutes: Annotated[float, typer.Option(help="Stop after this long; the same command resumes.")] = 9,
    processes: Annotated[int, typer.Option(help="Processes of one thread each.")] = 2,
    batch: Annotated[int, typer.Option(help="Pieces a step and process, a multiple of 4.")] = 16,
    rate: Annotated[float, typer.Option(help="Highest learning rate.")] = 2e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seed: int = 0,
) -> None:
    """Train the decoder and the encoder; the same command resumes."""
    plan = Plan(
        samples=samples, minutes=minutes, batch=batch, rate=rate, device=device, seed=seed, folder=work.folder() / "vae"
    )
    plan.folder.mkdir(exist_ok=True)
    ranks.run(_work, plan, processes)


if __name__ == "__main__":
    typer.run(command)
