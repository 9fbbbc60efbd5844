"""Canvases: a picture that is drawn over, in the size asked for, and which parts of it are drawn anew.

Needs Pillow only. What is kept comes out of drawing exactly as it went in, whatever the networks made of it.
What it does not know: networks, latents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from fluxserve.catalogue import Size
from fluxserve.catalogue.recipes import Fill
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas:
    """`mask` is white where `picture` is drawn anew and black where it is kept; both of one size."""

    picture: Pixels
    mask: Pixels

    def kept_in(self, drawn: Pixels) -> Pixels:
        """`drawn`, of the same size, with what is kept of the picture; where the mask is grey, a share of both."""
        mask = pixels_of.to_image(self.mask).convert("L")
        return pixels_of.from_image(Image.composite(pixels_of.to_image(drawn), pixels_of.to_image(self.picture), mask))


def lay_out(recipe: Fill, pictures: Mapping[str, Pixels], size: Size) -> Canvas:
    """`image` with the recipe's margins, to which its edges are continued, and its mask, which is white there.

    Without a mask the picture is kept and the margins are drawn, or, without margins, all of it is drawn.
    """
    image = pixels_of.to_image(pictures["image"])
    margins = (recipe.left, recipe.top, recipe.right, recipe.bottom)
    plain = Image.new("RGB", image.size, "black" if any(margins) else "white")
    mask = pixels_of.to_image(pictures["mask"]).resize(image.size) if "mask" in pictures else plain
    whole = Image.new(
        "RGB", (image.width + recipe.left + recipe.right, image.height + recipe.top + recipe.bottom), "white"
    )
    whole.paste(mask, (recipe.left, recipe.top))
    extended = pixels_of.continue_edges(image, *margins)
    return Canvas(
        picture=pixels_of.fit(pixels_of.from_image(extended), size),
        mask=pixels_of.fit(pixels_of.from_image(whole), size),
    )
