"""Judges reports of pip-audit: every locked package has to be looked up, and none may have a known weakness."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import locked
from packaging.utils import canonicalize_name


def problems(reports: Iterable[str], expected: Mapping[str, str]) -> list[str]:
    """What is wrong, as sentences; `expected`: the version of each package. A report that is no JSON tells nothing."""
    found: dict[str, Mapping[str, Any]] = {}
    for report in reports:
        try:
            entries = json.loads(report)["dependencies"]
        except (ValueError, KeyError, TypeError):
            continue
        found |= {str(canonicalize_name(entry["name"])): entry for entry in entries}
    return [sentence for name, version in expected.items() for sentence in _of(name, version, found.get(name, {}))]


def _of(name: str, version: str, entry: Mapping[str, Any]) -> Sequence[str]:
    if entry.get("version") != version or "vulns" not in entry or "skip_reason" in entry:
        return [f"{name} {version} was not looked up: {entry.get('skip_reason', 'the report does not name it')}"]
    return [f"{name} {version}: {one['id']}, mended in {one['fix_versions'] or 'none'}" for one in entry["vulns"]]


def main(paths: Sequence[str]) -> int:
    """Print what is wrong; the exit status."""
    expected = {name: one.version for name, one in locked.read(locked.DEV).items()}
    expected["torch"] = locked.torch_version()
    told = problems([Path(path).read_text("utf-8") for path in paths], expected)
    for sentence in told:
        print(sentence)
    print(f"{len(expected)} packages, {len(told)} problems")
    return 1 if told else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
