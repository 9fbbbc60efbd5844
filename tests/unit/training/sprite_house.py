"""Forty things as plain coloured shapes in two styles, made in a moment."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.records import Record

ANIMALS = ("cat", "dog", "fox", "lion", "owl", "bear", "frog", "wolf", "duck", "goose", "mouse", "zebra")
FOODS = ("red apple", "banana", "grapes", "pizza", "lemon", "cheese wedge", "ear of corn", "tomato", "egg", "pie")
OBJECTS = ("key", "crown", "scissors", "camera", "guitar", "bell", "robot", "umbrella", "knife", "chair")
VEHICLES = ("sailboat", "automobile", "airplane", "bus", "train", "rocket", "ship", "tractor")
GROUPS = {"animals": ANIMALS, "food": FOODS, "objects": OBJECTS, "vehicles": VEHICLES}
SHADES = ((220, 40, 40), (60, 160, 70), (50, 90, 215), (250, 215, 60), (90, 90, 90))


def house_records() -> list[Record]:
    """Each thing in glossy, then each in flat but the last, then one more that only flat has."""
    glossy = [_record(label, group, "noto", "glossy") for group, labels in GROUPS.items() for label in labels]
    flat = [_record(record.label, record.group, "twemoji", "flat") for record in glossy[:-1]]
    return [*glossy, *flat, _record("kite", "objects", "twemoji", "flat")]


def house_sprites(count: int) -> NDArray[np.uint8]:
    """(count, 256, 256, 4): discs, ellipses as wide as the sprite, ellipses as high as it, of the shades in turn."""
    y, x = np.mgrid[:256, :256] - 127.5
    shapes = (np.hypot(x, y) < 128, np.hypot(x, 2 * y) < 128, np.hypot(2 * x, y) < 128)
    sprites = np.zeros((count, 256, 256, 4), dtype=np.uint8)
    for index in range(count):
        sprites[index][shapes[index % 3]] = (*SHADES[index % 5], 255)
    return sprites


def _record(label: str, group: str, family: str, style: str) -> Record:
    return Record(
        label=label,
        name={"automobile": "car"}.get(label, label),
        style=style,
        set=family,
        license="MIT",
        group=group,
        keywords=("animal",) if group == "animals" else ("steam ship",) if label == "ship" else (),
        labels={"de": f"{label}-de", "fr": f"{label}-fr"},
    )
