"""What is behind the things, painted: colours, suns, stars, clouds, hills, waves and lanes, a batch at a time.

Everything is a formula of the place, so a picture looks the same at every size. What it does not know: sprites.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from training.scenes import Scene

_STARS = 26
_STARLIGHT = (1.0, 0.99, 0.96)


def paint_backdrops(scenes: Sequence[Scene], height: int, width: int, device: torch.device) -> Tensor:
    """(B, 3, height, width) in 0..1: everything behind the things."""
    y = ((torch.arange(height, device=device) + 0.5) / height)[None, :, None]
    x = ((torch.arange(width, device=device) + 0.5) / width)[None, None, :]
    tops, bottoms = (
        _colours([scene.top for scene in scenes], device),
        _colours([scene.bottom for scene in scenes], device),
    )
    ends = torch.tensor([scene.horizon for scene in scenes], device=device)[:, None, None]
    pictures = tops.lerp(bottoms, (y / ends).clamp(max=1)[:, None]).expand(-1, -1, -1, width).contiguous()
    busy = [index for index, scene in enumerate(scenes) if scene.stars or scene.clouds or scene.sun or scene.ground]
    if busy:
        shown = [scenes[index] for index in busy]
        chosen = torch.tensor(busy, device=device)
        pictures[chosen] = _outdoors(pictures[chosen], shown, x, y)
    return pictures


def _outdoors(pictures: Tensor, scenes: list[Scene], x: Tensor, y: Tensor) -> Tensor:
    """Sun and stars behind clouds behind the ground. `x` (1, 1, W) and `y` (1, H, 1) are shares of the canvas."""
    height, width = pictures.shape[2:]
    shorter = min(height, width)
    x_unit, y_unit = x * (width / shorter), y * (height / shorter)  # shares of the shorter side
    shape = (width / shorter, height / shorter)
    for draw, wanted in (
        (_stars, [scene.stars for scene in scenes]),
        (_suns, [scene.sun is not None for scene in scenes]),
        (_clouds, [scene.clouds > 0 for scene in scenes]),
    ):
        indices = [index for index, is_wanted in enumerate(wanted) if is_wanted]
        if indices:
            chosen = torch.tensor(indices, device=pictures.device)
            pictures[chosen] = draw(pictures[chosen], [scenes[index] for index in indices], x_unit, y_unit, shape)
    grounded = [index for index, scene in enumerate(scenes) if scene.ground is not None]
    if grounded:
        chosen = torch.tensor(grounded, device=pictures.device)
        pictures[chosen] = _grounds(pictures[chosen], [scenes[index] for index in grounded], x_unit, y)
    return pictures


def _stars(pictures: Tensor, scenes: list[Scene], x: Tensor, y: Tensor, shape: tuple[float, float]) -> Tensor:
    """Soft dots of light in the upper part."""
    places = torch.tensor([_star_places(scene, shape) for scene in scenes], device=pictures.device)
    light = torch.zeros((len(scenes), *pictures.shape[2:]), device=pictures.device)
    for star in places.unbind(1):
        across, down, radius = star.T[:, :, None, None]
        light = torch.maximum(light, torch.exp(-((x - across) ** 2 + (y - down) ** 2) / radius**2))
    return pictures.lerp(_colours([_STARLIGHT], pictures.device), light[:, None])


def _star_places(scene: Scene, shape: tuple[float, float]) -> list[tuple[float, float, float]]:
    rng = random.Random(scene.seed)
    lowest = min(scene.horizon, 0.95) * shape[1]
    return [
        (rng.random() * shape[0], rng.random() ** 1.3 * lowest, rng.choice((0.006, 0.008, 0.011)))
        for _ in range(_STARS)
    ]


def _suns(pictures: Tensor, scenes: list[Scene], x: Tensor, y: Tensor, shape: tuple[float, float]) -> Tensor:
    """A disc with a soft halo; the moon is one too."""
    suns = [scene.sun for scene in scenes if scene.sun is not None]
    across, down, radius = (
        torch.tensor(values, device=pictures.device)[:, None, None]
        for values in zip(*((sun[0] * shape[0], sun[1] * shape[1], sun[2]) for sun in suns), strict=True)
    )
    colours = _colours([sun[3] for sun in suns], pictures.device)
    distance = torch.sqrt((x - across) ** 2 + (y - down) ** 2)
    halo = 0.45 * torch.exp(-((distance / (radius * 2.2)) ** 2))
    disc = ((radius - distance) * min(pictures.shape[2:]) + 0.5).clamp(0, 1)
    return pictures.lerp(colours, torch.maximum(halo, disc)[:, None])


def _clouds(pictures: Tensor, scenes: list[Scene], x: Tensor, y: Tensor, shape: tuple[float, float]) -> Tensor:
    """Heaps of soft round puffs with flat bottoms; grey below."""
    heaps = [_cloud_puffs(scene, shape) for scene in scenes]
    most = max(len(puffs) for puffs in heaps)
    puffs = torch.tensor(
        [[*puffs, *[(0.0, -9.0, 0.1)] * (most - len(puffs))] for puffs in heaps], device=pictures.device
    )
    density = torch.zeros((len(scenes), *pictures.shape[2:]), device=pictures.device)
    for puff in puffs.unbind(1):
        across, down, radius = puff.T[:, :, None, None]
        below = (y > down).float() * 1.2 + 1  # flatter under the middle
        density += torch.exp(-(((x - across) / radius) ** 2 + ((y - down) * below / (radius * 0.9)) ** 2))
    cover = ((density - 0.45) / 0.3).clamp(0, 1)
    return pictures.lerp(torch.full_like(pictures, 0.97), (0.85 * cover * cover * (3 - 2 * cover))[:, None])


def _cloud_puffs(scene: Scene, shape: tuple[float, float]) -> list[tuple[float, float, float]]:
    """(x, y, radius) in shorter sides: three puffs a cloud, clouds spread over the width."""
    rng = random.Random(scene.seed)
    puffs = []
    for cloud in range(scene.clouds):
        x = (cloud + rng.uniform(0.3, 0.7)) / scene.clouds * shape[0]
        y = (0.1 + 0.17 * (cloud % 2) + rng.uniform(0, 0.06)) * shape[1]
        radius = rng.uniform(0.085, 0.11)
        puffs += [
            (x - radius * 0.95, y + 0.022, radius * 0.7),
            (x, y, radius),
            (x + radius, y + 0.02, radius * 0.75),
        ]
    return puffs


def _grounds(pictures: Tensor, scenes: list[Scene], x: Tensor, y: Tensor) -> Tensor:
    """The ground, its hills, waves or lane. `x` (1, 1, W) in shorter sides, `y` (1, H, 1) in shares of the height."""
    device = pictures.device
    colours = _colours([scene.ground for scene in scenes if scene.ground is not None], device)
    horizon, waves, hills, lane = (
        torch.tensor(values, device=device)[:, None, None]
        for values in zip(*((s.horizon, float(s.waves), float(s.hills), float(s.lane)) for s in scenes), strict=True)
    )
    height = pictures.shape[2]
    far = horizon - hills * (0.012 + 0.02 * torch.sin(x * 4.1 + 0.6))
    near = horizon + hills * (0.055 + 0.02 * torch.sin(x * 3.3 + 2.4))
    depth = ((y - horizon) / (1 - horizon)).clamp(0, 1)
    shade = (1.07 - 0.16 * depth)[:, None]
    pictures = pictures.lerp(
        (colours * 1.1).clamp(max=1).expand_as(pictures), ((y - far) * height + 0.5).clamp(0, 1)[:, None]
    )
    cover = ((y - near) * height + 0.5).clamp(0, 1)
    pictures = pictures.lerp((colours * shade).clamp(max=1).expand_as(pictures), cover[:, None])
    return _markings(pictures, depth * cover, waves, lane, x)


def _markings(pictures: Tensor, depth: Tensor, waves: Tensor, lane: Tensor, x: Tensor) -> Tensor:
    """Light crests on water, dashes and a kerb on a road. `depth` (B, H, W) is 0 at the horizon and 1 at the bottom."""
    rows = depth.sqrt() * 5.5
    crest = torch.cos(2 * torch.pi * (rows + 0.16 * torch.sin(x * 13 + 2.3 * rows.round()))) * (depth > 0.02)
    light = waves * ((crest - 0.72) / 0.2).clamp(0, 1) * 0.28
    dash = ((0.035 - (depth - 0.8).abs()) * 60).clamp(0, 1) * ((torch.cos(x * 2 * torch.pi * 3) + 0.35) * 6).clamp(0, 1)
    kerb = ((0.03 - (depth - 0.05).abs()) * 60).clamp(0, 1) * 0.6
    light = light + lane * (dash * 0.9 + kerb)
    return pictures.lerp(torch.ones_like(pictures), light.clamp(0, 1)[:, None])


def _colours(colours: Sequence[tuple[float, float, float]], device: torch.device) -> Tensor:
    """(B, 3, 1, 1)."""
    return torch.tensor(colours, dtype=torch.float32, device=device)[:, :, None, None]
