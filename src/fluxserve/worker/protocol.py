"""The worker protocol: length-prefixed msgpack frames over a stream socket.

    frame = 4 bytes big-endian length, then one msgpack map with a `type`

A worker says Hello, gets Welcome or Refused, then announces how many tasks it wants; the server sends Tasks as
they come, and Show for each whose Previews somebody wants to see. Write asks the language model of a checkpoint, and
Written answers; both are of one connection. Weights says whose turn it is where checkpoints take
turns. Progress, Waypoint and Heartbeat keep the lease; Finished, Failed and Withheld carry the fence of the claim, and
the server answers each with Settled. After a lost connection the worker says Hello again with the fences it holds.

A courier says CourierHello and gets Welcome or Refused; then the server sends Errands, and a Report answers each.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Final, Literal, TypeVar

import msgspec

from fluxserve.catalogue import Generation
from fluxserve.errors import Fact, WorkerProtocolError

VERSION: Final = 9
#: The input pictures of a task are the largest there is: 40 megapixels, as PNG at worst a little more than 120 MB.
MAX_FRAME: Final = 128 * 2**20
#: A hello comes before the token is checked, so it is kept small.
MAX_HELLO: Final = 2**20
_HEADER = struct.Struct(">I")
T = TypeVar("T")


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A claim that a worker still holds."""

    task_id: str
    fence: int


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """Who the worker is. `fingerprints`: by model, equal ones promise equal pixels.

    `want`: how many tasks it can take more than it holds, from now on, so that ready workers share a burst from its
    first task on. `away`: see Weights. `left_out`: what is wrong with weights that it could not load. `orphan`: its own
    server process has ended, it only hands in what it holds.
    `classifier` names what judges its pictures; empty: nothing does. `writes`: models whose language model answers.
    """

    version: int
    worker_id: str
    pid: int
    models: tuple[str, ...]
    engine: str
    fingerprints: dict[str, str]
    capacity: int
    want: int = 0
    away: dict[str, float] = {}
    left_out: tuple[str, ...] = ()
    classifier: str = ""
    writes: tuple[str, ...] = ()
    token: str = ""
    orphan: bool = False
    held: tuple[Held, ...] = ()


def batch(capacity: int) -> int:
    """About how many of what an engine holds share a step: a batch, beside another to choose from.

    Where nothing may share a step, so many short tasks wait for each other there, not for long ones.
    """
    return max(1, capacity // 2)


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The worker is in; `kept` are the claims it may go on with, all others are lost.

    It has to be heard every `heartbeat` seconds; silent for `lease` seconds it loses its claims. What it draws it
    writes down every `waypoint_interval` seconds, or, where that is None, never. `tells_prompts`: the files of its
    pictures say what was asked for.
    """

    heartbeat: float
    lease: float
    kept: tuple[Held, ...]
    waypoint_interval: float | None = None
    tells_prompts: bool = False


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The worker is not let in."""

    reason: str


class Want(msgspec.Struct, frozen=True, kw_only=True, tag="want"):
    """The worker can take `count` tasks more than it holds."""

    count: int


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One claimed task, what the worker may go on from, and the files of the pictures that the generation names.

    Of what it holds, the lowest `turn` is drawn first; what is drawn in company is shared fairly between `flow`s, which
    are equal for the tasks of one key and say nothing else. `refuse_from`: by category, from which
    score on a picture of it is refused; None: none is.
    """

    task_id: str
    fence: int
    generation: Generation
    turn: float
    flow: str
    waypoint: bytes | None = None
    pictures: dict[str, bytes] = {}
    refuse_from: dict[str, float] | None = None


class Tasks(msgspec.Struct, frozen=True, kw_only=True, tag="tasks"):
    """Claimed for this worker."""

    assignments: tuple[Assignment, ...]


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """The task is being drawn and has made `step` of `steps`; 0: it was admitted."""

    task_id: str
    fence: int
    step: int
    steps: int


class Waypoint(msgspec.Struct, frozen=True, kw_only=True, tag="waypoint"):
    """Where the task's drawing stands, as a file that any worker of the same fingerprint can go on from."""

    task_id: str
    fence: int
    data: bytes


class Preview(msgspec.Struct, frozen=True, kw_only=True, tag="preview"):
    """A small picture of what the task is heading for, encoded; only after a Show."""

    task_id: str
    fence: int
    picture: bytes


class Weights(msgspec.Struct, frozen=True, kw_only=True, tag="weights"):
    """By fingerprint, the weights that are not on the device now, and in how many seconds they come.

    `waited`: seconds since the last such message in which the worker could draw nothing, because weights had to come.
    """

    away: dict[str, float]
    waited: float = 0.0


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat"):
    """The worker lives and still holds these claims."""

    held: tuple[Held, ...]


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """The picture, encoded. `duration` is seconds of drawing; `warnings` follow from what drew it.

    `scores` by category, where the assignment says what is refused.
    """

    task_id: str
    fence: int
    picture: bytes
    drawn_by: str
    duration: float
    facts: dict[str, Fact]
    warnings: tuple[str, ...] = ()
    scores: dict[str, float] | None = None


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """The task could not be drawn; `code` is the class of the error."""

    task_id: str
    fence: int
    code: str
    message: str


class Withheld(msgspec.Struct, frozen=True, kw_only=True, tag="withheld"):
    """The picture was refused and is gone; or an input picture was, and nothing was drawn."""

    task_id: str
    fence: int
    scores: dict[str, float]
    about: Literal["input_picture", "picture"]


Outcome = Finished | Failed | Withheld


class Returned(msgspec.Struct, frozen=True, kw_only=True, tag="returned"):
    """The worker gives these back: it is draining, because it was told to, or because it is `recycled`."""

    held: tuple[Held, ...]
    recycled: bool = False


class Settled(msgspec.Struct, frozen=True, kw_only=True, tag="settled"):
    """The outcome is written down, or `accepted` is False: the claim was lost before."""

    task_id: str
    fence: int
    accepted: bool


class Discard(msgspec.Struct, frozen=True, kw_only=True, tag="discard"):
    """Stop drawing this task."""

    task_id: str
    fence: int


class Show(msgspec.Struct, frozen=True, kw_only=True, tag="show"):
    """Send previews of this task from now on, as long as it is drawn."""

    task_id: str
    fence: int


class Write(msgspec.Struct, frozen=True, kw_only=True, tag="write"):
    """Let the language model of the model's checkpoint answer `user` as `system` says; `number` is the server's."""

    number: int
    model: str
    system: str
    user: str
    most: int


class Unwrite(msgspec.Struct, frozen=True, kw_only=True, tag="unwrite"):
    """Nobody waits for that answer any more."""

    number: int


class Written(msgspec.Struct, frozen=True, kw_only=True, tag="written"):
    """The answer, or the `problem` that there is none."""

    number: int
    text: str = ""
    problem: str | None = None


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    """Finish what runs, give back what waits, then end."""


class CourierHello(msgspec.Struct, frozen=True, kw_only=True, tag="courier"):
    """Who the courier is: it calls addresses that callers chose, and draws nothing. `capacity`: errands at once."""

    version: int
    worker_id: str
    pid: int
    capacity: int
    token: str = ""


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """One call to an address that a caller chose (see `delivery.outbound.Call`); `number` names it to the server.

    `own`: the operator chose it in the settings, so that hosts that are named there may be called too.
    """

    number: int
    method: str
    url: str
    limit: int
    timeout: float
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    secure: bool = False
    whole: bool = False
    redirects: int = 0
    own: bool = False


class Errands(msgspec.Struct, frozen=True, kw_only=True, tag="errands"):
    """To be run at once."""

    errands: tuple[Errand, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True, tag="report"):
    """What an errand brought: a status and a body, or the `problem` that there was none. `retry_after` as it came."""

    number: int
    status: int | None = None
    body: bytes = b""
    retry_after: str = ""
    problem: str | None = None


FromWorker = (
    Hello
    | Want
    | Progress
    | Waypoint
    | Preview
    | Weights
    | Heartbeat
    | Finished
    | Failed
    | Withheld
    | Returned
    | Written
    | CourierHello
    | Report
)
FromServer = Welcome | Refused | Tasks | Settled | Discard | Show | Write | Unwrite | Drain | Errands

_encoder = msgspec.msgpack.Encoder()
_from_worker = msgspec.msgpack.Decoder(FromWorker)
_from_server = msgspec.msgpack.Decoder(FromServer)


def to_frame(message: FromWorker | FromServer) -> bytes:
    """The frame of one message."""
    body = _encoder.encode(message)
    return _HEADER.pack(len(body)) + body


async def read_frame(reader: asyncio.StreamReader, *, limit: int = MAX_FRAME) -> bytes | None:
    """The next frame's body; None at the end of the stream. Raises WorkerProtocolError for a frame over `limit`."""
    try:
        (length,) = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if length > limit:
            raise WorkerProtocolError(f"A frame of {length} bytes is over the limit of {limit}.")
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError):  # whatever the network says: the other end is out of reach
        return None


async def read_from_worker(reader: asyncio.StreamReader, *, limit: int = MAX_FRAME) -> FromWorker | None:
    """The worker's next message; None when it is gone."""
    body = await read_frame(reader, limit=limit)
    return None if body is None else _decoded(_from_worker, body)


async def read_from_server(reader: asyncio.StreamReader) -> FromServer | None:
    """The server's next message; None when it is gone."""
    body = await read_frame(reader)
    return None if body is None else _decoded(_from_server, body)


def _decoded(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise WorkerProtocolError("A frame holds no message of this protocol version.") from None
