"""Which scores are refused at which `safety_tolerance`, from 0 (strict) to 6: a table, versioned, from a data file.

A higher tolerance never refuses what a lower one lets through, and what endangers children is refused at each.
What it does not know: where scores come from.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

FILE = Path(__file__).parent / "thresholds.toml"
#: The category that no tolerance opens.
CHILD_SAFETY = "child_safety"
TOLERANCES = range(7)
#: With pictures to draw from, nothing more is tolerated than this.
MOST_WITH_PICTURES = 2


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    refuse_from: dict[str, tuple[float | Literal["never"], ...]]


class Thresholds(msgspec.Struct, frozen=True):
    """By category, for each tolerance, the least score that is refused."""

    version: int
    refuse_from: Mapping[str, tuple[float, ...]]

    def refused(self, scores: Mapping[str, float], tolerance: int, *, has_pictures: bool = False) -> tuple[str, ...]:
        """The categories for which these scores are refused, in the table's order; a score without a row is refused.

        Raises ValueError for a tolerance that is none.
        """
        if tolerance not in TOLERANCES:
            raise ValueError(
                f"There is no safety_tolerance {tolerance}: it goes from {TOLERANCES[0]} to {TOLERANCES[-1]}."
            )
        effective = min(tolerance, MOST_WITH_PICTURES) if has_pictures else tolerance
        found = [name for name, row in self.refuse_from.items() if scores.get(name, 0.0) >= row[effective]]
        return (*found, *(name for name, value in scores.items() if value > 0 and name not in self.refuse_from))


@cache
def load(file: Path = FILE) -> Thresholds:
    """A table. Raises msgspec.ValidationError or ValueError where it breaks what is promised above."""
    read = msgspec.convert(tomllib.loads(file.read_text("utf-8")), _File)
    table = {
        name: tuple(math.inf if value == "never" else float(value) for value in row)
        for name, row in read.refuse_from.items()
    }
    for name, row in table.items():
        if len(row) != len(TOLERANCES) or not all(low <= high for low, high in pairwise(row)) or row[0] <= 0:
            raise ValueError(f"{name} needs {len(TOLERANCES)} thresholds above 0 that never fall.")
    if len(set(table.get(CHILD_SAFETY, ()))) != 1:
        raise ValueError(f"{CHILD_SAFETY} needs one threshold for every tolerance.")
    return Thresholds(version=read.version, refuse_from=table)
