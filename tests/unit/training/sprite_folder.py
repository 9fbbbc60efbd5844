"""A work folder whose sets are the house's coloured shapes: fifteen things that any eye can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from sprite_house import house_records, house_sprites

from training.records import Record
from training.render import Stamp

THINGS = 15  # three shapes in five colours; further ones repeat them


def write_sprites(work: Path, sets: Sequence[str], style: str = "flat") -> list[Record]:
    """Each set with the same things; gives the records of all."""
    folder = work / "sprites"
    folder.mkdir()
    written = []
    for name in sets:
        records = [msgspec.structs.replace(record, set=name, style=style) for record in house_records()[:THINGS]]
        np.save(folder / f"{name}.npy", house_sprites(THINGS))
        (folder / f"{name}.jsonl").write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in records))
        stamp = Stamp(fingerprint="", kept=(True,) * THINGS)
        (folder / f"{name}.json").write_bytes(msgspec.json.encode(stamp))
        written += records
    return written
