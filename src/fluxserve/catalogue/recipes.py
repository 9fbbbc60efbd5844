"""Recipes: what a picture is made from, beside its prompt. One per kind of request, each with its own values.

A recipe says what is wanted, not how: how depends on the weights that draw. The pictures that it speaks of are the
Generation's, each under the name of the field it came in.
What it does not know: fields of requests, pixels, networks.
"""

from __future__ import annotations

from typing import Literal

import msgspec


class TextToImage(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """A picture of the prompt; where there is an `image_prompt`, in its likeness, `likeness` from 0 to 1.

    `raw`: less processed. `interval`: from 1 to 4, more of it varies more and follows the prompt less.
    """

    raw: bool = False
    interval: float = 2.0
    likeness: float = 1.0


class ImageToImage(msgspec.Struct, frozen=True, kw_only=True, tag="image"):
    """`image`, drawn over: a `strength` of 1 leaves nothing of it, 0 only decodes it again."""

    strength: float


class Edit(msgspec.Struct, frozen=True, kw_only=True, tag="edit"):
    """What the prompt says of `input_image`, `input_image_2` and so on; without any, a picture of the prompt."""


class Fill(msgspec.Struct, frozen=True, kw_only=True, tag="fill"):
    """`image`, drawn anew where `mask` is white, and beyond its edges by so many pixels on each side."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


class Control(msgspec.Struct, frozen=True, kw_only=True, tag="control"):
    """A picture with the edges or depths of `control_image`, or those that `preprocessed_image` shows as they are.

    `low` and `high`: thresholds of Canny's edges, from 0 to 500.
    """

    kind: Literal["canny", "depth"]
    low: float = 50.0
    high: float = 200.0


Recipe = TextToImage | ImageToImage | Edit | Fill | Control
