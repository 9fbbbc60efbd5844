"""What metrics and the log are told of tasks: each end once, claims that were lost, and how much waits.

What it does not know: who asks, and in which format that is told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from fluxserve.metrics import Metrics, Reading
from fluxserve.service.forecast import Forecast
from fluxserve.service.views import Views
from fluxserve.service.webhooks import Webhooks
from fluxserve.store.base import TaskRecord
from fluxserve.tasks.task import State

logger = logging.getLogger(__name__)


def count(metrics: Metrics, record: TaskRecord) -> None:
    """A task has changed; one that is ready without a drawing of its own took no time for it."""
    if record.finished_at is None:
        return
    model = record.generation.model
    metrics.ended(model, record.state)
    if record.state is not State.READY:
        return
    metrics.took(model, "whole", record.finished_at - record.created_at)
    if record.drawn is not None and record.started_at is not None and not record.is_answered:
        metrics.took(model, "waiting", record.started_at - record.created_at)
        metrics.took(model, "drawing", record.drawn.duration)
        metrics.drawn(model, record.work)


def readings(views: Views, forecast: Forecast, webhooks: Webhooks, now: float) -> Iterator[Reading]:
    """How much waits, and for how long."""
    for state, (number, oldest) in views.waiting().items():
        labels = (("state", str(state)),)
        age = max(0.0, now - oldest) if number else 0.0
        yield Reading(name="fluxserve_tasks", help="Unfinished tasks, by state.", value=number, labels=labels)
        yield Reading(
            name="fluxserve_oldest_task_seconds", help="Since the oldest of them came.", value=age, labels=labels
        )
    work = forecast.work_left
    yield Reading(name="fluxserve_unfinished_teraflop", help="Predicted work of what is not drawn yet.", value=work)
    yield Reading(name="fluxserve_webhooks_waiting", help="Webhooks that are to be told.", value=len(webhooks))


def log_release(record: TaskRecord, *, suspected: bool) -> None:
    """A claim was lost; `suspected`: the task may have been the cause."""
    extra = {"action": str(record.state), **record.log_context}
    if record.state.is_final:
        count = 1 + len(record.followers)
        logger.error("Task quarantined, with all that ask the same", extra={**extra, "count": count})
    elif suspected:
        logger.warning("Task lost its worker", extra={**extra, "spoiled": record.attempts.spoiled})
    else:
        logger.info("Task back in the queue", extra=extra)
