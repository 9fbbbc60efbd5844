"""Judges: small convolutional networks that say what a picture shows, and in which style.

A judge is kept as whole numbers of 8 bits, with a scale for each output channel: a quarter of the bytes, and answers
that differ less than pictures do. What it does not know: what it learns from (views.py), how (judge.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

#: Pixels of the side that judges look at.
SIDE = 96
WIDTHS = (48, 96, 192, 256)
FEATURES = WIDTHS[-1]
_CELL = 32  # pixels of the side that one last feature stands for
_SCALE = ".scale"


class Opinion(msgspec.Struct, frozen=True):
    """Of B pictures: scores of all labels (B, L) and styles (B, S), higher is likelier; `features` (B, 256)."""

    labels: Tensor
    styles: Tensor
    features: Tensor


class Block(nn.Module):
    """Two convolutions and a way around them (He et al. 2016); `stride` 2 halves the picture."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(channels, out, 3, stride)
        self.second = _convolution(out, out, 3, 1)
        self.around = nn.Sequential(nn.AvgPool2d(stride), *_convolution(channels, out, 1, 1)) if stride > 1 else None

    def forward(self, states: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)."""
        changed: Tensor = self.second(F.relu(self.first(states)))
        return F.relu(changed + (states if self.around is None else self.around(states)))


class Network(nn.Module):
    """(B, 3, H, W) in -1 ... 1, about 96 x 96 -> scores and features."""

    def __init__(self, labels: int, styles: int) -> None:
        super().__init__()
        first, *others = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, first, 6, 4, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        blocks = [Block(first, first, 1)]
        blocks += [Block(before, after, 2) for before, after in zip(WIDTHS, others, strict=False)]
        self.body = nn.Sequential(*blocks)
        self.labels = nn.Linear(FEATURES, labels)
        self.styles = nn.Linear(FEATURES, styles)

    def forward(self, pictures: Tensor) -> Opinion:
        """Features are means over the picture, so that any size will do."""
        features = self.body(self.stem(pictures)).mean(dim=(2, 3))
        return Opinion(self.labels(features), self.styles(features), features)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A network with what its scores are of."""

    network: Network
    labels: tuple[str, ...]
    styles: tuple[str, ...]

    @torch.no_grad()
    def look(self, pictures: Tensor) -> Opinion:
        """Pictures (B, 3, H, W) of any size in -1 ... 1, scaled until the shorter side is `SIDE`."""
        scale = SIDE / min(pictures.shape[-2:]) / _CELL
        size = [_CELL * round(side * scale) for side in pictures.shape[-2:]]
        small = F.interpolate(pictures, size, mode="bilinear", antialias=True, align_corners=False)
        parts: list[Opinion] = [self.network(part) for part in torch.split(small, 64)]
        return Opinion(
            torch.cat([part.labels for part in parts]).float(),
            torch.cat([part.styles for part in parts]).float(),
            torch.cat([part.features for part in parts]).float(),
        )


def build(labels: tuple[str, ...], styles: tuple[str, ...]) -> Judge:
    """An untrained judge."""
    network = Network(len(labels), len(styles)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Judge(network=network, labels=labels, styles=styles)


def save(judge: Judge, path: Path) -> None:
    """As safetensors, with labels and styles in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, value in judge.network.state_dict().items():
        if value.dim() < 2:
            tensors[name] = value
            continue
        rows = value.reshape(len(value), -1)
        scale = rows.abs().amax(dim=1).clamp(min=1e-8) / 127
        tensors[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(value.shape).contiguous()
        tensors[name + _SCALE] = scale
    words = {"labels": judge.labels, "styles": judge.styles}
    save_file(tensors, path, {name: msgspec.json.encode(value).decode() for name, value in words.items()})


def load(path: Path, device: str = "cpu") -> Judge:
    """What `save` wrote, ready to look."""
    with safe_open(path, framework="pt") as file:
        labels, styles = (
            tuple(msgspec.json.decode(file.metadata()[name], type=list[str])) for name in ("labels", "styles")
        )
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a file, not a dictionary
    state = {name: _restored(name, stored) for name in stored if not name.endswith(_SCALE)}
    judge = build(labels, styles)
    judge.network.load_state_dict(state)
    judge.network.eval().requires_grad_(requires_grad=False).to(device)
    return judge


def _restored(name: str, stored: dict[str, Tensor]) -> Tensor:
    value, scale = stored[name], stored.get(name + _SCALE)
    return value if scale is None else value.float() * scale.view(-1, *[1] * (value.dim() - 1))


def _convolution(channels: int, out: int, side: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, side, stride, side // 2, bias=False), nn.BatchNorm2d(out))
