"""What `fluxserve generate` shows while it waits."""

from __future__ import annotations

import pytest

from fluxserve.client import Progress
from fluxserve.generate import stage


@pytest.mark.parametrize(
    ("news", "said"),
    [
        (Progress(progress=0, queue_position=3, eta_seconds=12.4), "waiting, 3 before it, about 12 s"),
        (Progress(progress=0, queue_position=1), "waiting, 1 before it"),
        (Progress(progress=0, queue_position=0, eta_seconds=0.2), "drawing, about 1 s"),
        (Progress(progress=0.5, eta_seconds=7.0), "drawing, about 7 s"),
        (Progress(progress=0.5), "drawing"),
    ],
)
def test_the_bar_says_whether_a_task_waits_and_how_long_it_takes(news: Progress, said: str) -> None:
    assert stage(news) == said
