"""The curve of a training: what was noted is what is drawn."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from training import curve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for pictures, loss, unseen in ((100, 1.0, 0.9), (300, 0.5, 0.6), (200, 0.7, 0.7)):
        curve.note(tmp_path, pictures, loss, unseen)
    return tmp_path


def test_points_are_read_in_the_order_of_pictures_with_their_numbers(folder: Path) -> None:
    assert curve.read(folder) == [
        {"pictures": 100, "loss": 1.0, "unseen": 0.9},
        {"pictures": 200, "loss": 0.7, "unseen": 0.7},
        {"pictures": 300, "loss": 0.5, "unseen": 0.6},
    ]


def test_lower_losses_are_drawn_lower_and_stages_that_have_not_begun_are_left_out(folder: Path) -> None:
    drawing = curve.drawn(curve.read(folder), {"first": 0, "second": 200, "third": 300})
    lines = [e for e in ET.fromstring(drawing).iter() if e.tag.endswith("polyline")]  # noqa: S314 - our own
    assert len(lines) == 2
    for line in lines:
        points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        assert points == sorted(points)
        assert [y for _, y in points] == sorted(y for _, y in points)
    assert ("second" in drawing, "third" in drawing) == (True, False)
