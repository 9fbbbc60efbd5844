"""Canny's edges against the definition, pixel by pixel."""

import math

import numpy as np
import pytest

from fluxserve.catalogue import Size
from fluxserve.engine import canny
from fluxserve.engine.base import Pixels


def pixels(levels: np.ndarray) -> Pixels:
    """(height, width) of grey, or (height, width, 3)."""
    colours = levels if levels.ndim == 3 else levels[..., None].repeat(3, 2)
    return Pixels(size=Size(levels.shape[1], levels.shape[0]), data=colours.astype(np.uint8).tobytes())


def found(picture: Pixels, low: float = 50, high: float = 200) -> np.ndarray:
    edges = np.frombuffer(canny.edges(picture, low, high).data, dtype=np.uint8)
    levels = edges.reshape(picture.size.height, picture.size.width, 3)
    assert (levels == levels[..., :1]).all()
    assert set(np.unique(levels)) <= {0, 255}
    return levels[..., 0] == 255


def by_definition(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    """One pixel after the other, in Python's numbers."""
    height, width, _ = levels.shape

    def at(y: int, x: int, colour: int) -> int:
        return int(levels[min(max(y, 0), height - 1), min(max(x, 0), width - 1), colour])

    def gradient(y: int, x: int) -> tuple[int, int]:
        best = (0, 0)
        for c in range(3):
            dx = sum(w * (at(y + d, x + 1, c) - at(y + d, x - 1, c)) for d, w in ((-1, 1), (0, 2), (1, 1)))
            dy = sum(w * (at(y + 1, x + d, c) - at(y - 1, x + d, c)) for d, w in ((-1, 1), (0, 2), (1, 1)))
            if abs(dx) + abs(dy) > abs(best[0]) + abs(best[1]):
                best = (dx, dy)
        return best

    gradients = {(y, x): gradient(y, x) for y in range(height) for x in range(width)}

    def size(y: int, x: int) -> int:
        dx, dy = gradients.get((y, x), (0, 0))
        return abs(dx) + abs(dy)

    ridges = set()
    for (y, x), (dx, dy) in gradients.items():
        angle = math.degrees(math.atan2(abs(dy), abs(dx)))
        here = size(y, x)
        if angle < 22.5:
            is_ridge = here > size(y, x - 1) and here >= size(y, x + 1)
        elif angle > 67.5:
            is_ridge = here > size(y - 1, x) and here >= size(y + 1, x)
        else:
            side = -1 if (dx < 0) != (dy < 0) else 1
            is_ridge = here > size(y - 1, x - side) and here > size(y + 1, x + side)
        if is_ridge and here > low:
            ridges.add((y, x))
    edges = {place for place in ridges if size(*place) > high}
    waiting = list(edges)
    while waiting:
        y, x = waiting.pop()
        for place in ((y + d, x + r) for d in (-1, 0, 1) for r in (-1, 0, 1)):
            if place in ridges and place not in edges:
                edges.add(place)
                waiting.append(place)
    return np.array([[(y, x) in edges for x in range(width)] for y in range(height)])


@pytest.mark.parametrize("seed", range(4))
def test_edges_are_those_of_the_definition(seed: int) -> None:
    die = np.random.default_rng(seed)
    coarse = die.integers(0, 256, (6, 7, 3)).repeat(4, 0).repeat(4, 1)
    levels = np.clip(coarse + die.integers(-20 * (seed % 2), 20 * (seed % 2) + 1, coarse.shape), 0, 255)
    edges = found(pixels(levels), 150 + 50 * seed, 500)
    assert edges.any()
    assert (edges == by_definition(levels, 150 + 50 * seed, 500)).all()


def test_a_step_is_one_line_and_a_plain_picture_has_none() -> None:
    step = np.zeros((8, 8))
    step[:, 4:] = 255
    edges = found(pixels(step))
    assert edges.sum() == 8
    assert edges[:, 3].all()
    assert not found(pixels(np.full((8, 8), 90))).any()


def test_a_weak_edge_counts_where_it_is_joined_to_a_strong_one() -> None:
    levels = np.zeros((12, 12))
    levels[:6, 6:], levels[6:, 6:] = 200, 40
    joined = found(pixels(levels), 50, 300)
    assert joined[10, 5]
    assert not found(pixels(levels), 200, 300)[10, 5]
    levels[:6] = 0
    assert not found(pixels(levels), 50, 300)[10, 5]


def test_thresholds_the_wrong_way_round_are_turned() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (12, 12))
    assert (found(pixels(levels), 400, 100) == found(pixels(levels), 100, 400)).all()


def test_a_long_winding_way_is_followed_to_its_end() -> None:
    """Each pixel is looked at once: with one round a pixel of its length this took minutes."""
    height, width = 400, 401
    ridges = np.zeros((height, width), dtype=bool)
    ridges[::2] = True
    for row in range(1, height, 4):
        ridges[row, -1] = True
    for row in range(3, height, 4):
        ridges[row, 0] = True
    strong = np.zeros_like(ridges)
    strong[0, 0] = True
    assert (canny._joined(ridges, strong) == ridges).all()
    strong[0, 0], strong[1, 200] = False, False
    assert not canny._joined(ridges, strong).any()
