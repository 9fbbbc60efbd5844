"""Workers that crash, hang, are killed or lose their server: others draw their tasks, and only the guilty end."""

from __future__ import annotations

import os
import signal
import time

import pytest
from servers import MakeServer, Server, until

HEALTHY = 20


def attempts(server: Server, task_id: str) -> tuple[int, int]:
    """Times claimed, and times its worker may have died of it."""
    ((fence, spoiled),) = server.rows("SELECT fence, spoiled FROM tasks WHERE id = ?", task_id)
    return int(str(fence)), int(str(spoiled))


def moves(server: Server, task_id: str) -> list[object]:
    return [kind for (kind,) in server.rows("SELECT kind FROM ledger WHERE task_id = ? ORDER BY seq", task_id)]


def books_are_in_order(server: Server) -> bool:
    return server.command("fsck").returncode == 0


def test_a_task_whose_worker_is_killed_is_drawn_again_at_once(
    make_server: MakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server = make_server(workers="2", fake_latency="0.6").start()
    task = server.submit("a red apple", seed=1)
    server.wait_until_running(task)
    worker = server.worker_of(task)
    assert worker is not None
    worker.kill()
    killed_at = time.monotonic()
    until(lambda: attempts(server, task)[0] == 2, 5.0, "claimed again")
    seconds = time.monotonic() - killed_at
    assert server.wait(task)["status"] == "Ready"
    with capsys.disabled():
        print(f"\n  death of a worker to its task being drawn again: {1000 * seconds:.0f} ms")


def test_a_worker_hands_its_picture_to_the_next_server_and_ends(make_server: MakeServer) -> None:
    server = make_server(fake_latency="4").start()
    task = server.submit("a red apple", seed=1)
    server.wait_until_running(task)
    orphan = server.worker_of(task)
    server.kill()
    server.start(ready=False).wait_until_answers()
    assert orphan in server.workers()
    assert server.wait(task)["status"] == "Ready"
    assert attempts(server, task) == (1, 0)
    assert server.log.count("Task claimed") == 1
    until(lambda: orphan not in server.workers(), 5.0, "the orphan has ended")
    assert server.stop() == 0
    server.wait_until_gone(2.0)


def test_a_picture_drawn_while_no_server_was_there_is_handed_in(make_server: MakeServer) -> None:
    server = make_server(fake_latency="0.2").start()
    task = server.submit("a red apple", seed=1)
    server.wait_until_running(task)
    server.kill()
    server.start()  # takes longer than the picture
    assert server.wait(task)["status"] == "Ready"
    assert attempts(server, task) == (1, 0)


def test_an_orphan_outlives_several_servers(make_server: MakeServer) -> None:
    server = make_server(fake_latency="4").start()
    task = server.submit("a red apple", seed=1)
    server.wait_until_running(task)
    for _ in range(2):
        server.kill()
        server.start()
    assert server.wait(task)["status"] == "Ready"
    assert attempts(server, task) == (1, 0)


def test_a_task_whose_orphan_is_killed_before_the_next_server_is_drawn_again_uncounted(make_server: MakeServer) -> None:
    server = make_server(fake_latency="0.5").start()
    task = server.submit("a red apple", seed=1)
    server.wait_until_running(task)
    server.kill_tree()
    server.start()
    assert server.wait(task)["status"] == "Ready"
    assert attempts(server, task) == (2, 0)


def test_an_idle_orphan_ends_at_once(make_server: MakeServer) -> None:
    server = make_server(workers="2").start()
    server.kill()
    server.wait_until_gone(3.0)


def test_an_orphan_whose_engine_hangs_ends_after_its_grace(make_server: MakeServer) -> None:
    server = make_server(orphan_grace="1").start()
    task = server.submit("[[hang]]")
    until(lambda: server.worker_of(task), 5.0, "the task is given to a worker")
    server.kill()
    server.wait_until_gone(5.0)


@pytest.mark.parametrize("directive", ["[[crash]]", "[[crash:5]]"])
def test_a_task_that_kills_its_workers_is_given_up_and_its_neighbours_are_drawn(
    make_server: MakeServer, directive: str
) -> None:
    server = make_server(workers="2", fake_latency="0.2", fake_steps="8").start()
    poison = server.submit(f"{directive} apple")
    healthy = [server.submit(f"apple {number}") for number in range(HEALTHY)]
    assert [server.wait(task)["status"] for task in healthy] == ["Ready"] * HEALTHY
    assert server.wait(poison)["status"] == "Error"
    assert attempts(server, poison)[1] == 3
    assert moves(server, poison) == ["reserve", "refund"]
    assert books_are_in_order(server)


def test_a_hanging_engine_is_found_at_its_deadline_and_replaced(make_server: MakeServer) -> None:
    server = make_server(workers="2", fake_latency="0.1", step_patience="2").start()
    poison = server.submit("[[hang]] apple")
    healthy = [server.submit(f"apple {number}") for number in range(HEALTHY)]
    began = time.monotonic()
    until(lambda: attempts(server, poison)[1] >= 1, 2.0 + 2.0, "the first hang is found within its deadline and 2 s")
    assert time.monotonic() - began < 2.0 + 2.0
    assert [server.wait(task)["status"] for task in healthy] == ["Ready"] * HEALTHY
    assert server.wait(poison)["status"] == "Error"
    assert attempts(server, poison)[1] == 3
    assert moves(server, poison) == ["reserve", "refund"]
    until(lambda: len(server.workers()) == 2, 5.0, "both workers are replaced")


def test_a_stopped_worker_loses_its_lease_and_is_replaced(make_server: MakeServer) -> None:
    server = make_server(fake_latency="0.5", lease="2", heartbeat="0.3").start()
    task = server.submit("a red apple")
    server.wait_until_running(task)
    worker = server.worker_of(task)
    assert worker is not None
    os.kill(worker.pid, signal.SIGSTOP)
    assert server.wait(task)["status"] == "Ready"
    assert worker not in server.workers()


def test_a_server_that_stood_still_does_not_blame_its_workers(make_server: MakeServer) -> None:
    server = make_server(fake_latency="5", lease="1", heartbeat="0.2").start()
    task = server.submit("a red apple")
    server.wait_until_running(task)
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    time.sleep(2.5)  # longer than the lease: the time that is lost is what this test is about
    os.kill(server.process.pid, signal.SIGCONT)
    assert server.wait(task)["status"] == "Ready"
    assert attempts(server, task) == (1, 0)


def test_a_whole_tree_that_stood_still_blames_no_task_for_the_engines_that_end_when_it_wakes(
    make_server: MakeServer,
) -> None:
    server = make_server(fake_latency="8", fake_steps="100", step_patience="1").start()
    task = server.submit("a red apple")
    server.wait_until_running(task)
    assert server.process is not None
    tree = [server.process.pid, *(worker.pid for worker in server.workers())]
    for pid in tree:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(4)  # longer than the watchdog's patience: the time that is lost is what this test is about
    for pid in tree:
        os.kill(pid, signal.SIGCONT)
    assert server.wait(task)["status"] == "Ready"
    assert attempts(server, task)[1] == 0


@pytest.mark.parametrize("directive", ["[[error]]", "[[oom]]", "[[black]]"])
def test_a_task_that_cannot_be_drawn_ends_in_error_and_its_worker_lives_on(
    make_server: MakeServer, directive: str
) -> None:
    server = make_server(fake_latency="0.05").start()
    workers = server.workers()
    task = server.submit(f"{directive} apple")
    ended = server.wait(task)
    assert (ended["status"], ended["result"], ended["cost"]) == ("Error", None, 0.0)
    assert attempts(server, task) == (1, 0)
    assert moves(server, task) == ["reserve", "refund"]
    assert server.workers() == workers
    assert server.wait(server.submit("a red apple"))["status"] == "Ready"


def test_two_workers_draw_a_burst_side_by_side(make_server: MakeServer) -> None:
    server = make_server(workers="2", fake_latency="2").start()
    until(lambda: server.log.count("Worker ready") == 2, 10.0, "both workers are ready")
    tasks = [server.submit(f"apple {number}") for number in range(8)]
    until(lambda: len(server.rows("SELECT 1 FROM tasks WHERE state = 'running'")) == 8, 1.5, "all are handed out")
    shares = server.rows("SELECT count(*) FROM tasks GROUP BY worker_id ORDER BY 1")
    assert len(shares) == 2
    assert min(shares) >= (3,)
    assert [server.wait(task)["status"] for task in tasks] == ["Ready"] * 8


def test_a_worker_told_to_end_finishes_what_it_holds_and_takes_no_more(make_server: MakeServer) -> None:
    server = make_server(fake_latency="1").start()
    (worker,) = server.workers()
    tasks = [server.submit(f"apple {number}") for number in range(12)]  # eight are drawn at once, four wait
    until(lambda: len(server.rows("SELECT 1 FROM tasks WHERE state = 'running'")) == 8, 5.0, "eight are handed out")
    server.wait_until_running(tasks[0])
    os.kill(worker.pid, signal.SIGTERM)
    assert [server.wait(task)["status"] for task in tasks] == ["Ready"] * 12
    assert worker not in server.workers()
    assert [attempts(server, task) for task in tasks] == [(1, 0)] * 12
