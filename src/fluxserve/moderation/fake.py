"""The fake classifier, for the fake engine's pictures: the more of one colour, the higher the score.

What it does not know: anything about pictures.
"""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from fluxserve.catalogue import Size

#: A picture is as sexual as it is of this colour.
SIGNAL = (255, 0, 254)
_SIDE = 16


class FakeClassifier:
    """Implements the classifier seam."""

    @property
    def identity(self) -> str:
        """Its weights are none."""
        return "fake"

    def warm(self) -> None:
        """Nothing to load."""

    def score(self, size: Size, rgb: bytes) -> Mapping[str, float]:
        """The share of its pixels, of 256 all over the picture, that have the colour."""
        image = Image.frombytes("RGB", (size.width, size.height), rgb)
        looked_at = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST).tobytes()
        colours = zip(*[iter(looked_at)] * 3, strict=True)
        return {"sexual": sum(colour == SIGNAL for colour in colours) / _SIDE**2}
