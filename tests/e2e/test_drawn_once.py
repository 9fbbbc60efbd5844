"""Equal requests on real servers: drawn once, found again after restarts and kills, never across accounts."""

from __future__ import annotations

import random
from pathlib import Path

import httpx
from kill_suite import LATENCY_S, Killer, Submitters, orders
from servers import MakeServer, Server
from test_nothing_is_lost import fingerprints, new_key, results

PROMPT = "two red apples"


def picture(polled: dict[str, object]) -> bytes:
    """The picture behind a ready task's link."""
    assert polled["status"] == "Ready", polled
    answer = httpx.get(polled["result"]["sample"], timeout=10.0)  # type: ignore[index]
    assert answer.status_code == 200
    return answer.content


def drawings(server: Server) -> int:
    """How often a worker was given a task."""
    ((claims,),) = server.rows("SELECT coalesce(sum(fence), 0) FROM tasks")
    return int(str(claims))


def is_cached(polled: dict[str, object]) -> bool:
    return bool(polled["details"].get("cached"))  # type: ignore[attr-defined]


def check_books(server: Server) -> None:
    """The invariants, and one move of money for each task."""
    books = server.command("fsck")
    assert (books.returncode, books.stdout.strip()) == (0, "The books are in order."), books.stdout + books.stderr


def test_the_same_seed_is_drawn_once_and_found_again_after_a_restart_and_a_kill(make_server: MakeServer) -> None:
    server = make_server().start()
    first = server.wait(server.submit(PROMPT, seed=7))
    second = server.poll(server.submit(PROMPT, seed=7))
    assert (is_cached(first), is_cached(second), drawings(server)) == (False, True, 1)
    expected = picture(first)
    assert picture(second) == expected

    assert server.stop() == 0
    server.start()
    third = server.poll(server.submit(PROMPT, seed=7))
    server.kill_tree()
    server.start()
    fourth = server.poll(server.submit(PROMPT, seed=7))
    other = server.wait(server.submit(PROMPT, seed=8))

    assert [is_cached(polled) for polled in (third, fourth, other)] == [True, True, False]
    assert picture(server.poll(str(third["id"]))) == picture(fourth) == expected != picture(other)
    assert drawings(server) == 2
    check_books(server)


def test_a_request_that_comes_before_the_worker_is_answered_when_it_comes(make_server: MakeServer) -> None:
    server = make_server().start()
    expected = picture(server.wait(server.submit(PROMPT, seed=7)))
    assert server.stop() == 0
    server.start(ready=False, workers="0").wait_until_answers()
    tasks = [server.submit(PROMPT, seed=7) for _ in range(3)]
    assert [server.poll(task)["status"] for task in tasks] == ["Pending"] * 3
    server.kill()
    server.start()
    assert [picture(server.wait(task)) for task in tasks] == [expected] * 3
    assert drawings(server) == 1
    check_books(server)


def test_followers_live_on_when_their_leader_is_cancelled_and_when_everything_is_killed(
    make_server: MakeServer,
) -> None:
    server = make_server(fake_latency="3").start()
    leader, *followers = [server.submit(PROMPT, seed=7) for _ in range(4)]
    server.wait_until_running(leader)
    with server.client() as client:
        assert client.delete(f"/v1/tasks/{leader}").json()["details"]["error"] == "cancelled"
    server.wait_until_running(followers[0])
    assert server.poll(followers[2])["progress"]
    server.kill_tree()
    server.start(fake_latency="0.1")
    polled = [server.wait(task) for task in followers]
    assert len({picture(task) for task in polled}) == 1
    assert [is_cached(task) for task in polled] == [False, True, True]
    assert server.poll(leader)["status"] == "Error"
    check_books(server)


def test_two_accounts_never_share_a_picture(make_server: MakeServer) -> None:
    server = make_server().start()
    keys = [server.command("keys", "create", name, "--credits", "100").stdout.strip() for name in ("alice", "bob")]
    body = {"prompt": PROMPT, "width": 256, "height": 256, "seed": 7}
    ids = []
    for key in (*keys, *keys):
        with server.client(key) as client:
            ids.append(client.post("/v1/flux-dev", json=body).json()["id"])
            polled = {"status": "Pending"}
            while polled["status"] == "Pending":
                polled = client.get("/v1/get_result", params={"id": ids[-1]}).json()
    objects = [name for ((name,),) in (server.rows("SELECT object_name FROM tasks WHERE id = ?", id_) for id_ in ids)]
    assert objects[:2] == objects[2:]
    assert objects[0] != objects[1]
    assert drawings(server) == 2
    check_books(server)


def test_a_restored_backup_answers_with_no_picture_that_is_gone(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server().start()
    first = server.submit(PROMPT, seed=7)
    server.wait(first)
    server.wait(server.submit(PROMPT, seed=8))
    backup = tmp_path / "backup.db"
    assert server.command("backup", str(backup)).returncode == 0
    ((name,),) = server.rows("SELECT object_name FROM tasks WHERE id = ?", first)
    assert server.stop() == 0
    (server.data_dir / "results" / str(name)).unlink()
    assert server.command("restore", str(backup)).returncode == 0
    server.start()
    again, kept = server.wait(server.submit(PROMPT, seed=7)), server.poll(server.submit(PROMPT, seed=8))
    assert (is_cached(again), is_cached(kept)) == (False, True)
    assert picture(again)
    check_books(server)


def test_equal_requests_survive_random_kills(make_server: MakeServer, long: bool) -> None:
    count, kills, trees = (600, 60, 6) if long else (40, 3, 1)
    pictures = count // 4
    server = make_server(workers="2", fake_latency=str(LATENCY_S)).start()
    submitters = Submitters(server, new_key(server), orders(pictures) * 4)
    killer = Killer(server, random.Random(11))
    submitters.start()
    for kind in killer.plan(kills, trees):
        submitters.allow(count // (kills + trees))
        killer.kill(kind)
    server.wait_until_ready()
    submitters.finish(within=60.0)
    polled = results(server, submitters.key, submitters.ids, within=90.0)

    assert submitters.surprises == []
    assert {result["status"] for result in polled.values()} == {"Ready"}
    drawn = fingerprints(polled)
    assert drawn == {number: drawn[number % pictures] for number in range(count)}
    assert server.rows("SELECT count(*), count(DISTINCT object_name) FROM tasks") == [(count, pictures)]
    assert server.rows("SELECT count(*) FROM ledger WHERE kind = 'settle'") == [(count,)]
    check_books(server)
    assert {picture(result) for result in polled.values()} == {picture(polled[number]) for number in range(pictures)}
