"""How much work a picture is, counted from the published facts of the network nearest to its model.

The count is the same wherever the picture is drawn, so it can be compared between callers and written down.
What it does not know: the weights that draw here, how fast they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fluxserve.catalogue.sizes import Size

#: Pixels along each side of what one image token stands for: the autoencoder's 8, packed by 2.
_TOKEN_SIDE = 16
TERA = 1e12
#: TFLOP of encoding and of decoding a million pixels, from the configs of the autoencoders of FLUX.1 and FLUX.2, which
#: are alike: 3x3 convolutions of blocks of 128, 256, 512 and 512 channels. An encoder has two residual blocks each and
#: two in the middle, 2.04 million weights a pixel; a decoder three and two, 4.73 million.
_ENCODE_TFLOP = 4.09
_DECODE_TFLOP = 9.46
#: What stands beside the picture as more image tokens is shrunk to about a million pixels before.
_REFERENCE_AREA = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A transformer: `layers` blocks of `width`, over the tokens of the picture and `text_tokens` of its prompt.

    `weights`: those that a token passes in a block, in units of width^2. `reading`: TFLOP of reading a prompt.
    """

    width: int
    layers: int
    weights: int
    text_tokens: int
    reading: float

    def step_work(self, size: Size, references: Sequence[Size] = ()) -> float:
        """TFLOP of one step at this size: every token passes its weights, and all tokens see all.

        2 FLOP a weight and token, 4 width N^2 for the attention of N tokens: FLUX.1-dev at 1024x1024 is 74.4.
        """
        tokens = self.text_tokens + _tokens(size) + sum(map(_reference_tokens, references))
        linear = 2 * self.weights * self.width**2 * tokens
        attention = 4 * self.width * tokens**2
        return self.layers * (linear + attention) / TERA

    def work(self, size: Size, steps: int, *, inputs: Sequence[Size] = (), references: Sequence[Size] = ()) -> float:
        """TFLOP of a picture: its prompt is read, its `inputs` encoded, its steps are made, it is decoded.

        The middle attention of the autoencoder is left out: at 1024x1024 it is 5 hundredths of the decoding.
        """
        encoding = sum(picture.area for picture in inputs) / 1e6 * _ENCODE_TFLOP
        decoding = size.area / 1e6 * _DECODE_TFLOP
        return self.reading + encoding + steps * self.step_work(size, references) + decoding


def _tokens(size: Size) -> int:
    return -(-size.width // _TOKEN_SIDE) * -(-size.height // _TOKEN_SIDE)


def _reference_tokens(size: Size) -> int:
    return min(_tokens(size), _REFERENCE_AREA // _TOKEN_SIDE**2)
