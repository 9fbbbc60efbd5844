"""Between the server, its workers, its courier and the receivers of webhooks is a network at its worst (R23).

Whatever the network does, every task ends Ready, each is charged once and told, and nothing is left.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fronts import Weather
from life import Life, whole_world

from builders import in_event_loop

WEATHERS = {
    "slow": Weather(latency=0.05, jitter=0.05),
    "thin": Weather(rate=100_000.0),
    "sliced": Weather(piece=13),
    "resets": Weather(ends=(2_000, 30_000)),
    "half closed": Weather(ends=(2_000, 30_000), half_closed=True),
    "falls silent": Weather(ends=(2_000, 30_000), falls_silent=5.0),
}
#: Between server and workers alone: receivers that fail so often are left in peace for minutes.
WORST = {
    "very slow": Weather(latency=0.3, jitter=0.4),
    "very thin": Weather(rate=10_000.0),
    "single bytes": Weather(piece=2),
    "resets at once": Weather(ends=(500, 40_000)),
    "everything": Weather(latency=0.02, jitter=0.02, piece=5_000, ends=(3_000, 60_000), falls_silent=4.0),
}


@pytest.mark.parametrize("weather", WEATHERS)
@in_event_loop
async def test_in_every_weather_all_tasks_are_drawn_told_and_charged_once(tmp_path: Path, weather: str) -> None:
    async with whole_world(WEATHERS[weather]) as world:
        assert await Life(tmp_path, world, weather=WEATHERS[weather], workers=2).live(8) == ["Ready"] * 8


@pytest.mark.long
@pytest.mark.parametrize("weather", WORST)
@in_event_loop
async def test_in_the_worst_weather_too(tmp_path: Path, weather: str) -> None:
    async with whole_world() as world:
        life = Life(tmp_path, world, weather=WORST[weather], workers=2, lease=30.0)
        assert await life.live(40, within=240.0) == ["Ready"] * 40
