"""Webhooks with real processes: the courier starts when it is needed, and whatever is killed, none is lost."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from servers import MakeServer, Process, Server, until
from standardwebhooks.webhooks import Webhook

SECRET = "whsec_" + "a2tr" * 8
LOCAL = "127.0.0.0/8"


@dataclass
class Inbox:
    """A receiver in this process. Shut, it holds every request until it is opened."""

    port: int = 0
    #: Task and webhook id of each whole request, and of those that were answered.
    seen: list[tuple[str, str]] = field(default_factory=list)
    answered: list[tuple[str, str]] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        told = Webhook(SECRET).verify(body, {name.lower(): value for name, value in handler.headers.items()})
        assert isinstance(told, dict)
        entry = (str(told["task_id"]), str(handler.headers["webhook-id"]))
        self.seen.append(entry)
        self.is_open.wait(60.0)
        handler.send_response(204)
        handler.end_headers()
        self.answered.append(entry)


@contextmanager
def inbox() -> Iterator[Inbox]:
    """One on a free port."""
    box = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            box.take(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a courier that was killed hangs up
        box.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield box
        finally:
            box.is_open.set()
            server.shutdown()
            thread.join()


def couriers(server: Server) -> list[Process]:
    return [process for process in server.processes() if " courier " in process.command]


def submit(server: Server, box: Inbox, count: int) -> list[str]:
    return [server.submit(f"apple {number}", webhook_url=box.url, webhook_secret=SECRET) for number in range(count)]


def states(server: Server) -> dict[str, int]:
    with server.client() as client:
        listed = client.get("/v1/webhooks/deliveries", params={"limit": 200}).json()["deliveries"]
    return {state: sum(one["status"] == state for one in listed) for state in ("waiting", "delivered", "dead")}


def _kill_courier(server: Server) -> None:
    (courier,) = couriers(server)
    courier.kill()
    until(lambda: couriers(server) not in ([], [courier]), 20.0, "another one is there")


def _kill_all(server: Server) -> None:
    server.kill_tree()
    server.start()


def _stop(server: Server) -> None:
    assert server.stop(signal.SIGTERM) == 0
    server.start()


def _lives(server: Server, box: Inbox, *ends: Callable[[Server], None]) -> None:
    """At each end all are at the receiver and none is answered; then they are sent again."""
    tasks = submit(server, box, 8)
    for number, end in enumerate(ends, 1):
        until(lambda number=number: len(box.seen) >= 8 * number, 40.0, "all are sent")  # type: ignore[misc]
        end(server)
    box.is_open.set()
    until(lambda: states(server) == {"waiting": 0, "delivered": 8, "dead": 0}, 60.0, "all are delivered")
    assert {task for task, _ in box.answered} == set(tasks)
    assert set(box.seen) == {(task, f"msg_{task.replace('-', '')}") for task in tasks}
    assert server.command("fsck").returncode == 0


def test_couriers_and_whole_servers_that_are_killed_with_webhooks_under_way_lose_none(make_server: MakeServer) -> None:
    with inbox() as box:
        _lives(make_server(outbound_allow=LOCAL).start(), box, _kill_courier, _kill_all)


def test_the_courier_comes_with_the_first_webhook_and_a_restart_waits_for_no_slow_receiver(
    make_server: MakeServer,
) -> None:
    with inbox() as box:
        server = make_server(outbound_allow=LOCAL).start()
        server.wait(server.submit("no webhook"))
        assert couriers(server) == []
        _lives(server, box, _stop)
        assert len(couriers(server)) == 1
        rows = server.rows("SELECT attempts, webhook_secret FROM deliveries JOIN tasks ON id = task_id")
        # Attempts that a restart cut short do not count.
        assert [attempts for attempts, _ in rows] == [1] * 8
        assert not [sealed for _, sealed in rows if SECRET in json.dumps(sealed)]
        assert server.stop() == 0
        server.wait_until_gone(2.0)
        assert "Traceback" not in server.log
