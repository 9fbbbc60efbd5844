"""Clients that exist, as they are published and pinned here, pointed at a running server: `scripts/clients --test`.

Each runs in a process of its own with nothing of ours in it. What is expected of whom is a table, and docs/clients.md
shows it.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from PIL import Image
from servers import Server

from sample_pictures import file_of, picture

HERE = Path(__file__).parent
INSTALLED = HERE.parents[2] / ".clients"
PYTHON, MODULES = INSTALLED / "venv/bin/python", INSTALLED / "node/node_modules"
#: The size of each case's picture, or what the client's error has to say.
PICTURES = {
    "text": (512, 512), "ultra": (2048, 2048), "flux2": (512, 512), "kontext": (1024, 1024), "gpt-image": (512, 512),
    "mask": (256, 256), "stream": (512, 512),
}  # fmt: skip
ERRORS = {"size": r"multiple of 32", "key": r"401|[Aa]uthenticat"}
REFUSED = 3
SKIPPED = "not installed: scripts/clients installs the clients"
_SIX = ("text", "ultra", "flux2", "kontext", "size", "key")


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """A client and the cases it can be asked for; `tells`: errors that are less than ours, or its own."""

    name: str
    script: str
    cases: tuple[str, ...] = _SIX
    tells: dict[str, str] = field(default_factory=dict)
    tls: bool = False


CLIENTS = (
    Client(
        name="blackforest 0.1.3", script="python/call_blackforest.py",
        cases=("text", "ultra", "kontext", "size", "key"),
    ),
    Client(
        name="black-forest-labs 1.0.0", script="python/call_black_forest_labs.py",
        cases=("text", "ultra", "flux2", "size", "key"), tells={"size": "422"},
    ),
    Client(name="openai 3.57.0", script="python/call_openai.py", cases=(*_SIX, "gpt-image", "mask", "stream")),
    Client(name="replicate 1.0.7", script="python/call_replicate.py"),
    Client(
        name="huggingface_hub 1.21.0", script="python/call_huggingface_hub.py",
        cases=("text", "ultra", "flux2", "size", "key"),
    ),
    Client(
        name="litellm 1.110.2", script="python/call_litellm.py", cases=(*_SIX, "native"),
        tells={"native": "Rejected polling URL"},
    ),
    Client(name="openai 6.49.0 (npm)", script="node/openai.mjs", cases=(*_SIX, "gpt-image", "mask", "stream")),
    Client(name="replicate 1.4.0 (npm)", script="node/replicate.mjs"),
    Client(name="ai 6.0.326 (npm)", script="node/ai-sdk.mjs", cases=(*_SIX, "gpt-image")),
    Client(
        name="@huggingface/inference 4.13.21 (npm)", script="node/huggingface.mjs",
        cases=("text", "ultra", "flux2", "size", "key"),
    ),
    Client(name="bfl-api 1.7.1 (npm)", script="node/bfl-api.mjs", tls=True),
)  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(data_dir=tmp_path_factory.mktemp("clients") / "data", settings={"workers": "1", "fake_steps": "4"})
    try:
        yield server.start()
    finally:
        server.close()


@dataclass(frozen=True, slots=True)
class Front:
    """The same server as the world sees it behind TLS."""

    url: str
    key: str
    authority: Path


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("fronted")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "authority.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        server = Server(data_dir=folder / "data", settings={"workers": "1", "fake_steps": "4", "public_url": url})
        try:
            server.start()
            port = int(server.url.rpartition(":")[2])
            threading.Thread(target=serve_tls, args=(listener, context, port), daemon=True).start()
            yield Front(url, server.key, folder / "authority.pem")
        finally:
            server.close()


def serve_tls(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    """Hand every connection on, without its TLS, until the listener is closed."""
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=hand_on, args=(connection, context, port), daemon=True).start()


def hand_on(connection: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError), context.wrap_socket(connection, server_side=True) as inside:
        with socket.create_connection(("127.0.0.1", port)) as outside:
            back = threading.Thread(target=copy, args=(outside, inside), daemon=True)
            back.start()
            copy(inside, outside)
            back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def command_of(client: Client, folder: Path) -> list[str]:
    """How its script is run; skips where it is not installed."""
    is_python = client.script.endswith(".py")
    if not (PYTHON.exists() if is_python else MODULES.exists() and shutil.which("node")):
        pytest.skip(SKIPPED)
    if is_python:
        return [str(PYTHON), str(HERE / client.script)]
    # Modules are looked for beside a script.
    shutil.copytree(HERE / "node", folder / "node")
    (folder / "node" / "node_modules").symlink_to(MODULES)
    return ["node", str(folder / client.script)]


def row_of(client: Client) -> str:
    """What the page says of the client."""
    own = f"`{client.script.rpartition('/')[2]}`"
    shown = ["yes" if case in client.cases else "it has none" for case in _SIX]
    return f"| {client.name} | {own} | {' | '.join(shown)} |"


def test_the_page_of_clients_shows_this_table() -> None:
    page = (HERE.parents[2] / "docs" / "clients.md").read_text("utf-8")
    shown = [line for line in page.splitlines() if ".py` |" in line or ".mjs` |" in line]
    assert shown == [row_of(client) for client in CLIENTS]


@pytest.mark.parametrize("lock", ["requirements.lock", "node/package-lock.json"])
def test_the_pins_are_of_the_versions_that_are_shown(lock: str) -> None:
    text = (HERE / lock).read_text("utf-8")
    for client in CLIENTS:
        name, version, *_ = client.name.split(" ")
        if client.script.endswith(".py") == (lock == "requirements.lock"):
            pinned = f"{name.replace('_', '-')}==" if lock == "requirements.lock" else f'"{name}": "'
            assert f"{pinned}{version}" in text


@pytest.mark.parametrize(
    ("client", "case"),
    [pytest.param(client, case, id=f"{client.name}: {case}") for client in CLIENTS for case in client.cases],
)
def test_a_client_gets_its_picture_or_shows_why_not(
    request: pytest.FixtureRequest, tmp_path: Path, client: Client, case: str
) -> None:
    command = command_of(client, tmp_path)
    server = request.getfixturevalue("fronted" if client.tls else "running")
    key = "wrong" if case == "key" else server.key
    source, out = tmp_path / "source.png", tmp_path / "out"
    source.write_bytes(file_of(picture(256, 256)))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("FLUX")},
            "FLUX_URL": server.url, "FLUX_KEY": key, "FLUX_CASE": case,
            "FLUX_PICTURE": str(source), "FLUX_OUT": str(out), "PYTHONDONTWRITEBYTECODE": "1",
            # Read by some as they are imported, and by one that would look for prices on the network.
            "BFL_API_KEY": key, "BFL_API_BASE": server.url, "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            **({"NODE_EXTRA_CA_CERTS": str(server.authority)} if client.tls else {}),
        },
    )  # fmt: skip
    if case in PICTURES:
        assert done.returncode == 0, done.stdout + done.stderr
        with Image.open(out) as found:
            assert found.size == PICTURES[case]
    else:
        assert done.returncode == REFUSED, done.stdout + done.stderr
        assert re.search(client.tells.get(case, ERRORS.get(case, "")), done.stdout), done.stdout


@pytest.mark.parametrize("page", ["openai.md", "replicate.md"])
def test_the_program_of_a_page_leaves_a_picture(running: Server, tmp_path: Path, page: str) -> None:
    if not PYTHON.exists():
        pytest.skip(SKIPPED)
    text = (HERE.parents[2] / "docs" / page).read_text("utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [str(PYTHON), "-c", program.replace("http://127.0.0.1:8808", running.url)],
        env={**os.environ, "FLUXSERVE_API_KEY": running.key}, cwd=tmp_path, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "apple.png") as found:
        assert found.format == "PNG"
