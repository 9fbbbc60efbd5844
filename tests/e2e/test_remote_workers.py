"""Workers on other machines: over TCP, with a token, through cuts, restarts and nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from servers import FLUXSERVE, MakeServer, Server, environment, run, until

from fluxserve.catalogue import Generation, Size
from fluxserve.fleet.local import EXIT_CONFIGURATION
from fluxserve.worker import protocol
from fluxserve.worker.connection import Streams, run_dir
from fluxserve.worker.process import EXIT_BROKEN

TOKEN = "a-token-for-workers"
StartWorker = Callable[..., subprocess.Popen[bytes]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def place() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture
def server(make_server: MakeServer, place: str) -> Server:
    """A server without workers of its own."""
    settings = {"worker_listen": place, "worker_token": TOKEN, "lease": "2", "heartbeat": "0.3"}
    return make_server(workers="0", **settings).start(ready=False).wait_until_answers()


@pytest.fixture
def start_worker(place: str, tmp_path: Path) -> Iterator[StartWorker]:
    """Start a worker that dials the server over TCP."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        settings = {"engine": "fake", "fake_steps": "4", "heartbeat": "0.3", "worker_token": TOKEN, **settings}
        with (tmp_path / "workers.log").open("ab") as log:
            command = [*FLUXSERVE, "worker", "--server", f"tcp:{place}", *arguments]
            process = subprocess.Popen(command, env=environment(settings), stdout=log, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def fence(server: Server, task_id: str) -> object:
    return server.rows("SELECT fence FROM tasks WHERE id = ?", task_id)[0][0]


def test_a_worker_draws_over_tcp(server: Server, start_worker: StartWorker) -> None:
    task = server.submit("a red apple")
    start_worker()
    assert server.wait(task)["status"] == "Ready"


def test_a_worker_with_a_wrong_token_is_told_so_and_ends(server: Server, place: str) -> None:
    command = ["worker", "--server", f"tcp:{place}"]
    for wrong in ("wrong", ""):
        ended = run(*command, engine="fake", worker_token=wrong)
        assert ended.returncode == 1
        assert "The server refused this worker: The worker token is wrong." in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_remote_worker_cannot_take_the_name_of_a_local_one(server: Server, place: str) -> None:
    ended = run("worker", "--server", f"tcp:{place}", "--worker-id", "local-0", engine="fake", worker_token=TOKEN)
    assert ended.returncode == 1
    assert "local-" in ended.stderr
    ended = run("worker", "--server", f"tcp:{place}", "--worker-id", "../../x", engine="fake", worker_token=TOKEN)
    assert ended.returncode == 1


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:99999", "tcp:127.0.0.1:", "127.0.0.1:8808"])
def test_a_worker_with_an_address_that_cannot_be_is_told_so_and_ends(address: str) -> None:
    ended = run("worker", "--server", address, engine="fake", worker_token=TOKEN)
    assert ended.returncode == EXIT_CONFIGURATION
    assert f"{address!r} is no server address: use unix:PATH or tcp:HOST:PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("level", ["info", "debug"])
def test_a_worker_whose_engine_breaks_says_so_in_one_line_and_ends(level: str) -> None:
    unheard_of = Generation(
        model="flux-dev", prompt="a red apple", size=Size(256, 256), seed=1, steps=0, guidance=3.5, output_format="jpeg"
    )

    async def play() -> tuple[int | None, str]:
        arrived: asyncio.Queue[Streams] = asyncio.Queue()
        listener = await asyncio.start_server(lambda *streams: arrived.put_nowait(streams), "127.0.0.1", 0)
        command = [*FLUXSERVE, "worker", "--server", f"tcp:127.0.0.1:{listener.sockets[0].getsockname()[1]}"]
        worker = await asyncio.create_subprocess_exec(
            *command, stderr=asyncio.subprocess.PIPE, env=environment({"engine": "fake", "log_level": level})
        )
        _, writer = await asyncio.wait_for(arrived.get(), 20.0)
        writer.write(protocol.to_frame(protocol.Welcome(heartbeat=5.0, lease=30.0, kept=())))
        task = protocol.Assignment(task_id="t1", fence=1, turn=1.0, flow="k", generation=unheard_of)
        writer.write(protocol.to_frame(protocol.Tasks(assignments=(task,))))
        _, said = await asyncio.wait_for(worker.communicate(), 20.0)
        writer.close()
        listener.close()
        return worker.returncode, said.decode()

    status, said = asyncio.run(play())
    assert status == EXIT_BROKEN
    assert said.count("The worker broke and ends") == 1
    assert "ZeroDivisionError" in said
    assert ("Traceback" in said) == (level == "debug")


def test_a_killed_remote_worker_loses_its_lease_and_another_draws(server: Server, start_worker: StartWorker) -> None:
    first = start_worker(fake_latency="60")
    task = server.submit("a red apple")
    until(lambda: fence(server, task) == 1, 10.0, "the task is claimed")
    first.kill()
    first.wait()
    start_worker()
    assert server.wait(task, within=10.0)["status"] == "Ready"
    assert fence(server, task) == 2


def test_a_worker_that_asks_less_often_than_its_server_wants_is_not_taken_for_hung(
    server: Server, start_worker: StartWorker
) -> None:
    start_worker(fake_latency="4", fake_steps="1", heartbeat="60", lease="600")  # the server's lease is 2 s
    task = server.submit("a red apple")
    assert server.wait(task)["status"] == "Ready"
    assert fence(server, task) == 1
    assert "A worker hangs" not in server.log


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_remote_worker_draws_on_while_its_server_is_restarted(
    server: Server, start_worker: StartWorker, how: str
) -> None:
    worker = start_worker(fake_latency="3")
    task = server.submit("a red apple")
    server.wait_until_running(task)
    if how == "killed":
        server.kill()
    else:
        assert server.stop() == 0
    server.start(lease="10")
    assert server.wait(task)["status"] == "Ready"
    assert fence(server, task) == 1
    assert worker.poll() is None
    assert server.wait(server.submit("a green apple"))["status"] == "Ready"


def test_a_remote_worker_ends_when_told_to(server: Server, start_worker: StartWorker) -> None:
    idle = start_worker()
    server.wait_until_ready()
    idle.send_signal(signal.SIGTERM)
    assert idle.wait(5.0) == 0
    busy = start_worker(fake_latency="1")
    task = server.submit("a red apple")
    server.wait_until_running(task)
    busy.send_signal(signal.SIGTERM)
    assert busy.wait(10.0) == 0
    assert server.poll(task)["status"] == "Ready"
    assert fence(server, task) == 1


def test_a_task_that_never_reached_its_worker_is_given_out_again(server: Server, place: str) -> None:
    """A worker that returns within its lease without a claim has not got it: nobody else could know."""

    async def play() -> None:
        task = await asyncio.to_thread(server.submit, "a red apple")
        reader, writer = await hello(place, held=())
        assert isinstance(await protocol.read_from_server(reader), protocol.Welcome)
        writer.write(protocol.to_frame(protocol.Want(count=1)))
        await asyncio.to_thread(until, lambda: fence(server, task) == 1, 5.0, "claimed")
        writer.close()
        reader, writer = await hello(place, held=())
        assert isinstance(await protocol.read_from_server(reader), protocol.Welcome)
        writer.write(protocol.to_frame(protocol.Want(count=1)))
        given = await asyncio.wait_for(protocol.read_from_server(reader), 5.0)
        assert isinstance(given, protocol.Tasks)
        assert [(one.task_id, one.fence) for one in given.assignments] == [(task, 2)]
        writer.close()

    asyncio.run(play())


def test_a_picture_that_comes_after_the_lease_is_refused(server: Server, place: str, start_worker: StartWorker) -> None:
    async def claim_and_vanish(task: str) -> None:
        reader, writer = await hello(place)
        assert isinstance(await protocol.read_from_server(reader), protocol.Welcome)
        writer.write(protocol.to_frame(protocol.Want(count=1)))
        assert isinstance(await asyncio.wait_for(protocol.read_from_server(reader), 5.0), protocol.Tasks)
        writer.close()

    async def hand_in_late(task: str) -> None:
        reader, writer = await hello(place, held=(protocol.Held(task_id=task, fence=1),))
        welcome = await protocol.read_from_server(reader)
        assert isinstance(welcome, protocol.Welcome)
        assert welcome.kept == ()
        late = protocol.Finished(task_id=task, fence=1, picture=b"late", drawn_by="nobody", duration=1.0, facts={})
        writer.write(protocol.to_frame(late))
        settled = await asyncio.wait_for(protocol.read_from_server(reader), 5.0)
        assert settled == protocol.Settled(task_id=task, fence=1, accepted=False)
        writer.close()

    task = server.submit("a red apple")
    asyncio.run(claim_and_vanish(task))
    start_worker()
    assert server.wait(task, within=10.0)["status"] == "Ready"
    asyncio.run(hand_in_late(task))
    assert server.poll(task)["details"]["drawn_by"] == "fluxserve-fake"  # type: ignore[index]
    assert server.rows("SELECT fence FROM tasks") == [(2,)]
    assert server.rows("SELECT count(*) FROM outbox") == [(1,)]
    assert len(list((server.data_dir / "results").glob("??/*"))) == 1


async def hello(place: str, *, version: int = protocol.VERSION, held: tuple[protocol.Held, ...] = ()) -> Streams:
    host, _, port = place.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    greeting = protocol.Hello(
        version=version, worker_id="worker-by-hand", pid=1, models=("flux-dev",), engine="none", fingerprints={},
        capacity=1, classifier="hand", token=TOKEN, held=held,
    )  # fmt: skip
    writer.write(protocol.to_frame(greeting))
    return reader, writer


def test_a_worker_of_another_protocol_version_is_refused(server: Server, place: str) -> None:
    async def play() -> None:
        reader, writer = await hello(place, version=protocol.VERSION + 1)
        answer = await asyncio.wait_for(protocol.read_from_server(reader), 5.0)
        assert isinstance(answer, protocol.Refused)
        assert "use equal versions" in answer.reason
        assert await protocol.read_from_server(reader) is None
        writer.close()

    asyncio.run(play())


def frame(message: object) -> bytes:
    body = msgspec.msgpack.encode(message)
    return struct.pack(">I", len(body)) + body


NONSENSE = {
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "a frame over every limit": struct.pack(">I", 2**32 - 1) + b"x" * 1000,
    "a hello over its limit": struct.pack(">I", 2**20 + 1) + b"x" * (2**20 + 1),
    "no message": frame({"type": "nonsense"}),
    "no map": frame([1, 2, 3]),
    "no msgpack": struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
    "another hello": frame({"type": "hello", "version": 7}),
    "another message": frame({"type": "want", "count": 3}),
    "half a frame": struct.pack(">I", 1000) + b"x",
    "nothing": b"",
}


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_nonsense_on_the_worker_socket_does_not_hurt_the_server(
    server: Server, place: str, start_worker: StartWorker, way: str
) -> None:
    host, _, port = place.partition(":")
    for nonsense in NONSENSE.values():
        family = socket.AF_INET if way == "tcp" else socket.AF_UNIX
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(5.0)
            connection.connect((host, int(port)) if way == "tcp" else str(run_dir(server.data_dir) / "worker.sock"))
            with contextlib.suppress(OSError):  # the server need not read to the end
                connection.sendall(nonsense)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):  # at most a refusal
                    pass
    start_worker()
    assert server.wait(server.submit("a red apple"))["status"] == "Ready"
    assert "Traceback" not in server.log
    assert server.process is not None
    os.kill(server.process.pid, 0)


def test_nonsense_after_a_good_hello_ends_that_connection_only(server: Server, place: str) -> None:
    async def play() -> None:
        for nonsense in NONSENSE.values():
            reader, writer = await hello(place)
            assert isinstance(await protocol.read_from_server(reader), protocol.Welcome)
            writer.write(nonsense)
            writer.write_eof()
            while await protocol.read_from_server(reader) is not None:
                pass
            writer.close()

    asyncio.run(play())
    assert "Traceback" not in server.log
    assert server.poll(server.submit("a red apple"))["status"] == "Pending"
