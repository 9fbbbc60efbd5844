"""The promise: an accepted task is never lost, never done twice and never charged twice, whoever is killed when."""

from __future__ import annotations

import io
import random
import time

import httpx
import pytest
from kill_suite import LATENCY_S, Fields, Killer, Submitters, orders
from PIL import Image
from servers import MakeServer, Server, until


def new_key(server: Server) -> str:
    """A key that pays, so that the ledger can be added up."""
    made = server.command("keys", "create", "suite", "--credits", "100000", "--max-active", "100000")
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def results(server: Server, key: str, ids: dict[int, str], within: float) -> dict[int, dict[str, object]]:
    """Poll every task until all have ended."""
    polled: dict[int, dict[str, object]] = {}
    with server.client(key) as client:

        def look() -> bool:
            for number in sorted(ids.keys() - polled.keys()):
                answer = client.get("/v1/get_result", params={"id": ids[number]})
                assert answer.status_code == 200, answer.text
                if answer.json()["status"] != "Pending":
                    polled[number] = answer.json()
            return len(polled) == len(ids)

        until(look, within, "all tasks have ended")
    return polled


def fingerprints(polled: dict[int, dict[str, object]]) -> dict[int, object]:
    return {number: result["details"]["pixels_sha256"] for number, result in polled.items()}  # type: ignore[index]


def undisturbed(server: Server, wanted: list[Fields]) -> dict[int, object]:
    """The pixels of every order when nobody is killed."""
    server.start()
    submitters = Submitters(server, new_key(server), wanted)
    submitters.start()
    submitters.finish(within=60.0)
    drawn = fingerprints(results(server, submitters.key, submitters.ids, within=60.0))
    assert server.stop() == 0
    return drawn


def check_books(server: Server, count: int) -> None:
    """One of each, for each task: settle, outbox row, picture."""
    assert server.rows("SELECT state, count(*) FROM tasks GROUP BY state") == [("ready", count)]
    assert server.rows("SELECT count(*), count(DISTINCT task_id) FROM outbox") == [(count, count)]
    moves = "SELECT kind, count(*), count(DISTINCT task_id) FROM ledger WHERE task_id IS NOT NULL GROUP BY kind"
    assert sorted(server.rows(moves)) == [("reserve", count, count), ("settle", count, count)]
    assert server.rows("SELECT * FROM waypoints") == []
    ((cost, price_of_one),) = server.rows("SELECT sum(cost), max(cost) FROM tasks")
    assert cost == count * price_of_one  # type: ignore[operator]
    ((balance,),) = server.rows("SELECT balance FROM accounts WHERE balance IS NOT NULL")
    assert balance == 100_000_000 - cost  # type: ignore[operator]
    books = server.command("fsck")
    assert (books.returncode, books.stdout.strip()) == (0, "The books are in order."), books.stdout + books.stderr


def check_pictures(server: Server, polled: dict[int, dict[str, object]]) -> int:
    """Every picture can be had; returns how many files no task refers to."""
    with httpx.Client(timeout=10.0) as http:
        for number, result in polled.items():
            answer = http.get(result["result"]["sample"])  # type: ignore[index]
            assert answer.status_code == 200
            with Image.open(io.BytesIO(answer.content)) as picture:
                assert picture.size == (256, 256 + 32 * (number % 2))
    known = {name for (name,) in server.rows("SELECT object_name FROM tasks")}
    assert len(known) == len(polled)
    folder = server.data_dir / "results"
    return len({str(path.relative_to(folder)) for path in folder.glob("??/*")} - known)


def test_no_task_is_lost_or_charged_twice_under_random_kills(
    make_server: MakeServer, long: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    count, kills, trees = (1000, 100, 5) if long else (100, 15, 2)
    settings = {"workers": "2", "fake_latency": str(LATENCY_S)}
    wanted = orders(count)
    expected = undisturbed(make_server(**settings), wanted)

    began = time.monotonic()
    server = make_server(**settings, waypoint_interval="0").start()
    submitters = Submitters(server, new_key(server), wanted)
    killer = Killer(server, random.Random(7))
    submitters.start()
    for kind in killer.plan(kills, trees):
        submitters.allow(count // (kills + trees))
        killer.kill(kind)
    server.wait_until_ready()
    submitters.finish(within=60.0)
    polled = results(server, submitters.key, submitters.ids, within=90.0)
    seconds = time.monotonic() - began

    assert submitters.surprises == []
    assert {number: result["status"] for number, result in polled.items()} == dict.fromkeys(range(count), "Ready")
    assert fingerprints(polled) == expected
    with httpx.Client(headers={"x-key": submitters.key}, timeout=10.0) as http:  # the same key answers the same task
        assert {number: submitters.submit(http, number) for number in range(count)} == submitters.ids
    check_books(server, count)
    orphans = check_pictures(server, polled)
    went_on = server.log.count("Task goes on")
    ((again, spoiled),) = server.rows("SELECT sum(fence) - count(*), sum(spoiled) FROM tasks")
    handed_in = sum("Worker ready" in line and "kept=0" not in line for line in server.log.splitlines())
    assert server.stop() == 0
    server.wait_until_gone(5.0)
    with capsys.disabled():
        print(
            f"\n  kill suite: {count} tasks Ready in {seconds:.1f} s; kills: "
            + ", ".join(f"{number} {kind}" for kind, number in sorted(killer.kills.items()))
            + f"; {again} re-runs, {went_on} of them from a waypoint, {spoiled} counted; "
            f"{submitters.retries} submits repeated; "
            f"{handed_in} orphans handed in; {orphans} files left to the sweeper"
        )
