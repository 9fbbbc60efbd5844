"""What is known of each picture: its label, names, keywords, style, set and licence, without the picture itself."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True):
    """One picture's facts. The same thing has the same `label` in every set; a set holds a label at most once."""

    label: str  # English, lower case, from CLDR: "red apple", "cat face", "flag of france"
    name: str  # what a person would call it: "car" for "automobile"; no two labels share one
    style: str  # of the set: "glossy", "3d", "flat", ...
    set: str  # "noto", "fluent3d", ...
    license: str  # SPDX
    group: str  # one of training.emoji.Group
    keywords: tuple[str, ...]  # other words that really name it, best first; no name or label of another thing
    labels: dict[str, str]  # language -> label


def records() -> list[Record]:
    """Every picture's facts, set by set, always in the same order."""
    from training.pictures import SETS, pictures

    return [picture.record for name in SETS for picture in pictures(name)]
