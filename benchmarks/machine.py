"""What was measured where: the machine, the commit, and servers pinned to a core of their own."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVER_CORE, LOAD_CORE = 0, 1


@dataclass(frozen=True, slots=True)
class Server:
    """A running server under test."""

    port: int
    key: str
    data_dir: Path
    process: subprocess.Popen[bytes]

    @property
    def rss(self) -> int:
        """Resident memory of the server process, bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> float:
        """Processor time the server process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def describe() -> str:
    """One line: processor, cores, Python, commit."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, commit {commit}, load {load:.1f}"


def pin(core: int) -> None:
    """Keep this process on one core, where there is more than one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[core % len(cores)]})


@contextlib.contextmanager
def server(
    *, data_dir: Path | None = None, core: int | None = SERVER_CORE, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """A server on a free port; its data folder is kept when it was given."""
    with contextlib.ExitStack() as stack:
        folder = data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fluxserve-bench-")))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUXSERVE_")}
        environment |= {"FLUXSERVE_LOG_LEVEL": "error", **(settings or {})}
        process = subprocess.Popen(
            [sys.executable, "-m", "fluxserve", "serve", "--port", "0", "--data-dir", str(folder)],
            env=environment,
            stdout=subprocess.DEVNULL,
            preexec_fn=(lambda: pin(core)) if core is not None else None,
        )
        try:
            yield _wait(process, folder)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def new_key(server: Server) -> str:
    """A key of an account of its own."""
    command = [sys.executable, "-m", "fluxserve", "keys", "create", "other", "--account", "other"]
    made = subprocess.run(
        [*command, "--data-dir", str(server.data_dir)], capture_output=True, text=True, check=True
    )  # fmt: skip
    return next(word for word in made.stdout.split() if word.startswith("fx_"))


def _wait(process: subprocess.Popen[bytes], folder: Path) -> Server:
    address = folder / "address"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            port = int(address.read_text().rsplit(":", 1)[1])
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).read()
            return Server(port, (folder / "api_key").read_text().strip(), folder, process)
        time.sleep(0.02)
    message = "the server did not start"
    raise RuntimeError(message)


def wait_until_ready(port: int, seconds: float = 120) -> None:
    """Until a worker is warm."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).read()
            return
        time.sleep(0.05)
    message = "no worker became ready"
    raise RuntimeError(message)
