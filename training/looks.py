"""What a sprite looks like to the one who places it: how wide and high it is, whether it is a tile, its colours.

What it does not know: what the sprite is called, or what is painted with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]

_HUES = tuple(step / 24 for step in range(1, 24))
_NAMES = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black", "gray", "white")
# Upper ends of the named spans of the hue circle, degrees.
_SPANS = ((14, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (193, "teal"), (250, "blue"), (292, "purple"))
_CLEAR = 0.62  # share of a sprite's pixels that makes a colour the sprite's colour
_SHOWS_MOST = 0.9  # share of its box that a tile covers


class Look(NamedTuple):
    """Width and height as shares of the sprite's longest side; the colour it has; hue turns that give another."""

    width: float = 1.0
    height: float = 1.0
    is_tile: bool = False
    colour: str | None = None
    hues: tuple[tuple[str, float], ...] = ()


def hue_matrix(turn: float) -> Pixels:
    """The (3, 3) matrix that turns colours around the grey axis, which keeps their luminance (the SVG filter's)."""
    cosine, sine = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)
    luminance = np.array([[0.213, 0.715, 0.072]] * 3)
    across = np.array([[0.787, -0.715, -0.072], [-0.213, 0.285, -0.072], [-0.213, -0.715, 0.928]])
    turned = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
    return np.asarray(luminance + cosine * across + sine * turned, dtype=np.float32)


def measure(sprites: NDArray[np.uint8]) -> list[Look]:
    """One Look for each of the (N, 256, 256, 4) premultiplied sprites; half a millisecond each."""
    return [_look(sprite[2::4, 2::4].astype(np.float32) / np.float32(255)) for sprite in sprites]


def _look(pixels: Pixels) -> Look:
    """The look of one (64, 64, 4) sprite, 0..1."""
    solid = pixels[..., 3] > 0.5
    if solid.sum() < 16:
        return Look()
    rows, columns = solid.any(axis=1), solid.any(axis=0)
    width, height = float(columns.mean()), float(rows.mean())
    colours = pixels[solid][::4]
    colours = colours[:, :3] / colours[:, 3:]
    natural, hues = _hues(colours)
    return Look(max(width, 0.1), max(height, 0.1), bool(solid.mean() / (width * height) > _SHOWS_MOST), natural, hues)


def _hues(colours: Pixels) -> tuple[str | None, tuple[tuple[str, float], ...]]:
    """The colour that (P, 3) pixels have as a whole, and the best hue turn for each colour they can take."""
    natural, share = dominant(colours)
    if share < _CLEAR:
        return None, ()
    if natural in {"black", "gray", "white", "brown"}:
        return natural, ()
    best: dict[str, tuple[float, float]] = {}
    for turn in _HUES:
        name, share = dominant(np.clip(colours @ hue_matrix(turn).T, 0, 1))
        is_new = name not in {natural, "black", "gray", "white", "brown", "teal"}
        if is_new and share >= _CLEAR and share > best.get(name, (0.0, 0.0))[0]:
            best[name] = (share, turn)
    return natural, tuple((name, turn) for name, (_, turn) in sorted(best.items()))


def dominant(colours: Pixels) -> tuple[str, float]:
    """The commonest colour name of (P, 3) pixels and its share of them."""
    counts = np.bincount(name_pixels(colours), minlength=len(_NAMES))
    first = int(counts.argmax())
    return _NAMES[first], float(counts[first] / len(colours))


def name_pixels(colours: Pixels) -> NDArray[np.intp]:
    """For (P, 3) colours 0..1 the index of each one's name in the list of names."""
    high, low = colours.max(axis=1), colours.min(axis=1)
    chroma = high - low
    hue = _hue_degrees(colours, high, np.maximum(chroma, 1e-6))
    names = np.full(len(colours), _NAMES.index("pink"), dtype=np.intp)
    for end, name in reversed(_SPANS):
        names[hue < end] = _NAMES.index(name)
    reddish = (hue < 14) | (hue >= 338)
    names[reddish] = _NAMES.index("red")
    names[reddish & (low > 0.5)] = _NAMES.index("pink")
    names[(hue < 66) & (high < 0.66)] = _NAMES.index("brown")
    dull = chroma < np.maximum(0.12, 0.2 * high)
    names[dull] = _NAMES.index("gray")
    names[dull & (low > 0.82)] = _NAMES.index("white")
    names[high < 0.25] = _NAMES.index("black")
    return names


def _hue_degrees(colours: Pixels, high: Pixels, chroma: Pixels) -> Pixels:
    red, green, blue = colours.T
    turn = np.where(
        high == red,
        ((green - blue) / chroma) % 6,
        np.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return np.asarray(turn * 60, dtype=np.float32)
