"""Where things stand on a canvas: alone, in pairs, in grids, in corners, on the ground.

Each arrangement has one place for each canvas and no jitter: what a prompt does not say should not vary. A small
network draws sharply what has one place, and blurs what may lie anywhere.
Sizes are shares of the canvas's shorter side, places shares of its width and height.
What it does not know: which things they are, what is said of them.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from training.backdrops import Backdrop
from training.looks import Look

_GAP = 1.08  # distance of neighbours in sizes
_COLOUR_WORDS = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "gray",
    "teal",
)
_UNTINTED = frozenset({"people", "flags", "symbols"})
_SIZES = {"small": 0.36, "tiny": 0.24, "little": 0.36, "big": 0.97, "large": 0.95, "huge": 1.0}
_CORNERS = ("top left", "top right", "bottom left", "bottom right")


class Layer(NamedTuple):
    """One sprite on the canvas: its middle, its longest side in shorter sides, mirror, angle (radians), hue (turns)."""

    sprite: int
    x: float
    y: float
    size: float
    flip: bool = False
    angle: float = 0.0
    hue: float = 0.0


def centred(sprite: int) -> Layer:
    """Alone on a plain colour."""
    return Layer(sprite, 0.5, 0.5, 0.8)


def standing(sprite: int, look: Look, canvas: tuple[int, int], backdrop: Backdrop, *, is_flying: bool) -> Layer:
    """Alone in a scene: its foot on the ground, or in the air."""
    size = 0.64
    if backdrop.ground is None:
        return Layer(sprite, 0.5, 0.5, size)
    if is_flying:
        return Layer(sprite, 0.5, max(backdrop.horizon * 0.5, 0.5 * _tall(size, look, canvas)), size * 0.85)
    return Layer(sprite, 0.5, _on_ground(size, look, canvas, backdrop), size)


def draw_relation(rng: random.Random, canvas: tuple[int, int]) -> str:
    """Mostly one that suits the canvas: rows on wide ones, stacks on tall ones."""
    row = 0.7 if canvas[0] == canvas[1] else 0.85 if canvas[1] > canvas[0] else 0.35
    chance = rng.random()
    if chance < 0.4:
        return "beside"
    return "left of" if chance < 0.4 + 0.6 * row else rng.choice(("above", "on top of"))


def is_row(relation: str, canvas: tuple[int, int]) -> bool:
    """Whether the two stand side by side; `beside` is a stack on a tall canvas."""
    return relation == "left of" or (relation == "beside" and canvas[1] >= canvas[0])


def pair(
    sprites: tuple[int, int],
    looks: tuple[Look, Look],
    canvas: tuple[int, int],
    relation: str,
    backdrop: Backdrop,
) -> tuple[Layer, ...]:
    """Two things, the first to the left or on top, as large and where two of one thing are if the canvas suits them."""
    shorter = min(canvas)
    if is_row(relation, canvas):
        size = _pair_size(canvas[1] / shorter)
        reach = 0.5 * _GAP * size * shorter / canvas[1]
        feet = [_on_ground(size, look, canvas, backdrop) if backdrop.ground is not None else 0.5 for look in looks]
        return Layer(sprites[0], 0.5 - reach, feet[0], size), Layer(sprites[1], 0.5 + reach, feet[1], size)
    size = _pair_size(canvas[0] / shorter)
    reach = 0.5 * _GAP * size * shorter / canvas[0]
    middles = [0.5 - reach, 0.5 + reach]
    if relation == "on top of":
        tall = [_tall(size, look, canvas) for look in looks]
        middles[0] = middles[1] - (tall[0] + tall[1]) / 2
    return Layer(sprites[0], 0.5, middles[0], size), Layer(sprites[1], 0.5, middles[1], size)


def _pair_size(ratio: float) -> float:
    """Of each of two along a side that is `ratio` times the shorter one."""
    return min(0.6, 0.46 * ratio) / 1.04


def grid(sprite: int, canvas: tuple[int, int], count: int) -> tuple[Layer, ...]:
    """`count` of one thing: a row on wide canvases, a column on tall ones, else rows of two; four are two by two."""
    height, width = canvas
    rows = _rows(canvas, count)
    shorter, widest = min(canvas), max(rows)
    size = min(0.6, 0.92 * width / shorter / widest, 0.92 * height / shorter / len(rows)) / 1.04
    across, down = size * _GAP * shorter / width, size * _GAP * shorter / height
    return tuple(
        Layer(sprite, 0.5 + (column - (row - 1) / 2) * across, 0.5 + (line - (len(rows) - 1) / 2) * down, size)
        for line, row in enumerate(rows)
        for column in range(row)
    )


def _rows(canvas: tuple[int, int], count: int) -> tuple[int, ...]:
    height, width = canvas
    if count == 4:
        return (2, 2)
    if width >= 1.4 * height or (count == 2 and width >= height):
        return (count,)
    if height >= 1.4 * width or (count == 2 and height > width):
        return (1,) * count
    return (2, 1)


def draw_size(rng: random.Random) -> tuple[str, str]:
    """A word for the size and the corner, either of which may be empty but not both."""
    if rng.random() < 0.5:
        return rng.choice(("small", "small", "tiny", "")), rng.choice(_CORNERS)
    return rng.choice(("small", "small", "tiny", "little", "big", "big", "large", "huge")), ""


def sized(sprite: int, canvas: tuple[int, int], size: str, corner: str) -> Layer:
    """A thing of a named size, in the middle or in a corner."""
    share = _SIZES.get(size, 0.4)
    if not corner:
        return Layer(sprite, 0.5, 0.5, share)
    shorter = min(canvas)
    x, y = ((share / 2 + 0.06) * shorter / side for side in (canvas[1], canvas[0]))
    return Layer(sprite, x if "left" in corner else 1 - x, y if "top" in corner else 1 - y, share)


def draw_tint(rng: random.Random, look: Look, label: str, group: str) -> tuple[str, float] | None:
    """A colour's name and the hue turn that gives it; at times the colour it has anyway; None where none is clear."""
    if look.colour is None or group in _UNTINTED or any(word in _COLOUR_WORDS for word in label.split()):
        return None
    if look.hues and rng.random() < 0.75:
        return rng.choice(look.hues)
    return look.colour, 0.0


def _on_ground(size: float, look: Look, canvas: tuple[int, int], backdrop: Backdrop) -> float:
    """The middle's height that puts the foot on the ground, a bit below the horizon."""
    foot = backdrop.horizon + (1 - backdrop.horizon) * 0.5
    return foot - _tall(size, look, canvas) / 2


def _tall(size: float, look: Look, canvas: tuple[int, int]) -> float:
    """The thing's height in shares of the canvas's."""
    return size * look.height * min(canvas) / canvas[0]
