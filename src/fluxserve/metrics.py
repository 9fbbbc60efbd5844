"""What operators count and time, in the text format of Prometheus.

Events are counted by the `action` of their lines in the log: whatever is worth a line is counted, and at one place.
What it does not know: tasks, HTTP, who may read it. Labels are names out of this program and its catalogue; prompts,
keys, accounts and addresses are none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_1_0_0
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_1_0_0
#: Upper ends of what tasks take, from a cached answer to a long queue, and of what answers do, in seconds.
_TASK_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)
_ANSWER_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What stands somewhere now: a number by its labels, which have the same names in all of one `name`."""

    name: str
    help: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()


class Metrics:
    """One server's counters and histograms; what stands somewhere is read when it is asked for."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when a counter began is when the process did
        self._registry = registry = CollectorRegistry()
        self._events = Counter("fluxserve_events", "Lines of the log, by their action.", ["action"], registry=registry)
        self._ended = Counter(
            "fluxserve_tasks_ended", "Tasks that have ended, by model and state.", ["model", "state"], registry=registry
        )
        self._drawn = Counter(
            "fluxserve_drawn_teraflop", "Predicted work of what was drawn.", ["model"], registry=registry
        )
        self._stages = Histogram(
            "fluxserve_task_seconds",
            "What ready tasks took: waiting, drawing, whole.",
            ["model", "stage"],
            buckets=_TASK_SECONDS,
            registry=registry,
        )
        self._requests = Histogram(
            "fluxserve_request_seconds",
            "From a request to the end of its answer.",
            ["route", "status"],
            buckets=_ANSWER_SECONDS,
            registry=registry,
        )
        ProcessCollector(registry=registry)

    def ended(self, model: str, state: str) -> None:
        """A task has ended."""
        self._ended.labels(model, state).inc()

    def drawn(self, model: str, work: float) -> None:
        """A picture was drawn; `work` in TFLOP."""
        self._drawn.labels(model).inc(work)

    def took(self, model: str, stage: str, seconds: float) -> None:
        """A stage of a ready task; a clock that was set back makes it none at all."""
        self._stages.labels(model, stage).observe(max(0.0, seconds))

    def asked(self, route: str, status: int, seconds: float) -> None:
        """A request was answered; status 0: its caller was gone."""
        self._requests.labels(route, str(status)).observe(seconds)

    def read_from(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Whenever somebody asks, tell also what `read` finds."""
        self._registry.register(_Readings(read))

    @contextmanager
    def counting_events(self) -> Iterator[None]:
        """Inside, every line of the log with an action is an event, whatever its level."""
        logger, handler = logging.getLogger("fluxserve"), _Events(self._events)
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def text(self) -> bytes:
        """All of it, in `CONTENT_TYPE`."""
        return generate_latest(self._registry)


class _Events(logging.Handler):
    def __init__(self, events: Counter) -> None:
        super().__init__(logging.INFO)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        action = getattr(record, "action", None)
        if isinstance(action, str):
            self._events.labels(action).inc()


class _Readings(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for one in self._read():
            names = [name for name, _ in one.labels]
            family = families.setdefault(one.name, GaugeMetricFamily(one.name, one.help, labels=names))
            family.add_metric([value for _, value in one.labels], one.value)
        return families.values()

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read before somebody asks
