"""The whole server for a long time at a steady pace: what grows, and whether answers become slower.

mini draws, pictures are judged, signed, told of by webhook and downloaded, so every process has all of its work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import uvloop

import machine

RATE = 2.0
SAMPLE_S = 20.0
#: Of the time before it counts: caches fill, and as many finished tasks are kept in memory as ever will be.
SETTLING = 0.5
HEADINGS = ["process", "first MiB", "last MiB", "KiB an hour, second half", "goal", "open files, first and last"]
SETTINGS = {"FLUXSERVE_WORKERS": "1", "FLUXSERVE_OUTBOUND_ALLOW": "127.0.0.1", "FLUXSERVE_MODERATION": "on"}
FIELDS = {"width": 256, "height": 256, "steps": 4}


@dataclass
class Seen:
    """What came of it. Latencies of submits in milliseconds, in their order."""

    submits: list[float] = field(default_factory=list)
    ends: Counter[str] = field(default_factory=Counter)
    told: int = 0
    #: By process: seconds, resident bytes, open files.
    samples: dict[str, list[tuple[float, int, int]]] = field(default_factory=dict)


def rows(minutes: float) -> tuple[list[list[str]], list[list[str]]]:
    """What each process holds, and what its callers saw."""
    seen = Seen()
    with machine.server(core=None, settings=SETTINGS) as server:
        machine.wait_until_ready(server.port)
        uvloop.run(_soak(server, minutes * 60, seen))
    quarter = max(1, len(seen.submits) // 4)
    first, last = _p99(seen.submits[:quarter]), _p99(seen.submits[-quarter:])
    callers = [
        ["minutes, and pictures asked for", f"{minutes:.0f}, {len(seen.submits):,}", ""],
        ["how tasks ended", ", ".join(f"{count:,} {name}" for name, count in seen.ends.most_common()), "all Ready"],
        ["webhooks that came", f"{seen.told:,}", "one a task, or more"],
        ["p99 ms of submits, first and last quarter", f"{first:.1f}, {last:.1f}", "10 % apart"],
    ]
    return [_row(name, samples) for name, samples in sorted(seen.samples.items())], callers


def _row(name: str, samples: list[tuple[float, int, int]]) -> list[str]:
    late = samples[int(len(samples) * SETTLING) :]
    return [
        name,
        f"{samples[0][1] / 2**20:.1f}",
        f"{samples[-1][1] / 2**20:.1f}",
        f"{_slope(late) * 3600 / 1024:+.0f}",
        "1024",
        f"{samples[0][2]}, {samples[-1][2]}",
    ]


def _slope(samples: list[tuple[float, int, int]]) -> float:
    """The least squares line through them, in bytes a second."""
    mean_at = sum(at for at, _, _ in samples) / len(samples)
    mean = sum(held for _, held, _ in samples) / len(samples)
    spread = sum((at - mean_at) ** 2 for at, _, _ in samples)
    return sum((at - mean_at) * (held - mean) for at, held, _ in samples) / spread if spread else 0.0


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)] if latencies else 0.0


async def _soak(server: machine.Server, seconds: float, seen: Seen) -> None:
    began = time.monotonic()
    headers = {"x-key": server.key}
    async with _receiver(seen) as hook, httpx.AsyncClient(headers=headers, timeout=60) as client:
        sampling = asyncio.create_task(_sample(server.process.pid, began, seen))
        begun: set[asyncio.Task[None]] = set()
        number = 0
        while time.monotonic() - began < seconds:
            task = asyncio.create_task(_draw(client, f"http://127.0.0.1:{server.port}", hook, number, seen))
            begun.add(task)
            task.add_done_callback(begun.discard)
            number += 1
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        await asyncio.gather(*begun)
        await asyncio.sleep(2)  # the last webhooks
        sampling.cancel()


async def _draw(client: httpx.AsyncClient, origin: str, hook: str, number: int, seen: Seen) -> None:
    """A picture from its prompt to its bytes; every fourth one is followed by polls."""
    body = {**FIELDS, "prompt": f"a red apple {number}", "seed": number, "webhook_url": hook}
    asked_at = time.perf_counter()
    answer = await client.post(f"{origin}/v1/flux-dev", json=body)
    seen.submits.append(1000 * (time.perf_counter() - asked_at))
    if answer.status_code != httpx.codes.OK:
        seen.ends[f"HTTP {answer.status_code}"] += 1
        return
    url, wait = answer.json()["polling_url"], "" if number % 4 == 0 else "&wait=20"
    while True:
        polled = (await client.get(url + wait)).json()
        if polled["status"] != "Pending":
            break
        await asyncio.sleep(0.25)
    seen.ends[polled["status"]] += 1
    if polled["status"] == "Ready":
        picture = await client.get(polled["result"]["sample"])
        assert picture.status_code == httpx.codes.OK


@contextlib.asynccontextmanager
async def _receiver(seen: Seen) -> AsyncIterator[str]:
    """Takes webhooks, and counts those of tasks that are ready."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(lengths[0].split(b":")[1]))
        seen.told += json.loads(body)["status"] == "Ready"
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(take, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        yield urllib.parse.urlunsplit(("http", f"127.0.0.1:{port}", "/hook", "", ""))


async def _sample(pid: int, began: float, seen: Seen) -> None:
    while True:
        for name, one in _processes(pid).items():
            with contextlib.suppress(OSError):
                seen.samples.setdefault(name, []).append((time.monotonic() - began, *_held(one)))
        await asyncio.sleep(SAMPLE_S)


def _held(pid: int) -> tuple[int, int]:
    """Resident bytes and open files."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _processes(pid: int) -> Mapping[str, int]:
    """The server, its worker and its courier."""
    found = {"server": pid}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if parent == pid and (kind := next((one for one in (b"worker", b"courier") if one in words), None)):
                found[kind.decode()] = int(folder.name)
    return found
