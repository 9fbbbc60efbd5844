"""The README's examples, run as they stand: only the address is changed, and the key is given."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from servers import Server

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
ADDRESS = "http://127.0.0.1:8808"
COMMANDS = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-c"],
    "javascript": ["node", "--input-type=module", "-e"],
}
#: Every block that talks to the server at its address; the others set up, or show the command line.
EXAMPLES = [
    (language, code)
    for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    if language in COMMANDS and ADDRESS in code and "scripts/run" not in code
]
#: By what an example draws.
SIZES = {
    "apple": (512, 512),
    "a panda": (512, 512),
    "a tiger": (512, 512),
    "panda": (1024, 768),
    "green-apple": (1024, 1024),
}
FORMATS = {".jpeg": "JPEG", ".png": "PNG"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(data_dir=tmp_path_factory.mktemp("readme") / "data")
    try:
        yield server.start()
    finally:
        server.close()


def test_each_dialect_is_shown_in_three_languages_and_the_client_twice() -> None:
    shown = [(language, "/flux/v1" in code) for language, code in EXAMPLES if "fluxserve.client" not in code]
    assert sorted(shown) == [(language, cometapi) for language in sorted(COMMANDS) for cometapi in (False, True)]
    assert sum("fluxserve.client" in code for _, code in EXAMPLES) == 2


@pytest.mark.parametrize(
    ("language", "code"), EXAMPLES, ids=[f"{number} {language}" for number, (language, _) in enumerate(EXAMPLES)]
)
def test_an_example_leaves_its_pictures_in_the_current_folder(
    running: Server, tmp_path: Path, language: str, code: str
) -> None:
    command = COMMANDS[language]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [*command, code.replace(ADDRESS, running.url)],
        env={**os.environ, "FLUXSERVE_API_KEY": running.key}, cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    paths = list(tmp_path.iterdir())
    assert paths
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert picture.format == FORMATS[path.suffix]
            assert picture.size == SIZES[path.stem]


def test_the_links_of_the_readme_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[2] / target).exists(), target
