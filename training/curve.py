"""The curve of a flow's training, as a drawing: `training/curve`.

What it does not know: what was trained.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from training import work

FILE = "curve.csv"
#: Columns: pictures seen, mean loss of the last steps, loss of the averaged weights on scenes never trained on.
COLUMNS = ("pictures", "loss", "unseen")
_WIDTH, _HEIGHT, _EDGE = 720, 320, 48
_LOWEST, _HIGHEST, _STEP = 0.3, 1.1, 0.1
_INKS = {"loss": "#c2410c", "unseen": "#1d4ed8"}
_NAMES = {"loss": "training", "unseen": "averaged weights, scenes never trained on"}


def note(folder: Path, pictures: int, loss: float, unseen: float) -> None:
    """One more point of the curve."""
    path = folder / FILE
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(COLUMNS)
        writer.writerow((pictures, f"{loss:.4f}", f"{unseen:.4f}"))


def read(folder: Path) -> list[Mapping[str, float]]:
    """All points, in the order of the pictures seen."""
    with (folder / FILE).open(encoding="utf-8", newline="") as file:
        points = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return sorted(points, key=lambda point: point["pictures"])


def drawn(points: Sequence[Mapping[str, float]], stages: Mapping[str, int]) -> str:
    """An SVG; `stages` are names of the curriculum's parts and the pictures at which each begins."""
    last = max(point["pictures"] for point in points)
    lines = [*_axes(last), *(_stage(name, _across(start, last)) for name, start in stages.items() if start < last)]
    for place, (column, ink) in enumerate(_INKS.items()):
        path = " ".join(f"{_across(point['pictures'], last):.1f},{_down(point[column]):.1f}" for point in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{ink}" stroke-width="1.5"/>')
        lines.append(_text(_WIDTH - _EDGE, _EDGE + 16 * place, _NAMES[column], ink, "end"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>', *lines, "</svg>\n"])


def _axes(last: float) -> Iterator[str]:
    for number in range(round((_HIGHEST - _LOWEST) / _STEP) + 1):
        loss = _LOWEST + number * _STEP
        y = _down(loss)
        yield f'<path d="M{_EDGE} {y:.1f}H{_WIDTH - _EDGE}" stroke="#ddd"/>'
        yield _text(_EDGE - 6, y + 4, f"{loss:.1f}", "#444", "end")
    yield _text(_WIDTH - _EDGE, _HEIGHT - 8, f"{last:,.0f} pictures", "#444", "end")


def _stage(name: str, x: float) -> str:
    line = f'<path d="M{x:.1f} {_EDGE / 2}V{_HEIGHT - _EDGE}" stroke="#999" stroke-dasharray="3 3"/>'
    return line + _text(x + 4, _HEIGHT - _EDGE + 16, name, "#444", "start")


def _text(x: float, y: float, words: str, ink: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" fill="{ink}" text-anchor="{anchor}">{words}</text>'


def _across(pictures: float, last: float) -> float:
    return _EDGE + (_WIDTH - 2 * _EDGE) * pictures / last


def _down(loss: float) -> float:
    share = (min(max(loss, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
    return _HEIGHT - _EDGE - share * (_HEIGHT - 1.5 * _EDGE)


def main(
    name: Annotated[str, typer.Option(help="The run.")] = "flow",
    preset: Annotated[str, typer.Option(help="Its preset.")] = "cpu",
    out: Annotated[Path, typer.Option(help="The drawing to write.")] = Path("docs/mini/curve.svg"),
) -> None:
    """Draw the curve of a run."""
    from training.flow import PRESETS

    phases = PRESETS[preset].phases
    starts = (0, *(phase.until for phase in phases))
    stages = dict(
        zip(("one thing", "scenes, styles", "pairs, counts, colours", "all sizes, guidance"), starts, strict=False)
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(drawn(read(work.folder() / name), stages), encoding="utf-8")
    print(out)


if __name__ == "__main__":
    typer.run(main)
