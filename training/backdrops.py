"""What stands behind the things: plain named colours, and skies over grounds.

What it does not know: what stands before it, how it is painted (painter.py) and every way to say it (captions.py).
"""

from __future__ import annotations

import random
from typing import NamedTuple

Rgb = tuple[float, float, float]  # 0..1


class Backdrop(NamedTuple):
    """Colours from top to bottom, the ground from `horizon` (share of the height) down, and what is in the sky."""

    background: str | None  # the named colour, None in scenes
    sky: str | None
    ground_name: str | None
    top: Rgb
    bottom: Rgb
    ground: Rgb | None = None
    horizon: float = 1.0
    waves: bool = False
    hills: bool = False
    lane: bool = False
    stars: bool = False
    clouds: int = 0
    sun: tuple[float, float, float, Rgb] | None = None  # x and y in shares of the canvas, radius of its shorter side

    @property
    def scene(self) -> str | None:
        """`on grass at sunset`, `at night`; None on a plain colour."""
        return " ".join(part for part in (self.ground_name, self.sky) if part) or None


class Sky(NamedTuple):
    top: Rgb
    bottom: Rgb
    tint: Rgb  # what the light makes of the ground's colour
    clouds: int = 0
    stars: bool = False
    sun: Rgb | None = None
    height: tuple[float, float] = (0.13, 0.22)  # of the sun, share of the canvas
    radius: tuple[float, float] = (0.075, 0.095)


def _rgb(red: int, green: int, blue: int) -> Rgb:
    return red / 255, green / 255, blue / 255


COLOURS: dict[str, Rgb] = {
    "white": _rgb(255, 255, 255),
    "black": _rgb(20, 20, 24),
    "gray": _rgb(150, 150, 155),
    "red": _rgb(214, 40, 40),
    "orange": _rgb(245, 140, 30),
    "yellow": _rgb(250, 215, 60),
    "green": _rgb(70, 165, 70),
    "light green": _rgb(180, 225, 150),
    "teal": _rgb(30, 150, 150),
    "blue": _rgb(50, 100, 215),
    "light blue": _rgb(165, 210, 245),
    "navy": _rgb(25, 35, 90),
    "purple": _rgb(130, 70, 180),
    "lavender": _rgb(205, 185, 240),
    "pink": _rgb(250, 160, 195),
    "brown": _rgb(125, 80, 45),
    "beige": _rgb(235, 220, 190),
}
SKIES: dict[str, Sky] = {
    "at sunrise": Sky(
        top=_rgb(150, 185, 225),
        bottom=_rgb(255, 205, 150),
        tint=(1.0, 0.9, 0.82),
        sun=_rgb(255, 236, 170),
        height=(0.4, 0.5),
    ),
    "at sunset": Sky(
        top=_rgb(88, 56, 132),
        bottom=_rgb(255, 128, 72),
        tint=(0.8, 0.58, 0.6),
        sun=_rgb(255, 196, 92),
        height=(0.52, 0.6),
    ),
    "at night": Sky(
        top=_rgb(10, 14, 50), bottom=_rgb(38, 50, 108), tint=(0.34, 0.4, 0.58), stars=True, sun=_rgb(246, 241, 214)
    ),
    "on a sunny day": Sky(
        top=_rgb(92, 172, 245), bottom=_rgb(210, 236, 253), tint=(1.0, 1.0, 1.0), clouds=2, sun=_rgb(255, 222, 84)
    ),
    "on a cloudy day": Sky(top=_rgb(142, 158, 176), bottom=_rgb(206, 213, 221), tint=(0.84, 0.86, 0.88), clouds=4),
}
GROUNDS: dict[str, Rgb] = {
    "on grass": _rgb(104, 180, 76),
    "on the sand": _rgb(236, 211, 152),
    "in the snow": _rgb(240, 246, 252),
    "on water": _rgb(48, 126, 196),
    "on a road": _rgb(104, 105, 112),
}
_ROLLING = frozenset({"on grass", "on the sand", "in the snow"})


def plain(name: str) -> Backdrop:
    """A canvas of one named colour."""
    colour = COLOURS[name]
    return Backdrop(background=name, sky=None, ground_name=None, top=colour, bottom=colour)


def outdoors(rng: random.Random, sky_name: str, ground_name: str | None) -> Backdrop:
    """A sky with what belongs to it, over a ground or over none; the sun keeps out of the middle."""
    sky = SKIES[sky_name]
    backdrop = Backdrop(
        background=None,
        sky=sky_name,
        ground_name=ground_name,
        top=sky.top,
        bottom=sky.bottom,
        stars=sky.stars,
        clouds=sky.clouds,
        sun=_sun(rng, sky),
    )
    if ground_name is None:
        return backdrop
    red, green, blue = GROUNDS[ground_name]
    return backdrop._replace(
        ground=(red * sky.tint[0], green * sky.tint[1], blue * sky.tint[2]),
        horizon=0.62,
        waves=ground_name == "on water",
        hills=ground_name in _ROLLING,
        lane=ground_name == "on a road",
    )


def _sun(rng: random.Random, sky: Sky) -> tuple[float, float, float, Rgb] | None:
    if sky.sun is None:
        return None
    x = rng.uniform(0.12, 0.2)
    return x if rng.random() < 0.5 else 1 - x, rng.uniform(*sky.height), rng.uniform(*sky.radius), sky.sun
