"""Work folders: one with tiny packages for what reads them, one with sprites and text for what trains on them."""

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


@pytest.fixture(scope="session")
def _house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: sprites, text side and code of the small house."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    import small_house

    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUXSERVE_TRAINING_WORK", str(folder))
        small_house.furnish(folder)
    return folder


@pytest.fixture
def house(_house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder of the test's own, with the small house in it."""
    folder = tmp_path / "house"
    folder.mkdir()
    for part in _house.iterdir():
        (folder / part.name).symlink_to(part)
    monkeypatch.setenv("FLUXSERVE_TRAINING_WORK", str(folder))
    return folder


def _forget() -> None:
    for cached in CACHED:
        cached.cache_clear()
