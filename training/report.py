"""The figures of an evaluation: tables for people (Markdown) and for programs (JSON).

What it does not know: how a figure comes about.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec

from training.grading import Marks


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """Shares 0 ... 1 of `count` pictures: drawn, real, and drawn among those whose real twin earned the mark."""

    exam: str
    mark: str
    count: int
    drawn: float
    real: float | None
    drawn_where_real: float | None


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A number that is no share, with what it is beside on real pictures."""

    name: str
    drawn: str
    real: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation. `things` holds for each label how many of its pictures each judge knew, of how many."""

    facts: dict[str, str]
    figures: list[Figure]
    values: list[Value]
    things: dict[str, dict[str, int]]


def figures(exam: str, drawn: Marks, real: Marks | None) -> list[Figure]:
    """One for each mark that applies to any question of the exam."""
    return [
        _figure(exam, mark, values, real[mark] if real is not None and mark in real else None)
        for mark, values in drawn.items()
    ]


def _figure(exam: str, mark: str, drawn: Sequence[bool | None], real: Sequence[bool | None] | None) -> Figure:
    asked = [value for value in drawn if value is not None]
    where = [d for d, r in zip(drawn, real or (), strict=False) if d is not None and r]
    return Figure(
        exam=exam,
        mark=mark,
        count=len(asked),
        drawn=statistics.mean(asked),
        real=statistics.mean(value for value in real if value is not None) if real else None,
        drawn_where_real=statistics.mean(where) if where else None,
    )


def markdown(report: Report) -> str:
    """The whole report."""
    lines = [*(f"- {name}: {value}" for name, value in report.facts.items()), ""]
    lines += ["| exam | mark | drawn | real pictures | drawn, where the real is right | pictures |"]
    lines += ["|---|---|---|---|---|---|"]
    lines += [_row(figure) for figure in report.figures]
    lines += ["", "| measure | drawn | real pictures |", "|---|---|---|"]
    lines += [f"| {value.name} | {value.drawn} | {value.real} |" for value in report.values]
    return "\n".join(lines) + "\n"


def write(report: Report, folder: Path) -> None:
    """`evaluation.md` and `evaluation.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.md").write_text(markdown(report), encoding="utf-8")
    (folder / "evaluation.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))


def _row(figure: Figure) -> str:
    cells = (_share(figure.drawn), _share(figure.real), _share(figure.drawn_where_real), f"{figure.count}")
    return f"| {figure.exam} | {figure.mark} | {' | '.join(cells)} |"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
