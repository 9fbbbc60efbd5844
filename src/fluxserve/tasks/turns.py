"""Fair turns: who is drawn before whom, as pure functions. One number decides, written down when a task is accepted.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over flows, in predicted work (TFLOP): a task starts
where its flow's last one ended or at the clock, whichever is later, and ends its work over its key's weight further
on. Tasks are drawn by their ends, so that of two that start together the shorter is first, as in weighted fair
queueing (Demers, Keshav and Shenker, SIGCOMM 1989). A key has a flow for each size of task: what is much shorter than
the key's other tasks does not wait behind them, and what is longer starts behind all that is shorter.

The clock shows where the most advanced worker is. Each claim moves it on a little as well (ageing), so nothing is
overtaken for ever by those who come new.

What ends without having been drawn gives back what of its place is still to come, and those of its flow that wait
behind it move up. So the places of a flow never lie on each other, and nothing is saved up by waiting.
What it does not know: time, SQL, who asks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Sizes of tasks: each four times the one before; the first holds all below 4 TFLOP.
SIZES = 8
_RATIO = 4.0
#: A claim moves the clock by at least this share of what it hands out: nothing is overtaken by more than 64 times its
#: own work.
AGEING = 1 / 64
#: A key's flows before its first task.
FRESH = (0.0,) * SIZES


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a task begins and ends on the clock; `turn`, its end, is what it is drawn by, lowest first."""

    start: float
    turn: float

    def earlier(self, by: float) -> Place:
        """The same length, so much sooner."""
        return Place(start=self.start - by, turn=self.turn - by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stay:
    """A task's place on a key's flows, and its work, which says on which of them."""

    place: Place
    work: float


def size_of(work: float) -> int:
    """The flow of a task of this work, from 0 to SIZES - 1."""
    return min(max(int(math.log(work, _RATIO)), 0), SIZES - 1) if work > 1 else 0


def next_place(ends: tuple[float, ...], clock: float, length: float, work: float) -> tuple[Place, tuple[float, ...]]:
    """The place of a key's next task, and where the key's flows end with it.

    `ends` are those before, by size; `length` is the work over the key's weight.
    """
    start = max(clock, ends[size_of(work)])
    return Place(start=start, turn=start + length), charged(ends, clock, length, work)


def charged(ends: tuple[float, ...], clock: float, length: float, work: float) -> tuple[float, ...]:
    """Where a key's flows end once `length` more is drawn for a task of this work."""
    size = size_of(work)
    return tuple(end if other < size else max(clock, end) + length for other, end in enumerate(ends))


def given_back(
    ends: tuple[float, ...], clock: float, ended: Stay, drawn: float, others: Sequence[Stay]
) -> tuple[tuple[float, ...], list[Place]]:
    """Where a key's flows end without what was not drawn of `ended`, and where its unfinished `others` are then.

    `drawn` is a share of it, from 0 to 1. What the clock has passed is gone: waiting saves up nothing. No flow ends
    before the clock, before its last task, nor before a flow of shorter tasks.
    """
    size, place = size_of(ended.work), ended.place
    room = place.turn - max(clock, place.start + drawn * (place.turn - place.start))
    if room <= 0:
        return ends, [other.place for other in others]
    sizes = [size_of(other.work) for other in others]
    moved = [
        other.place.earlier(room) if its == size and other.place.start >= place.turn else other.place
        for its, other in zip(sizes, others, strict=True)
    ]
    lowered: list[float] = []
    for flow, end in enumerate(ends):
        last = max((one.turn for its, one in zip(sizes, moved, strict=True) if its == flow), default=clock)
        floor = max(clock, last, *lowered[-1:])
        lowered.append(end if flow < size else max(floor, end - room))
    return tuple(lowered), moved


def moved_clock(clock: float, *, head: Place, earliest: float, length: float) -> float:
    """The clock after a claim of `length` in all, led by `head`, by a worker whose earliest task starts at `earliest`.

    Newcomers start there. It follows what is drawn and not what is handed out ahead; ageing brings it no further than
    to the turn of the claim, behind which newcomers then are.
    """
    aged = min(clock + AGEING * length, head.turn)
    return max(clock, min(head.start, earliest), aged)
