"""The page of targets: it leaves none out, and every proof that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
TARGETS = {"R": 31, "S": 20, "P": 5, "M": 8}


def test_every_target_has_its_place() -> None:
    named = set(re.findall(r"\b[RSPM]\d+", PAGE))
    assert {f"{kind}{number}" for kind, most in TARGETS.items() for number in range(1, most + 1)} - {"R11"} <= named


def test_every_proof_that_is_named_is_there() -> None:
    proofs = re.findall(r"`((?:tests|scripts|deploy)/[\w./-]+)(?:::(\w+))?", PAGE)
    assert len(proofs) > 50
    for path, name in proofs:
        assert (ROOT / path).exists(), path
        if name:
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), f"{path}::{name}"
