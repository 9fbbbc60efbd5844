"""What a checkpoint takes of a device's memory, read from the headers of its files, without torch.

What a picture takes beside the weights is a width times its tokens, or times its pixels, in so many copies; the copies
were counted by running the published networks without numbers (`tests/engine/test_expected_peaks.py`).
What it does not know: plans, how much memory there is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fluxserve.catalogue import Size
from fluxserve.engine import header, layout
from fluxserve.engine.checkpoints import Checkpoint, drawn_size
from fluxserve.engine.means import Stage
from fluxserve.engine.plans import Count, Layers, Needs

Shape = tuple[int, ...]

#: The picture that memory is planned for.
SIZE = Size(1024, 1024)
#: Pixels of a tile, one way: small enough to save memory, large enough that a decoder sees what it decodes.
TILE = 512
#: Copies of a transformer's tokens at its inner width at once; 17.3 in FLUX.1, 21.8 in FLUX.2.
_TOKEN_COPIES = 24
#: Copies of a picture at the width of the decoder's last but one level; 3.0 of them, and what convolutions take.
_PIXEL_COPIES = 4
#: Copies of a text's tokens at the largest width of its encoders, which is that of their vocabulary.
_WORD_COPIES = 4
#: A block by the beginning of its tensors' names, in diffusers', transformers' and BFL's layouts.
_BLOCK = re.compile(r"^.*?(?:blocks|block|layers)\.\d+\.")
_MATRIX_AXES = 2


def needs(checkpoint: Checkpoint, number: int) -> Needs:
    """Of the checkpoint where a number takes `number` bytes. Raises ConfigurationError where a file is not whole."""
    named = {part: _shapes(checkpoint, part) for part in checkpoint.family.networks}
    stages = {
        stage: {
            f"{part}.{name}": shape
            for part in checkpoint.family.networks_of(stage)
            for name, shape in named[part].items()
        }
        for stage in Stage
    }
    stages[Stage.ENCODE] |= _shapes_beside(checkpoint)
    levels = layout.read_json(checkpoint.path / "vae/config.json", layout.Vae).widths
    size = drawn_size(checkpoint, SIZE)
    pixels = _PIXEL_COPIES * max(levels[:2]) * number
    working = {
        Stage.ENCODE: _WORD_COPIES * checkpoint.text_length * _widest(stages[Stage.ENCODE]) * number,
        Stage.PREDICT: _TOKEN_COPIES * _tokens(checkpoint, size) * _inner(stages[Stage.PREDICT]) * number,
        Stage.DECODE: pixels * size.area,
    }
    return Needs(
        stages={stage: layers(shapes, working[stage]) for stage, shapes in stages.items()},
        number=number,
        tile=pixels * TILE**2,
    )


def layers(shapes: Mapping[str, Shape], working: int) -> Layers:
    """The tensors sorted into blocks and the rest."""
    blocks: dict[str, list[Shape]] = {}
    rest: list[Shape] = []
    for name, shape in shapes.items():
        block = _BLOCK.match(name)
        (blocks.setdefault(block[0], []) if block else rest).append(shape)
    return Layers(rest=_count(rest), blocks=tuple(map(_count, blocks.values())), working=working)


def is_block_matrix(name: str, axes: int) -> bool:
    """Whether a tensor of so many axes is a matrix of a transformer's block: what may be held in 8 bits."""
    return axes == _MATRIX_AXES and _BLOCK.match(name) is not None


def _count(shapes: Sequence[Shape]) -> Count:
    matrices = [shape for shape in shapes if len(shape) == _MATRIX_AXES]
    return Count(
        elements=sum(map(math.prod, shapes)),
        matrices=sum(map(math.prod, matrices)),
        rows=sum(shape[0] for shape in matrices),
        largest=max(map(math.prod, matrices), default=0),
    )


def _shapes(checkpoint: Checkpoint, part: str) -> Mapping[str, Shape]:
    """Of each tensor of the part, wherever it lies."""
    if part in checkpoint.pieces:
        return {name: one.shape for name, one in checkpoint.pieces[part].tensors.items()}
    files = layout.weight_files(checkpoint.path, checkpoint.family, part)
    return dict(_read(checkpoint.path / file for file in files))


def _shapes_beside(checkpoint: Checkpoint) -> Mapping[str, Shape]:
    files = [file for file in checkpoint.beside.files.values() if file.suffix == ".safetensors"]
    return dict(_read(files))


def _read(files: Iterable[Path]) -> Iterator[tuple[str, Shape]]:
    for file in files:
        yield from ((name, one.shape) for name, one in header.read(file).items())


def _tokens(checkpoint: Checkpoint, size: Size) -> int:
    """In a pass: the picture's, as many of a reference where weights were made to read one, and the text's."""
    pictures = 2 if checkpoint.reads == "references" else 1
    return checkpoint.rows_per_picture * (pictures * size.area // checkpoint.token_side**2 + checkpoint.text_length)


def _matrices(shapes: Mapping[str, Shape]) -> Iterator[Shape]:
    return (shape for name, shape in shapes.items() if is_block_matrix(name, len(shape)))


def _inner(shapes: Mapping[str, Shape]) -> int:
    """The width of a transformer's tokens between its blocks: no matrix in them reads less."""
    return min((shape[1] for shape in _matrices(shapes)), default=0)


def _widest(shapes: Mapping[str, Shape]) -> int:
    return max((shape[0] for shape in shapes.values()), default=0)
