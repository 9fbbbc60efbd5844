"""How FLUX.1's weights look at pictures: each kind of them (`Checkpoint.reads`) in the way it was trained to.

Weights that were not made for a recipe come as near to it as they can, drawing over a picture, and say so.
Pictures are encoded to the mode of the autoencoder's distribution, so that equal pictures are equal bits.
What it does not know: prompts, steps, other trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from fluxserve.catalogue import Generation, Size
from fluxserve.catalogue.recipes import Control, Edit, Fill, ImageToImage, TextToImage
from fluxserve.engine import canny, canvas
from fluxserve.engine import pixels as pixels_of
from fluxserve.engine.base import Pixels
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.means import Means, Stage
from fluxserve.engine.networks.flux1_tokens import image_places, pack
from fluxserve.engine.trajectory import Inputs, Start
from fluxserve.errors import DrawingFailed

if TYPE_CHECKING:
    from torch import Tensor

    from fluxserve.engine.weights import Parts

#: The share of the steps that is made over a picture by weights that were not made for what is asked. Margins begin at
#: the picture's continued edges: begun at noise, they would not join it.
_EDITED, _CONTROLLED, _EXPANDED = 0.5, 0.6, 0.4
#: Width and height of what Kontext's weights learnt to look at; the transposes follow.
_WIDE = ((1568, 672), (1504, 688), (1456, 720), (1392, 752), (1328, 800), (1248, 832), (1184, 880), (1104, 944))
_REFERENCE_SIZES = (Size(1024, 1024), *(Size(*sides) for wide in _WIDE for sides in (wide, wide[::-1])))
#: A mask is white from here.
_WHITE = 0.5
_LEVELS = 127.5
_Using = Callable[[Stage, Means], AbstractContextManager[None]]


class Looker:
    """Looks at the pictures of generations, for one checkpoint; `using` brings what a stage needs to the device."""

    def __init__(self, checkpoint: Checkpoint, parts: Parts, using: _Using) -> None:
        self._checkpoint = checkpoint
        self._parts = parts
        self._using = using

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Inputs:
        """See `Network.look`."""
        reads, recipe = self._checkpoint.reads, generation.recipe
        tokens = places = None
        if reads == "references" and isinstance(recipe, Edit) and pictures:
            tokens, places = self._references([pictures[one.name] for one in generation.pictures], means)
        return Inputs(
            tokens=tokens,
            places=places,
            channels=self._channels(generation, pictures, size, means),
            words=self._words(generation, pictures, means),
            start=self._start(generation, pictures, size, means),
            warnings=tuple(self._warnings(generation, pictures)),
        )

    def _words(self, generation: Generation, pictures: Mapping[str, Pixels], means: Means) -> Tensor | None:
        """The image prompt as words; a likeness of 0 is none."""
        redux, recipe, picture = self._parts.redux, generation.recipe, pictures.get("image_prompt")
        if redux is None or picture is None or not isinstance(recipe, TextToImage) or recipe.likeness == 0:
            return None
        with self._using(Stage.ENCODE, means):
            return redux.words(picture, recipe.likeness)

    def _start(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Start | None:
        """What is drawn over: where the recipe says so, and where these weights know no other use of the picture."""
        reads, recipe = self._checkpoint.reads, generation.recipe
        if isinstance(recipe, Fill) and reads != "masked":
            laid_out = canvas.lay_out(recipe, pictures, generation.size)
            clean = self._encoded(pixels_of.unfit(laid_out.picture, size), means)
            redrawn = self._redrawn(pixels_of.unfit(laid_out.mask, size))
            return Start(clean=clean, redrawn=redrawn, strength=_EXPANDED if recipe != Fill() else 1.0)
        name, strength = self._drawn_over(generation)
        if name not in pictures:
            return None
        fitted = pixels_of.fit(pictures[name], generation.size)
        return Start(clean=self._encoded(pixels_of.unfit(fitted, size), means), strength=strength)

    def _drawn_over(self, generation: Generation) -> tuple[str, float]:
        """The name of the picture that is drawn over, and how much of the way; no name where none is."""
        recipe = generation.recipe
        match recipe:
            case ImageToImage():
                return "image", recipe.strength
            case Edit() if generation.pictures and self._checkpoint.reads != "references":
                return generation.pictures[0].name, _EDITED
            case Control() if self._checkpoint.reads != "control":
                return "control_image", _CONTROLLED
        return "", 1.0

    def _channels(
        self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means
    ) -> Tensor | None:
        """More channels for weights that always read some: they get them black, or all masked, where there are none."""
        reads, recipe = self._checkpoint.reads, generation.recipe
        if reads == "masked":
            if not isinstance(recipe, Fill):
                return self._masked(_plain(size, 0), _plain(size, 255), means)
            laid_out = canvas.lay_out(recipe, pictures, generation.size)
            return self._masked(pixels_of.unfit(laid_out.picture, size), pixels_of.unfit(laid_out.mask, size), means)
        if reads == "control":
            return self._encoded(self._control(generation, pictures, size, means), means)
        return None

    def _control(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Pixels:
        """The edges or depths, at the drawn size, as the weights saw them in training."""
        recipe = generation.recipe
        if not isinstance(recipe, Control):
            return _plain(size, 0)
        if "preprocessed_image" in pictures:
            return pixels_of.unfit(pixels_of.fit(pictures["preprocessed_image"], generation.size), size)
        image = pixels_of.unfit(pixels_of.fit(pictures["control_image"], generation.size), size)
        if recipe.kind == "canny":
            return canny.edges(image, recipe.low, recipe.high)
        if self._parts.depth is None:
            raise DrawingFailed(
                "No network here sees depth: send the depths as preprocessed_image instead of control_image."
            )
        with self._using(Stage.ENCODE, means):
            return self._parts.depth.depths(image)

    def _masked(self, picture: Pixels, mask: Pixels, means: Means) -> Tensor:
        """(1, image tokens, channels and 4 factor^2): the kept part of the picture, and each pixel of the mask."""
        from torch.nn.functional import pixel_unshuffle

        white = self._white(mask)
        kept = self._encoded_levels(self._levels(picture) * (1 - white), means)
        return _joined(kept, pack(pixel_unshuffle(white, self._checkpoint.vae_factor)))

    def _redrawn(self, mask: Pixels) -> Tensor:
        """(1, image tokens, channels): 1 for each latent of which a pixel is white."""
        from torch.nn.functional import max_pool2d

        latents = max_pool2d(self._white(mask), self._checkpoint.vae_factor)
        return pack(latents.expand(-1, int(self._parts.vae.config.latent_channels), -1, -1))

    def _references(self, pictures: Sequence[Pixels], means: Means) -> tuple[Tensor, Tensor]:
        """Their tokens, one picture after the other, and where these are: in a plane before the picture's.

        The first lies over the picture, and each further one below or beside those before it, where the whole stays
        more square.
        """
        import torch

        tokens, places = [], []
        height = width = 0
        side = self._checkpoint.token_side
        for picture in pictures:
            learnt = min(_REFERENCE_SIZES, key=lambda one: abs(one.ratio - picture.size.ratio))
            rows, columns = learnt.height // side, learnt.width // side
            scaled = pixels_of.to_image(picture).resize((columns * side, rows * side), pixels_of.SCALED)
            tokens.append(self._encoded(pixels_of.from_image(scaled), means))
            below = rows + height <= columns + width
            top, left = (height, 0) if below else (0, width)
            places.append(image_places(rows, columns) + torch.tensor([1.0, top, left]))
            height, width = max(height, top + rows), max(width, left + columns)
        return torch.cat(tokens, dim=1), torch.cat(places).to(self._parts.device)

    def _encoded(self, picture: Pixels, means: Means) -> Tensor:
        """(1, image tokens, channels), float32."""
        return self._encoded_levels(self._levels(picture), means)

    def _encoded_levels(self, levels: Tensor, means: Means) -> Tensor:
        vae = self._parts.vae
        with self._using(Stage.DECODE, means):  # its networks are the autoencoder's, both ways
            encoded = vae.encode(levels.to(vae.dtype))
            latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return pack((latents.float() - vae.config.shift_factor) * vae.config.scaling_factor)

    def _levels(self, picture: Pixels) -> Tensor:
        """(1, 3, height, width) from -1 to 1."""
        import torch

        rows = torch.frombuffer(bytearray(picture.data), dtype=torch.uint8).to(self._parts.device)
        levels = rows.view(picture.size.height, picture.size.width, 3).permute(2, 0, 1)
        return levels[None].float() / _LEVELS - 1

    def _white(self, mask: Pixels) -> Tensor:
        """(1, 1, height, width): 1 where it is white, else 0."""
        return (self._levels(mask).mean(dim=1, keepdim=True) / 2 + 0.5 >= _WHITE).float()

    def _warnings(self, generation: Generation, pictures: Mapping[str, Pixels]) -> Iterator[str]:
        """What whoever asked should be told of how far these weights can do it."""
        name, reads, recipe = self._checkpoint.name, self._checkpoint.reads, generation.recipe
        if isinstance(recipe, Edit) and pictures and reads != "references":
            yield f"{name} reads no reference pictures: it drew over the first one"
        if isinstance(recipe, Control) and reads != "control":
            over = "drew over control_image" if "control_image" in pictures else "followed the prompt alone"
            yield f"{name} reads no {'edges' if recipe.kind == 'canny' else 'depths'}: it {over}"
        if reads == "control" and not isinstance(recipe, Control):
            yield f"{name} was made to follow a control picture, and there was none"
        if isinstance(recipe, TextToImage):
            yield from self._text_warnings(recipe, pictures)

    def _text_warnings(self, recipe: TextToImage, pictures: Mapping[str, Pixels]) -> Iterator[str]:
        name = self._checkpoint.name
        if "image_prompt" in pictures and self._parts.redux is None:
            yield f"{name} reads no image_prompt: it followed the prompt alone"
        if not self._checkpoint.guidance_embeds and recipe != TextToImage(likeness=recipe.likeness):
            yield f"{name} reads no guidance, which raw and interval change: they changed nothing"


def _plain(size: Size, level: int) -> Pixels:
    return Pixels(size=size, data=bytes([level]) * (3 * size.area))


def _joined(one: Tensor, other: Tensor) -> Tensor:
    import torch

    return torch.cat([one, other], dim=2)
