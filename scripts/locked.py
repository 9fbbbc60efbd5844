"""What requirements/dev.lock pins, and which of it a running server or worker needs.

locked.py run      rewrites requirements/run.lock: dev.lock without what only tests and checks need
locked.py sbom     writes a bill of materials (CycloneDX 1.6, JSON) to standard output
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
DEV, RUN, BUILD = (REQUIREMENTS / f"{name}.lock" for name in ("dev", "run", "build"))
#: What each part is needed for.
ROOTS = {RUN: "fluxserve[local]", BUILD: "hatchling"}
TORCH = Path(__file__).with_name("setup")
HEAD = "# A part of dev.lock: what {root} needs. scripts/lock writes both.\n--only-binary :all:\n\n"
_PINNED = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;\\]+)(?P<rest>(?:.*\\\n)*.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """One pinned package, with the text that pins it and the SHA-256 of each of its files."""

    name: str
    version: str
    text: str
    hashes: tuple[str, ...]


def read(path: Path) -> dict[str, Locked]:
    """Every package of a lock by its name, in the lock's order."""
    found = {}
    for match in _PINNED.finditer(path.read_text("utf-8")):
        name = canonicalize_name(match["name"])
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})", match["rest"]))
        found[str(name)] = Locked(name=str(name), version=match["version"], text=match[0], hashes=hashes)
    return found


def torch_version() -> str:
    """torch is pinned by version in scripts/setup: each machine needs another build of it."""
    (version,) = re.findall(r"^torch_version=(\S+)$", TORCH.read_text("utf-8"), re.MULTILINE)
    return str(version)


def needed(roots: Iterable[str]) -> set[str]:
    """The packages that these need, on this Python and with those that they need in turn."""
    pending, seen = [Requirement(root) for root in roots], set[tuple[str, frozenset[str]]]()
    while pending:
        requirement = pending.pop()
        name, extras = str(canonicalize_name(requirement.name)), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in metadata.requires(name) or []:
            child = Requirement(line)
            if child.marker is None or any(child.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                pending.append(child)
    return {name for name, _ in seen}


def part(path: Path) -> dict[str, Locked]:
    """The packages of dev.lock that belong into this part, without torch."""
    wanted = needed([ROOTS[path]])
    return {name: locked for name, locked in read(DEV).items() if name in wanted}


def text_of(path: Path) -> str:
    """The text of a part."""
    return HEAD.format(root=ROOTS[path]) + "\n".join(locked.text for locked in part(path).values()) + "\n"


def bill(of_running: Mapping[str, Locked], everything: Mapping[str, Locked]) -> dict[str, object]:
    """The bill of materials: what runs is required, what only tests and checks need is excluded."""
    from fluxserve import __version__

    torch = Locked(name="torch", version=torch_version(), text="", hashes=())
    components = [
        _component(locked, "required" if locked.name in of_running or locked is torch else "excluded")
        for locked in (*everything.values(), torch)
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": "fluxserve", "name": "fluxserve", "version": __version__,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": [
            *components,
            {
                "type": "machine-learning-model", "bom-ref": "mini", "name": "mini", "version": __version__,
                "scope": "required",
            },
        ],
        "dependencies": [
            {"ref": "fluxserve", "dependsOn": sorted([*map(_purl, of_running.values()), _purl(torch), "mini"])}
        ],
    }  # fmt: skip


def _purl(locked: Locked) -> str:
    return f"pkg:pypi/{locked.name}@{locked.version}"


def _component(locked: Locked, scope: str) -> dict[str, object]:
    return {
        "type": "library", "bom-ref": _purl(locked), "name": locked.name, "version": locked.version,
        "purl": _purl(locked), "scope": scope,
        "properties": [{"name": "fluxserve:locked:sha256", "value": digest} for digest in locked.hashes],
    }  # fmt: skip


def main(arguments: list[str]) -> int:
    """Do one of the two; the exit status."""
    if arguments == ["parts"]:
        for path in ROOTS:
            path.write_text(text_of(path), encoding="utf-8")
    elif arguments == ["sbom"]:
        json.dump(bill(part(RUN), read(DEV)), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
