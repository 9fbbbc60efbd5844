"""Real server processes for tests: started on a free port, killed or stopped by pid, never left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

START_S = 90.0
#: Nothing here speaks TLS, and reading the system's certificates takes longer than a poll.
NO_TLS = False
Found = TypeVar("Found")
FLUXSERVE = (sys.executable, "-m", "fluxserve")


def until(look: Callable[[], Found | None], within: float, what: str) -> Found:
    """The first answer of `look` that is not falsy; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.01)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with nothing of fluxserve's in it but `settings`, named without the prefix."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUXSERVE_")}
    return kept | {f"FLUXSERVE_{name.upper()}": value for name, value in settings.items()}


@dataclass(frozen=True, slots=True)
class Process:
    """A living process, as /proc shows it."""

    pid: int
    session: int
    command: str

    @property
    def is_worker(self) -> bool:
        return " worker " in self.command

    def kill(self) -> None:
        """kill -9; one that has just ended by itself is fine too."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def processes() -> Iterator[Process]:
    """Every living process; a zombie has ended."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(") ")[2].split()[:4]
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (OSError, ValueError):
                continue
            if state != "Z":
                yield Process(int(folder.name), int(session), command)


@dataclass(slots=True, kw_only=True)
class Server:
    """One data folder and the server processes that serve it, one after the other.

    Every server is in a session of its own, which its workers stay in: so they can be found when the server itself is
    gone.
    """

    data_dir: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    sessions: list[int] = field(default_factory=list)
    #: Stands in front of its command.
    wrapper: tuple[str, ...] = ()

    # Life

    def start(self, *, ready: bool = True, **settings: str) -> Server:
        """Start a server process; waits until a worker is ready, unless told not to."""
        self._address.unlink(missing_ok=True)
        command = [*self.wrapper, *FLUXSERVE, "serve", "--port", "0", "--data-dir", str(self.data_dir)]
        command += ["--engine", self.settings.get("engine", "fake")]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=environment({**self.settings, **settings}),
            )  # fmt: skip
        self.sessions.append(self.process.pid)
        if ready:
            self.wait_until_ready()
        return self

    def wait_until_answers(self) -> Server:
        """The server says where it is and answers there."""
        until(lambda: self._ended() or (self._address.exists() and self._get("/healthz") == 200), START_S, "healthy")
        assert not self._ended(), f"the server ended:\n{self.log}"
        return self

    def wait_until_ready(self) -> None:
        """A worker is connected and warm."""
        until(lambda: self._ended() or (self._address.exists() and self._get("/readyz") == 200), START_S, "ready")
        assert not self._ended(), f"the server ended:\n{self.log}"

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _get(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=5.0, verify=NO_TLS).status_code
        except httpx.HTTPError:
            return 0

    def kill(self) -> None:
        """kill -9 of the server process alone; its workers live on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def kill_tree(self) -> None:
        """kill -9 of everything at once."""
        for process in self.processes():
            process.kill()
        assert self.process is not None
        self.process.wait()
        self.wait_until_gone(5.0)

    def stop(self, number: signal.Signals = signal.SIGTERM, *, group: bool = False, within: float = 20.0) -> int:
        """Signal the server, or its workers too, as whoever ends a whole group does; returns the exit status."""
        assert self.process is not None
        for process in self.processes() if group else ():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
        if not group:
            os.kill(self.process.pid, number)
        return self.process.wait(within)

    def close(self) -> None:
        """End whatever is left."""
        for process in self.processes():
            process.kill()
        if self.process is not None:
            self.process.wait(10.0)

    # What can be seen

    @property
    def log_path(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name[:40] + ".log")

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def _address(self) -> Path:
        return self.data_dir / "address"

    @property
    def url(self) -> str:
        return self._address.read_text().strip()

    @property
    def key(self) -> str:
        return (self.data_dir / "api_key").read_text().strip()

    def processes(self) -> list[Process]:
        """Every living process of all sessions."""
        return [process for process in processes() if process.session in self.sessions]

    def workers(self) -> list[Process]:
        """Living worker processes, those of earlier servers too."""
        return [process for process in self.processes() if process.is_worker]

    def worker_of(self, task_id: str) -> Process | None:
        """The process that draws the task."""
        ((worker_id,),) = self.rows("SELECT worker_id FROM tasks WHERE id = ?", task_id)
        return next((process for process in self.workers() if worker_id and worker_id in process.command), None)

    def wait_until_gone(self, within: float) -> None:
        """No process of any session is left."""
        until(lambda: not self.processes(), within, "no process is left")

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Read the database beside the server."""
        path = (self.data_dir / "fluxserve.db").absolute().as_uri()
        with closing(sqlite3.connect(f"{path}?mode=ro", uri=True, timeout=10.0)) as connection:
            return connection.execute(query, values).fetchall()

    # What callers do

    def client(self, key: str | None = None) -> httpx.Client:
        """Speaks BFL's dialect with the first key, or another."""
        return httpx.Client(base_url=self.url, headers={"x-key": key or self.key}, timeout=10.0, verify=NO_TLS)

    def submit(self, prompt: str, model: str = "flux-dev", **fields: object) -> str:
        """Submit a small picture and return the task's id."""
        body = {"prompt": prompt, "width": 256, "height": 256, **fields}
        with self.client() as client:
            answer = client.post(f"/v1/{model}", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def poll(self, task_id: str) -> dict[str, object]:
        """The task as a caller sees it."""
        with self.client() as client:
            answer = client.get("/v1/get_result", params={"id": task_id})
        assert answer.status_code == 200, answer.text
        polled: dict[str, object] = answer.json()
        return polled

    def wait(self, task_id: str, within: float = 20.0) -> dict[str, object]:
        """Poll until the task has ended."""
        return until(lambda: _ended(self.poll(task_id)), within, f"task {task_id} has ended")

    def wait_until_running(self, task_id: str) -> None:
        """The task is being drawn and its worker has told so."""
        until(lambda: self.poll(task_id)["progress"], 10.0, f"task {task_id} runs")

    def command(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the command line on this data folder."""
        return run(*arguments, "--data-dir", str(self.data_dir), **settings)


MakeServer = Callable[..., Server]


def _ended(polled: dict[str, object]) -> dict[str, object] | None:
    return None if polled["status"] == "Pending" else polled


def run(
    *arguments: str, within: float = 60.0, cwd: Path | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """Run `fluxserve` to its end."""
    return subprocess.run(
        [*FLUXSERVE, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=within, cwd=cwd, env=environment(settings),
    )  # fmt: skip
