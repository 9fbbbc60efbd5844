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
SEXUAL = "sexual"
TOLERANCES = range(7)
#: With pictures to draw from, nothing more is tolerated than this.
MOST_WITH_PICTURES = 2


Row = tuple[float | Literal["never"], ...]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    refuse_from: dict[str, Row]
    refuse_pictures_from: dict[str, Row]


class Thresholds(msgspec.Struct, frozen=True):
    """By category, for each tolerance, the least score that is refused: of texts, and `of_pictures`."""

    version: int
    refuse_from: Mapping[str, tuple[float, ...]]
    of_pictures: Mapping[str, tuple[float, ...]]

    def refused(self, scores: Mapping[str, float], tolerance: int, *, has_pictures: bool = False) -> tuple[str, ...]:
        """The categories for which these scores are refused, in the table's order; a score without a row is refused.

        Raises ValueError for a tolerance that is none.
        """
        effective = effective_tolerance(tolerance, has_pictures=has_pictures)
        found = [name for name, row in self.refuse_from.items() if scores.get(name, 0.0) >= row[effective]]
        return (*found, *(name for name, value in scores.items() if value > 0 and name not in self.refuse_from))

    def for_pictures(self, tolerance: int, *, has_pictures: bool, names_minor: bool) -> dict[str, float]:
        """By category, from which score on a drawn or sent picture is refused.

        `names_minor`: its prompt does; then what is sexual endangers children.
        """
        effective = effective_tolerance(tolerance, has_pictures=has_pictures)
        found = {name: row[effective] for name, row in self.of_pictures.items()}
        minors = found.pop(CHILD_SAFETY)
        if names_minor:
            found[SEXUAL] = min(found[SEXUAL], minors)
        return {name: least for name, least in found.items() if least < math.inf}


def effective_tolerance(tolerance: int, *, has_pictures: bool) -> int:
    """What is tolerated of a request that says `tolerance`. Raises ValueError for one that is none."""
    if tolerance not in TOLERANCES:
        raise ValueError(f"There is no safety_tolerance {tolerance}: it goes from {TOLERANCES[0]} to {TOLERANCES[-1]}.")
    return min(tolerance, MOST_WITH_PICTURES) if has_pictures else tolerance


@cache
def load(file: Path = FILE) -> Thresholds:
    """A table. Raises msgspec.ValidationError or ValueError where it breaks what is promised above."""
    read = msgspec.convert(tomllib.loads(file.read_text("utf-8")), _File)
    texts, pictures = _table(read.refuse_from), _table(read.refuse_pictures_from)
    if SEXUAL not in pictures:
        raise ValueError(f"Pictures need thresholds of {SEXUAL}.")
    return Thresholds(version=read.version, refuse_from=texts, of_pictures=pictures)


def _table(rows: Mapping[str, Row]) -> dict[str, tuple[float, ...]]:
    table = {name: tuple(math.inf if value == "never" else float(value) for value in row) for name, row in rows.items()}
    for name, row in table.items():
        if len(row) != len(TOLERANCES) or not all(low <= high for low, high in pairwise(row)) or row[0] <= 0:
            raise ValueError(f"{name} needs {len(TOLERANCES)} thresholds above 0 that never fall.")
    if len(set(table.get(CHILD_SAFETY, ()))) != 1:
        raise ValueError(f"{CHILD_SAFETY} needs one threshold for every tolerance.")
    return table
