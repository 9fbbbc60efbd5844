"""Measure, and print tables for benchmarks/README.md.

    scripts/bench            everything
    scripts/bench http       one part: http, store, queue, overload, overhead, mini, pictures, gate, stages, thin,
                             provenance, moderation or strangers
    scripts/bench soak 60    so many minutes at a steady pace; not part of everything

Servers run on one core and the load on the other; every figure stands beside a floor measured in the same run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import uvloop

import load
import machine
import moderation
import networks
import overload
import pictures
import provenance
import soak
import strangers
from fluxserve import database
from fluxserve.catalogue import find, resolve
from fluxserve.store.base import NewKey, Verdict
from fluxserve.store.sqlite import MIGRATIONS, SqliteStore
from fluxserve.store.sqlite_accounts import create_keys
from fluxserve.store.sqlite_tasks import submit_many
from fluxserve.store.submissions import Submission

ROUNDS = 3
BODY = json.dumps({"prompt": "A paper boat floating on calm water at sunrise.", "width": 512, "height": 512}).encode()
QUEUE_ONLY = {"FLUXSERVE_ENGINE": "none"}


def table(title: str, headings: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def measure(port: int, requests: list[bytes], connections: int, total: int) -> load.Tally:
    """One load, pinned to its core; every answer has to be a 200."""
    tally = uvloop.run(load.run(port, requests, connections=connections, total=total))
    assert set(tally.statuses) == {200}, tally.statuses
    return tally


@contextlib.contextmanager
def floor() -> Iterator[int]:
    """The bare server that answers a constant."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("floor.py")), str(port)],
        preexec_fn=lambda: machine.pin(machine.SERVER_CORE),
    )
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/", timeout=1)
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def http() -> None:
    """Durable submits and polls a second at 1, 16 and 64 connections."""
    machine.pin(machine.LOAD_CORE)
    rows = []
    with machine.server(settings=QUEUE_ONLY) as server, floor() as bare:
        submit = [load.post("/v1/flux-dev", server.key, BODY)]
        polls = _polls(server)
        bare_post, bare_get = [load.post("/", "x" * 59, BODY)], [load.get("/?id=" + "x" * 60)]
        for name, port, ours, beside, goal in (
            ("durable submits", server.port, submit, bare_post, "4,000"),
            ("polls", server.port, polls, bare_get, "10,000"),
        ):
            for connections in (1, 16, 64):
                total = 1000 if connections == 1 else 10_000
                pairs = [
                    (measure(port, ours, connections, total), measure(bare, beside, connections, total))
                    for _ in range(ROUNDS)
                ]
                rows.append(_http_row(name, connections, pairs, goal if connections == 64 else ""))
    table(
        "HTTP, server on one core, load on the other (medians of 3 rounds)",
        ["what", "connections", "per second", "p50 ms", "p99 ms", "floor per second", "of the floor", "goal"],
        rows,
    )


def _polls(server: machine.Server) -> list[bytes]:
    tally = uvloop.run(
        load.run(
            server.port,
            [load.post("/v1/flux-dev", server.key, BODY)],
            connections=16,
            total=500,
            keep_bodies=True,
        )
    )
    urls = [json.loads(body)["polling_url"] for body in tally.bodies]
    return [load.get("/v1" + url.split("/v1", 1)[1]) for url in urls]


def _http_row(name: str, connections: int, pairs: list[tuple[load.Tally, load.Tally]], goal: str) -> list[str]:
    rate = statistics.median(ours.rate for ours, _ in pairs)
    bare = statistics.median(beside.rate for _, beside in pairs)
    return [
        name,
        str(connections),
        f"{rate:,.0f}",
        f"{statistics.median(ours.percentile(50) for ours, _ in pairs):.2f}",
        f"{statistics.median(ours.percentile(99) for ours, _ in pairs):.2f}",
        f"{bare:,.0f}",
        f"{statistics.median(ours.rate / beside.rate for ours, beside in pairs):.0%}",
        goal,
    ]


def queue() -> None:
    """10,000 tasks wait: latencies, memory, and the time to answer after a restart."""
    machine.pin(machine.LOAD_CORE)
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        data_dir = Path(folder)
        with machine.server(data_dir=data_dir, settings=QUEUE_ONLY) as server:
            submit = [load.post("/v1/flux-dev", server.key, BODY)]
            measure(server.port, submit, 16, 500)  # caches and pools are filled before memory is read
            before = server.rss
            fill = measure(server.port, submit, 64, 10_000)
            grown = server.rss - before
            polls = _polls(server)
            submits, polled = _side_by_side(server, submit, polls)
        began = time.perf_counter()
        with machine.server(data_dir=data_dir, settings=QUEUE_ONLY) as server:
            up = time.perf_counter() - began
            measure(server.port, polls[:10], 1, 10)
            measure(server.port, [load.post("/v1/flux-dev", server.key, BODY)], 1, 10)
            answered = time.perf_counter() - began
    table(
        "10,000 queued tasks",
        ["what", "measured", "goal"],
        [
            ["filling the queue, submits per second at 64 connections", f"{fill.rate:,.0f}", ""],
            ["submit p50 / p99 ms, 8 connections beside 8 that poll", _both(submits), "p99 < 50"],
            ["poll p50 / p99 ms, 8 connections beside 8 that submit", _both(polled), "p99 < 20"],
            ["memory per queued task, bytes", f"{grown / 10_000:,.0f}", "< 10,000"],
            ["restart: healthz after s", f"{up:.2f}", ""],
            ["restart: 10 polls and 10 submits answered after s", f"{answered:.2f}", "5"],
        ],
    )


def _side_by_side(server: machine.Server, submit: list[bytes], polls: list[bytes]) -> tuple[load.Tally, load.Tally]:
    async def both() -> tuple[load.Tally, load.Tally]:
        return await asyncio.gather(
            load.run(server.port, submit, connections=8, total=5000),
            load.run(server.port, polls, connections=8, total=20_000),
        )

    submits, polled = uvloop.run(both())
    assert set(submits.statuses) == set(polled.statuses) == {200}
    return submits, polled


def _both(tally: load.Tally) -> str:
    return f"{tally.percentile(50):.2f} / {tally.percentile(99):.2f}"


def overloaded() -> None:
    """Five times the capacity for a minute."""
    table("Overload: eight pictures at once, half a second each", overload.HEADINGS, overload.rows())


def store() -> None:
    """Durable submits a second of the store alone, without HTTP, beside the same statements in a plain loop."""
    rows = []
    for unlike in ("nothing", "a seed", "an Idempotency-Key"):
        for callers in (1, 16, 64, 256):
            total = 500 if callers == 1 else 20_000
            rates = [uvloop.run(_submits_per_second(callers, total, unlike)) for _ in range(ROUNDS)]
            floors = [_loop_per_second(callers, total, unlike) for _ in range(ROUNDS)]
            rate, bare = statistics.median(rates), statistics.median(floors)
            rows.append([unlike, str(callers), f"{rate:,.0f}", f"{bare:,.0f}", f"{rate / bare:.0%}"])
    table(
        "The store alone: task, reservation, ledger (medians of 3 rounds; floor: one thread, groups of that size)",
        ["asked for with", "callers", "durable submits per second", "floor per second", "of the floor"],
        rows,
    )


NEW_KEY = NewKey(
    id="bench", digest=b"x" * 32, name="bench", account="bench", unlimited=True, grant=0, max_active=None,
    max_work=None, rate_per_minute=None, weight=1.0, now=0.0,
)  # fmt: skip


def _submissions(account_id: str, count: int, unlike: str) -> list[Submission]:
    order = resolve(find("flux-dev"), {"prompt": "a red apple"}, pictures={}, ignored=(), rng=random.Random(0))
    return [
        Submission(
            id=str(uuid.uuid4()), account_id=account_id, key_id="bench", generation=order.generation, inputs=(),
            preparation=None, refusal=None, extras={}, warnings=(), dialect="bfl", origin="http://127.0.0.1",
            webhook_url=None, sealed_secret=None,
            idempotency_key=str(uuid.uuid4()) if unlike == "an Idempotency-Key" else None, request_hash=b"x",
            recipe=secrets.token_bytes(16), repeatable=unlike == "a seed", fingerprints=("bench",),
            cost=order.cost, work=order.work, weight=1.0, max_active=None, max_work=None, max_of_model=None,
            now=0.0,
        )
        for _ in range(count)
    ]  # fmt: skip


def _loop_per_second(group: int, total: int, unlike: str) -> float:
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        connection = database.open_writer(Path(folder) / "fluxserve.db")
        database.migrate(connection, MIGRATIONS)
        (entry,) = create_keys(connection, [NEW_KEY])
        work = [_submissions(entry.key.account_id, group, unlike) for _ in range(total // group)]
        began = time.perf_counter()
        for submissions in work:
            connection.execute("BEGIN IMMEDIATE")
            submit_many(connection, submissions)
            connection.execute("COMMIT")
        seconds = time.perf_counter() - began
        connection.close()
    return total // group * group / seconds


async def _submits_per_second(callers: int, total: int, unlike: str) -> float:
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        store = SqliteStore(Path(folder) / "fluxserve.db")
        entry = await store.create_key(NEW_KEY)

        async def caller(mine: list[Submission]) -> None:
            for one in mine:
                (submitted,) = await store.submit_many([one])
                assert submitted.verdict is Verdict.ACCEPTED

        work = [_submissions(entry.key.account_id, total // callers, unlike) for _ in range(callers)]
        began = time.perf_counter()
        await asyncio.gather(*map(caller, work))
        seconds = time.perf_counter() - began
        await store.close()
    return total // callers * callers / seconds


def overhead() -> None:
    """End to end with an engine that takes no time: what the server itself adds to a picture."""
    rows = []
    settings = {"FLUXSERVE_ENGINE": "fake"}
    with machine.server(core=None, settings=settings) as server:
        machine.wait_until_ready(server.port)
        for size in (256, 1024):
            latencies = _one_by_one(server, size, 300)
            rows.append(
                [
                    f"{size}x{size} JPEG",
                    f"{latencies[len(latencies) // 2] * 1000:.1f}",
                    f"{latencies[int(len(latencies) * 0.99)] * 1000:.1f}",
                    f"{_encoding_ms(size):.1f}",
                    "p50 10, p99 25" if size == 256 else "",
                ]
            )
    table(
        "Server overhead per picture: submit to Ready, fake engine at 0 ms, one at a time, polled every ms",
        ["picture", "p50 ms", "p99 ms", "of that encoding ms", "goal"],
        rows,
    )


def _one_by_one(server: machine.Server, size: int, count: int) -> list[float]:
    latencies = []
    with httpx.Client(headers={"x-key": server.key}) as client:
        for number in range(count + 20):
            began = time.perf_counter()
            task = client.post(
                f"http://127.0.0.1:{server.port}/v1/flux-dev",
                json={"prompt": "overhead", "width": size, "height": size, "seed": number, "steps": 1},
            ).json()
            while client.get(task["polling_url"]).json()["status"] != "Ready":
                time.sleep(0.001)
            latencies.append(time.perf_counter() - began)
    return sorted(latencies[20:])


def _encoding_ms(size: int) -> float:
    """Drawing and encoding of the fake engine alone, in this process."""
    from fluxserve.catalogue import Generation, Size
    from fluxserve.engine import pixels
    from fluxserve.engine.base import Finished
    from fluxserve.engine.fake import FakeEngine
    from fluxserve.engine.marks import mark_of
    from fluxserve.settings import Settings

    engine = FakeEngine(Settings(engine="fake"))
    times = []
    for seed in range(30):
        generation = Generation(
            model="flux-dev", prompt="overhead", size=Size(size, size), seed=seed, steps=1, guidance=3.5,
            output_format="jpeg",
        )  # fmt: skip
        began = time.perf_counter()
        engine.admit("x", generation)
        finished = [event for event in engine.step() if isinstance(event, Finished)]
        pixels.encode(finished[0].pixels, "jpeg", mark_of(generation, "bench", tells_prompt=False))
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def mini() -> None:
    """The embedded model through the whole server: one alone, and one while another is being drawn."""
    rows = []
    with machine.server(core=None, settings={"FLUXSERVE_ENGINE": "diffusion", "FLUXSERVE_RESULT_CACHE": "0"}) as server:
        machine.wait_until_ready(server.port)
        with httpx.Client(headers={"x-key": server.key}, timeout=60) as client:
            for width, height in ((320, 256), (1024, 768)):
                alone = [_draw(client, server.port, width, height, seed) for seed in range(7)]
                beside = [_draw(client, server.port, width, height, seed, neighbours=1) for seed in range(7)]
                rows.append(
                    [
                        f"{width}x{height}, flux-dev, 28 steps",
                        f"{statistics.median(alone):.2f}",
                        f"{statistics.median(beside):.2f}",
                        f"{max(beside):.2f}",
                        "3" if width == 320 else "",
                    ]
                )
    table(
        "mini through the whole server, seconds from submit to Ready",
        ["picture", "alone", "beside another task", "slowest of 7 beside another", "goal beside another"],
        rows,
    )


def _draw(client: httpx.Client, port: int, width: int, height: int, seed: int, neighbours: int = 0) -> float:
    url = f"http://127.0.0.1:{port}/v1/flux-dev"
    body = {"prompt": "a red apple", "width": width, "height": height, "seed": seed}
    others = [client.post(url, json={**body, "seed": 1000 + seed}).json() for _ in range(neighbours)]
    began = time.perf_counter()
    _wait_ready(client, client.post(url, json=body).json()["polling_url"])
    seconds = time.perf_counter() - began
    for other in others:
        _wait_ready(client, other["polling_url"])
    return seconds


def _wait_ready(client: httpx.Client, polling_url: str) -> None:
    while (status := client.get(polling_url).json()["status"]) != "Ready":
        assert status == "Pending", status
        time.sleep(0.01)


def images_per_second() -> None:
    """mini at 1, 4 and 16 requests at once, beside the bare pipeline."""
    table(
        f"Pictures a second with mini, {pictures.SIZE}x{pictures.SIZE} JPEG, {pictures.STEPS} steps "
        f"(medians of {pictures.ROUNDS} rounds)",
        ["what", "threads", "requests at once", "per second", "of the bare pipeline", "goal"],
        pictures.rows(),
    )


def gate() -> None:
    """The engine alone beside the bare pipeline: ends the run where it has become slower."""
    rows, ratio = networks.gate()
    table("The engine's loop beside the bare pipeline: mini, one thread, one core", networks.GATE_HEADINGS, rows)
    if ratio < networks.LEAST:
        sys.exit(f"The engine draws at {ratio:.2f} of the bare pipeline: at least {networks.LEAST} is wanted.")


def stages() -> None:
    """mini's seconds by stage, and the first picture at a size that was not drawn before."""
    table("mini by stage, one thread (medians)", networks.STAGES_HEADINGS, networks.stages())
    table("The first picture at a size beside the next ones there", networks.FIRST_HEADINGS, networks.first_pictures())


def thin() -> None:
    """A network of FLUX.1's real width through the whole server, beside plain torch."""
    table("FLUX.1's width, three blocks, random numbers, beside plain torch", networks.THIN_HEADINGS, networks.thin())


def signing() -> None:
    """What a picture's manifest costs."""
    memory = provenance.memory()  # first, because whatever signs loads the library
    table("Memory that signing takes", ["library and authority", "each further picture"], memory)
    table(f"Signing a picture, one thread, {provenance.ROUNDS} rounds in turns", provenance.HEADINGS, provenance.rows())


def looks() -> None:
    """How long a prompt and a picture are looked at."""
    title = f"Scores of a text, one thread, {moderation.ROUNDS} rounds"
    table(title, moderation.HEADINGS, moderation.rows())
    title = f"Scores of a picture, one thread, {moderation.ROUNDS} rounds"
    table(title, moderation.PICTURE_HEADINGS, moderation.picture_rows())


def strangers_ask() -> None:
    """Whether the time of an answer tells that another account has a task of that id."""
    table(f"Tasks that are not the caller's, {strangers.EACH} of each in turns", strangers.HEADINGS, strangers.rows())


PARTS = {
    "http": http,
    "store": store,
    "queue": queue,
    "overload": overloaded,
    "overhead": overhead,
    "mini": mini,
    "pictures": images_per_second,
    "gate": gate,
    "stages": stages,
    "thin": thin,
    "provenance": signing,
    "moderation": looks,
    "strangers": strangers_ask,
}


def soaked(minutes: float) -> None:
    """What grows, and what becomes slower."""
    held, seen = soak.rows(minutes)
    table(
        f"{soak.RATE:.0f} pictures a second, drawn by mini, judged, signed, told of and downloaded", soak.HEADINGS, held
    )
    table("What callers saw meanwhile", ["what", "measured", "goal"], seen)


def main() -> None:
    """Run the parts that were asked for."""
    chosen = sys.argv[1:] or list(PARTS)
    if chosen[0] == "soak":
        print(f"{machine.describe()}")
        soaked(float(chosen[1]) if len(chosen) > 1 else 60.0)
        return
    unknown = set(chosen) - set(PARTS)
    if unknown:
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    print(f"{machine.describe()}")
    for part in chosen:
        PARTS[part]()


if __name__ == "__main__":
    main()
