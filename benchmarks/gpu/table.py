"""The results of this folder as tables, for benchmarks/LOG.md and README.md.

.venv/bin/python benchmarks/gpu/table.py
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import lab


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table for each stage; of what was measured more than once the last."""
    parser = argparse.ArgumentParser(description="Results as tables.")
    parser.add_argument("--out", type=Path, default=lab.RESULTS)
    file = parser.parse_args(arguments).out
    rows: dict[tuple[str, ...], Mapping[str, object]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        rows[tuple(row[name] for name in ("stage", "machine", "model", "what"))] = row
    for stage in dict.fromkeys(key[0] for key in rows):
        _print(stage, [row for key, row in rows.items() if key[0] == stage])
    return 0


def _print(stage: str, rows: Sequence[Mapping[str, object]]) -> None:
    figures = list(dict.fromkeys(name for row in rows for name, value in row.items() if isinstance(value, float)))
    figures += [name for name in ("held", "failed") if any(name in row for row in rows)]
    heads = ("model", "what", *figures, "machine", "commit")
    print(f"\n### {stage}\n\n| {' | '.join(name.replace('_', ' ') for name in heads)} |\n|{'---|' * len(heads)}")
    for row in rows:
        print(f"| {' | '.join(_cell(row.get(name, '')) for name in heads)} |")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
