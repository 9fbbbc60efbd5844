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
#: GFLOP that reading a prompt takes for each token that it is filled up to, by T5-XXL's encoder (google/t5-v1_1-xxl):
#: 2 FLOP for each of the 24 (4 * 4096^2 + 3 * 4096 * 10240) weights of its layers.
_T5_GFLOP = 9.26
#: TFLOP of CLIP-L's text encoder (openai/clip-vit-large-patch14): 12 layers of 12 * 768^2 weights, over 77 tokens.
_CLIP_TFLOP = 0.0131
#: TFLOP of decoding a million pixels, from the config.json of FLUX.1's autoencoder: the 3x3 convolutions of blocks of
#: 512, 512, 256 and 128 channels, three residual blocks each and two in the middle, have 4.73 million weights a pixel.
_DECODE_TFLOP = 9.46


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

    def work(self, size: Size, steps: int) -> float:
        """TFLOP of a picture: its prompt is read, its steps are made, it is decoded.

        The middle attention of the autoencoder is left out: at 1024x1024 it is 5 hundredths of the decoding.
        """
        reading = self.text_tokens * _T5_GFLOP / 1000 + _CLIP_TFLOP
        decoding = size.width * size.height / 1e6 * _DECODE_TFLOP
        return reading + steps * self.step_work(size) + decoding
