"""How much work a picture is, counted from the published facts of the network nearest to its model.

The count is the same wherever the picture is drawn, so it can be compared between callers and written down.
What it does not know: the weights that draw here, how fast they are.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxserve.catalogue.sizes import Size

#: Pixels along each side of what one image token stands for: the autoencoder's 8, packed by 2.
_TOKEN_SIDE = 16
TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A transformer: `layers` blocks of `width`, over the tokens of the picture and `text_tokens` of its prompt."""

    width: int
    layers: int
    text_tokens: int

    def step_work(self, size: Size) -> float:
        """TFLOP of one step at this size: 12 width^2 weights a block and token, and attention over all tokens.

        2 FLOP a weight and token, 4 width N^2 for the attention of N tokens: FLUX.1-dev at 1024x1024 is 74.4.
        """
        tokens = -(-size.width // _TOKEN_SIDE) * -(-size.height // _TOKEN_SIDE) + self.text_tokens
        linear = 24 * self.width**2 * tokens
        attention = 4 * self.width * tokens**2
        return self.layers * (linear + attention) / TERA
