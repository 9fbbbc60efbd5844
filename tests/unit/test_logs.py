"""The log: what is shown, and that hidden lines are counted all the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from fluxserve import logs
from fluxserve.metrics import Metrics


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("fluxserve")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", ["debug", "info", "error"]), ("info", ["info", "error"]), ("error", ["error"])]
)
def test_lines_are_counted_whether_they_are_shown_or_not(
    level: str, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(level, "text")
    logger, metrics = logging.getLogger("fluxserve.test"), Metrics()
    with metrics.counting_events():
        for name in ("debug", "info", "error"):
            logger.log(logging.getLevelNamesMapping()[name.upper()], "line of %s", name, extra={"action": name})
        logger.info("without an action")
    logger.error("later", extra={"action": "error"})
    told = capsys.readouterr().err
    assert [name for name in ("debug", "info", "error") if f"line of {name}" in told] == shown
    text = metrics.text().decode()
    assert 'fluxserve_events_total{action="info"} 1.0' in text
    assert 'fluxserve_events_total{action="error"} 1.0' in text
    assert 'action="debug"' not in text
