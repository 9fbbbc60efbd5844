"""The programs of docs/migrate.md, run as they stand: only the address is changed, and the key is given."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from servers import Server

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "migrate.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8808"
SECTION = re.compile(r"^## From (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
PROGRAM = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = {name: PROGRAM.findall(text) for name, text in SECTION.findall(PAGE)}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(data_dir=tmp_path_factory.mktemp("migrate") / "data", settings={"workers": "1"})
    try:
        yield server.start()
    finally:
        server.close()


def test_every_section_shows_one_program_at_the_address() -> None:
    assert list(PROGRAMS) == ["api.bfl.ai", "CometAPI", "Replicate", "OpenAI images", "ComfyUI's API"]
    assert all(len(programs) == 1 and ADDRESS in programs[0] for programs in PROGRAMS.values())


def run(running: Server, folder: Path, name: str) -> Path:
    """What the section's program leaves."""
    (program,) = PROGRAMS[name]
    done = subprocess.run(
        [sys.executable, "-c", program.replace(ADDRESS, running.url)],
        env={**os.environ, "FLUXSERVE_API_KEY": running.key}, cwd=folder, capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_leaves_a_picture_in_the_current_folder(running: Server, tmp_path: Path, name: str) -> None:
    path = run(running, tmp_path, name)
    with Image.open(path) as picture:
        picture.load()
        assert (path.stem, picture.size) == ("apple", (512, 512))
        assert path.suffix == f".{str(picture.format).lower()}"


def test_the_seed_and_steps_of_a_workflow_are_drawn(running: Server, tmp_path: Path) -> None:
    run(running, tmp_path, "ComfyUI's API")
    ((generation,), *_) = running.rows("SELECT generation FROM tasks ORDER BY rowid DESC")
    assert '"seed":7,' in str(generation)
    assert '"steps":20,' in str(generation)


def test_the_links_of_the_page_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)", PAGE):
        assert (DOCS / target).exists(), target
