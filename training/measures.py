"""What can be measured of a picture without a network: its background, how many things it has, their colour.

Pictures are (B, 3, H, W) in -1 ... 1. What it does not know: what was asked for.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own abbreviation
from torch import Tensor

from training.backdrops import COLOURS
from training.looks import dominant

_FRAME = 0.03  # of the shorter side: what lies further out is background
_APART = 0.16  # distance in RGB 0..1 from the background's colour that makes a pixel the thing's
_GRID = 64  # pixels that things are counted on
_PART = 0.3  # of the largest piece: smaller pieces belong to one of the things


def backgrounds(pictures: Tensor) -> Tensor:
    """(B, 3) in 0 ... 1: the median of a thin frame."""
    height, width = pictures.shape[-2:]
    wide = max(1, round(_FRAME * min(height, width)))
    inner = torch.zeros(height, width, dtype=torch.bool, device=pictures.device)
    inner[wide : height - wide, wide : width - wide] = True
    medians: Tensor = pictures[:, :, ~inner].median(dim=2).values
    return (medians + 1) / 2


def background_names(pictures: Tensor) -> list[str]:
    """The named background whose colour is nearest to each picture's frame."""
    names, colours = list(COLOURS), torch.tensor(list(COLOURS.values()), device=pictures.device)
    return [names[index] for index in torch.cdist(backgrounds(pictures), colours).argmin(dim=1).tolist()]


def things(pictures: Tensor) -> Tensor:
    """(B, H, W) bool: what differs from the picture's background."""
    away = (pictures + 1) / 2 - backgrounds(pictures)[:, :, None, None]
    distances: Tensor = torch.linalg.vector_norm(away, dim=1)
    return distances > _APART


def counts(pictures: Tensor) -> list[int]:
    """How many separate things each picture has on its plain background: connected pieces that are large enough."""
    small = F.interpolate(pictures, (_GRID, _GRID), mode="area")
    mask = things(small).float()
    pieces = _pieces(mask)
    return [_large(picture) for picture in pieces]


def _pieces(mask: Tensor) -> Tensor:
    """(B, H, W) 0 or 1 -> the same number for all pixels of a connected piece, 0 outside."""
    height, width = mask.shape[1:]
    numbers = (torch.arange(1, height * width + 1, device=mask.device).float().view(1, height, width)) * mask
    while True:
        spread = F.max_pool2d(numbers[:, None], 3, 1, 1)[:, 0] * mask
        if torch.equal(spread, numbers):
            return numbers
        numbers = spread


def _large(numbers: Tensor) -> int:
    areas = torch.bincount(numbers.long().flatten())[1:]
    return int((areas > _PART * areas.max()).sum()) if len(areas) else 0


def colour_names(pictures: Tensor) -> list[str]:
    """The commonest colour of each picture's thing; empty where there is none."""
    found = []
    for picture, mask in zip(pictures, things(pictures), strict=True):
        colours = ((picture[:, mask].T + 1) / 2).cpu().numpy()
        found.append(dominant(colours.astype(np.float32))[0] if len(colours) else "")
    return found


def saturation(pictures: Tensor) -> float:
    """Mean difference of the strongest and the weakest channel, 0 ... 1."""
    return float((pictures.amax(dim=1) - pictures.amin(dim=1)).mean() / 2)


def bands(pictures: Tensor) -> Tensor:
    """(B, 6) in 0 ... 1: the median colours of the top and the bottom eighth, where a scene's things seldom are."""
    height = pictures.shape[-2]
    top, bottom = pictures[..., : height // 8, :], pictures[..., height - height // 8 :, :]
    return torch.cat([(part.flatten(2).median(dim=2).values + 1) / 2 for part in (top, bottom)], dim=1)


def halves(pictures: Tensor, *, is_row: bool) -> tuple[Tensor, Tensor]:
    """The left and right (or upper and lower) half of each picture."""
    first, second = pictures.chunk(2, dim=3 if is_row else 2)
    return first, second


def squared(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Two squares of each picture: its middle, and the whole with its edges continued."""
    height, width = pictures.shape[-2:]
    longest, shortest = max(height, width), min(height, width)
    across, down = longest - width, longest - height
    whole = F.pad(pictures, (across // 2, across - across // 2, down // 2, down - down // 2), mode="replicate")
    top, left = (height - shortest) // 2, (width - shortest) // 2
    return pictures[..., top : top + shortest, left : left + shortest], whole


def boxed(pictures: Tensor, side: int) -> Tensor:
    """(B, 3, side, side): each picture's thing, enlarged until it fills a square of its background."""
    cut = []
    for picture, mask, colour in zip(pictures, things(pictures), backgrounds(pictures), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if len(rows):
            picture = picture[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        height, width = picture.shape[1:]
        longest = max(height, width)
        square = (2 * colour - 1)[:, None, None].expand(3, longest, longest).clone()
        top, left = (longest - height) // 2, (longest - width) // 2
        square[:, top : top + height, left : left + width] = picture
        cut.append(F.interpolate(square[None], (side, side), mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(cut)


def frechet(first: Tensor, second: Tensor) -> float:
    """The squared Frechet distance of two samples (N, D) as if they were normal (Heusel et al. 2017)."""
    means, spreads = zip(
        *((sample.double().mean(0), sample.double().T.cov()) for sample in (first, second)), strict=True
    )
    root = _square_root(spreads[0])
    mixed = torch.linalg.eigvalsh(root @ spreads[1] @ root).clamp(min=0).sqrt().sum()
    return float((means[0] - means[1]).square().sum() + spreads[0].trace() + spreads[1].trace() - 2 * mixed)


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


def nearest(seen: Tensor, known: Tensor) -> Tensor:
    """(N,): the root mean square distance of each row of `seen` (N, D) to the nearest row of `known` (M, D)."""
    parts = [torch.cdist(part, known).amin(dim=1) for part in torch.split(seen, 256)]
    return torch.cat(parts) / math.sqrt(seen.shape[1])
