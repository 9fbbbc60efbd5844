"""The published samples, run for real: only the address and the key are changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server

PUBLISHED = "https://api.cometapi.com"
SHELL = """
curl https://api.cometapi.com/flux/v1/flux-dev \\
  -H "Authorization: Bearer $COMETAPI_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "A paper boat floating on calm water at sunrise.",
    "width": 512,
    "height": 512
  }'
"""
SHELL_LONG = """
curl --request POST \\
--url https://api.cometapi.com/flux/v1/flux-pro-1.1 \\
--header "Authorization: Bearer $COMETAPI_KEY" \\
--header 'Content-Type: application/json' \\
--data '
{
"prompt": "Hello"
}
'
"""
PYTHON = """
import os
import requests

response = requests.post(
    "https://api.cometapi.com/flux/v1/flux-dev",
    headers={"Authorization": "Bearer " + os.environ["COMETAPI_KEY"]},
    json={
        "prompt": "A paper boat floating on calm water at sunrise.",
        "width": 512,
        "height": 512,
    },
)

task = response.json()

print(task["id"])  # poll /flux/v1/get_result?id=... promptly; finished results expire
"""
JAVASCRIPT = """
const response = await fetch("https://api.cometapi.com/flux/v1/flux-dev", {
    method: "POST",
    headers: {
        Authorization: `Bearer ${process.env.COMETAPI_KEY}`,
        "Content-Type": "application/json",
    },
    body: JSON.stringify({
        prompt: "A paper boat floating on calm water at sunrise.",
        width: 512,
        height: 512,
    }),
});

const task = await response.json();

console.log(task.id); // poll /flux/v1/get_result?id=... promptly; finished results expire
"""
SAMPLES = {
    "curl": (["bash", "-c"], SHELL),
    "curl with long options": (["bash", "-c"], SHELL_LONG),
    "Python": ([sys.executable, "-c"], PYTHON),
    "Node": (["node", "--input-type=module", "-e"], JAVASCRIPT),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(data_dir=tmp_path_factory.mktemp("samples") / "data")
    try:
        yield server.start()
    finally:
        server.close()


@pytest.mark.parametrize(("command", "sample"), SAMPLES.values(), ids=SAMPLES)
def test_a_published_sample_runs_with_only_address_and_key_changed(
    running: Server, tmp_path: Path, command: list[str], sample: str
) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(
        [*command, sample.replace(PUBLISHED, running.url)],
        env={**os.environ, "COMETAPI_KEY": running.key}, cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip()
    task_id = said.partition('"id":"')[2].partition('"')[0] or said
    assert uuid.UUID(task_id).version == 4
    assert running.wait(task_id)["status"] == "Ready"
