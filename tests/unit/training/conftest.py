"""A work folder with tiny packages, for the tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import small_packages

from training import emoji, emojibase, pictures, wordnet

CACHED = (
    *(emoji.things, emojibase.entries, emojibase.labels, emojibase.subgroups, emojibase.typed),
    *(emojibase.unicode_names, pictures.known, wordnet.nouns),
)


@pytest.fixture
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Training's work folder, with the small packages unpacked in it."""
    monkeypatch.setenv("FLUXSERVE_TRAINING_WORK", str(tmp_path))
    small_packages.write(tmp_path / "packages")
    _forget()
    yield tmp_path
    _forget()


def _forget() -> None:
    for cached in CACHED:
        cached.cache_clear()
