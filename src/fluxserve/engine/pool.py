"""The pool: the checkpoints of one engine behind one budget, each on the device, in the machine's memory or on disk.

Each takes of the device what its memory plan expects.

What is not on the device comes back bit by bit the same. To make room, those that were lent longest ago leave: for the
machine's own memory where a GPU has another one, else, and beyond that one's budget, for disk, which is to be forgotten
but for what was found out about them. What is lent stays where it is until it is given back.
Whoever lends is one thread; weights are brought in any other, one checkpoint at a time.
What it does not know: who wants to draw, and whose turn it is (`duty`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Room, Runtime, finish
from fluxserve.engine.drawer import Drawer, Known, open_again, with_weights
from fluxserve.engine.networks import Network
from fluxserve.engine.planning import Fit, fit
from fluxserve.engine.recovery import is_out_of_memory, release_memory

logger = logging.getLogger(__name__)
#: What CUDA says when there are no pages that could stay where they are.
_NO_PAGES = "CUDA error: out of memory"
#: What tells checkpoints apart (`Checkpoint.origin`).
Origin = tuple[Path, ...]


@dataclass(slots=True, kw_only=True)
class _Place:
    """Where a checkpoint is: with a `drawer` on the device, with a `network` in the machine's memory, else on disk.

    `from_disk`, `from_host`: seconds that bringing it from there took the last time, 0 where it never came from there.
    `lent`: how often it is. `used`: a number that grows.
    """

    known: Known
    drawer: Drawer | None = None
    is_leaving: bool = False
    network: Network | None = None
    from_disk: float = 0.0
    from_host: float = 0.0
    lent: int = 0
    used: int = 0

    @property
    def fit(self) -> Fit:
        """How it is held, and what that takes."""
        return self.known.fit

    @property
    def seconds(self) -> float:
        """That bringing it took the last time from where it is, or from where it would come if it had to leave."""
        is_on_disk = self.drawer is None and self.network is None
        return self.from_disk if is_on_disk else self.from_host or self.from_disk

    @property
    def on_host(self) -> int:
        """Bytes of the machine's memory that it takes beside a device of its own."""
        if self.network is not None:
            return self.fit.weights
        return 0 if self.drawer is None else self.fit.at_home


class Pool:
    """`open_drawer` opens a checkpoint for the first time."""

    def __init__(self, room: Room, runtime: Runtime, open_drawer: Callable[[Checkpoint, Runtime], Drawer]) -> None:
        self.room = room
        self._runtime = runtime
        self._open_drawer = open_drawer
        self._places: dict[Origin, _Place] = {}
        self._uses = count(1)
        self._given_back = threading.Condition()

    def is_at_hand(self, origin: Origin) -> bool:
        """On the device, and not about to leave it."""
        place = self._places[origin]
        return place.drawer is not None and not place.is_leaving

    @property
    def away(self) -> Mapping[str, float]:
        """Fingerprints of those that are not at hand, and how long bringing them takes."""
        away = [place for origin, place in self._places.items() if not self.is_at_hand(origin)]
        return {place.known.fingerprint: place.seconds for place in away}

    def takes(self, origin: Origin) -> int:
        """Bytes of the device while it draws there: the expected peak of its memory plan."""
        return self._places[origin].fit.peak

    def seconds(self, origin: Origin) -> float:
        """How long bringing it took the last time, from where it is."""
        return self._places[origin].seconds

    def open(self, checkpoint: Checkpoint) -> Known:
        """Load it for the first time, and find out about it. Raises ConfigurationError or EngineError."""
        import torch

        self._vacate(self._leaving(fit(checkpoint, self._runtime).peak, keep=()))
        with torch.inference_mode():
            drawer = self._open_drawer(checkpoint, self._runtime)
            drawer.previewer.fit()
            finish(self._runtime)
        place = _Place(known=drawer.known, drawer=drawer, from_disk=drawer.loaded_in, used=next(self._uses))
        self._places[checkpoint.origin] = place
        self._vacate(self._leaving(0, keep={checkpoint.origin}))
        return place.known

    def bringing(self, origin: Origin, keep: Collection[Origin]) -> tuple[Callable[[], None], Callable[[], None]]:
        """What makes room for it, and what brings it then: in this order, in another thread.

        The first waits until nobody uses what has to leave; the second raises EngineError. Those that make room are
        chosen here, none of `keep`, and from now on they are not at hand.
        """
        place = self._places[origin]
        leaving = self._leaving(place.fit.peak, keep={origin, *keep})
        return partial(self._vacate, leaving, coming=place), partial(self._bring, place)

    def lend(self, origin: Origin) -> None:
        """One that is at hand: it stays so until it was given back as often as it was lent."""
        if not self.is_at_hand(origin):
            raise LookupError(origin)
        place = self._places[origin]
        with self._given_back:
            place.lent += 1
        place.used = next(self._uses)

    def drawer(self, origin: Origin) -> Drawer:
        """Of one that is lent, for whoever it was lent to."""
        drawer = self._places[origin].drawer
        if drawer is None:
            raise LookupError(origin)
        return drawer

    def give_back(self, origin: Origin) -> None:
        """From any thread, once for each time it was lent, and once the device has done what it was lent for."""
        with self._given_back:
            self._places[origin].lent -= 1
            self._given_back.notify_all()

    def _bring(self, place: _Place) -> None:
        began = time.monotonic()
        was_waiting = place.network is not None
        place.drawer, place.network = self._loaded(place), None
        seconds, place.used = time.monotonic() - began, next(self._uses)
        if was_waiting:
            place.from_host = seconds
        else:
            place.from_disk = seconds
        logger.info(
            "%s is back on the device",
            place.known.checkpoint.name,
            extra={
                "action": "checkpoint_back",
                "from": "host" if was_waiting else "disk",
                "seconds": round(seconds, 3),
            },
        )

    def _loaded(self, place: _Place) -> Drawer:
        if place.network is None:
            drawer = open_again(place.known)
        else:
            place.network.come()
            drawer = with_weights(place.known, place.network)
        finish(self._runtime)
        return drawer

    def _leaving(self, needed: int, keep: Collection[Origin]) -> Sequence[_Place]:
        """Those that were lent longest ago and are not now, as many as it takes; from now on they are not at hand."""
        here = [origin for origin in self._places if self.is_at_hand(origin)]
        over = sum(self._places[origin].fit.peak for origin in here) + needed - self.room.device
        leaving = []
        for place in sorted((self._places[origin] for origin in here if origin not in keep), key=_use):
            if over > 0:
                place.is_leaving = True
                leaving.append(place)
                over -= place.fit.peak
        return leaving

    def _vacate(self, leaving: Sequence[_Place], coming: _Place | None = None) -> None:
        """Off the device with them, once nobody uses them any more; what is `coming` keeps its place on the host."""
        for place in leaving:
            with self._given_back:
                self._given_back.wait_for(lambda left=place: not left.lent)  # type: ignore[misc]
            try:
                self._put_away(place, coming)
            finally:
                place.is_leaving = False
        if leaving:
            release_memory()

    def _put_away(self, place: _Place, coming: _Place | None) -> None:
        """To where it waits; with the drawer, what fine-tunes and weights took of the device is given up."""
        network = None if place.drawer is None else place.drawer.network
        for switch in () if network is None else network.switches:
            switch.forget()
        place.drawer = None
        if network is None or not self._has_room_on_host(place, coming):
            return
        try:
            network.leave()
        except Exception as error:  # it waits on disk then
            if not (is_out_of_memory(error) or _NO_PAGES in str(error)):
                raise
        else:
            place.network = network

    def _has_room_on_host(self, leaving: _Place, coming: _Place | None) -> bool:
        """Once those that were lent longest ago went from there to disk, but not what is `coming`."""
        others = [place for place in self._places.values() if place is not leaving]
        over = sum(place.on_host for place in others) + leaving.fit.weights - self.room.host
        dropped = []
        for place in sorted((place for place in others if place.network and place is not coming), key=_used):
            if over > 0:
                dropped.append(place)
                over -= place.on_host
        if over > 0:
            return False
        for place in dropped:
            place.network = None
        return True


def _used(place: _Place) -> int:
    return place.used


def _use(place: _Place) -> tuple[bool, int]:
    """One that is lent would have to be waited for."""
    return place.lent > 0, place.used
