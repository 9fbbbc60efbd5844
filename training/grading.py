"""Marks: whether a picture shows what was asked, by two judges and by measurement.

Drawn pictures and real ones are marked alike. What it does not know: which of the two a picture is.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training import layout, measures
from training.backdrops import GROUNDS, SKIES, outdoors
from training.classifier import Judge, Opinion
from training.exams import Question
from training.painter import Painter
from training.scenes import Facts, Scene
from training.views import compose
from training.words import STYLE_ORDER

_REFERENCES = 4  # of each scene: suns and clouds are scattered

#: Name of the mark -> for each question whether it was earned; None where it does not apply.
Marks = dict[str, list[bool | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Judges:
    """`strict` never saw mini's styles, `known` saw everything."""

    strict: Judge
    known: Judge


class Grader:
    """Marks pictures (3, H, W) in -1 ... 1, in batches of one shape."""

    def __init__(self, judges: Judges, painter: Painter) -> None:
        self._judges = judges
        self._scenes, self._bands = _reference_bands(painter)

    def marks(self, questions: Sequence[Question], pictures: Sequence[Tensor]) -> Marks:
        """All marks of all questions."""
        marks: Marks = defaultdict(lambda: [None] * len(questions))
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, picture in enumerate(pictures):
            groups[tuple(picture.shape)].append(index)
        for rows in groups.values():
            batch, facts = torch.stack([pictures[row] for row in rows]), [questions[row].facts for row in rows]
            for name, values in self._batch(batch, [questions[row] for row in rows], facts).items():
                for row, value in zip(rows, values, strict=True):
                    marks[name][row] = value
        return {name: values for name, values in marks.items() if any(value is not None for value in values)}

    def _batch(self, pictures: Tensor, questions: Sequence[Question], facts: Sequence[Facts]) -> Marks:
        middle = _middle(pictures)
        known = self._judges.known.look(middle)
        return {
            **_label_marks("known", self._judges.known, known, facts),
            **_label_marks("strict", self._judges.strict, self._judges.strict.look(middle), facts),
            "style": self._style_marks(known, facts),
            "background": _background_marks(pictures, facts),
            "scene": self._scene_marks(pictures, facts),
            **_count_marks(pictures, facts),
            "colour": _colour_marks(pictures, facts),
            **self._pair_marks(pictures, questions),
        }

    def _style_marks(self, opinion: Opinion, facts: Sequence[Facts]) -> list[bool | None]:
        """The likeliest of the styles that mini was taught."""
        known = self._judges.known.styles
        places = [known.index(style) for style in STYLE_ORDER if style in known]
        said = [known[places[best]] for best in opinion.styles[:, places].argmax(dim=1).tolist()]
        return [style == fact.style if _is_single(fact) else None for style, fact in zip(said, facts, strict=True)]

    def _scene_marks(self, pictures: Tensor, facts: Sequence[Facts]) -> list[bool | None]:
        best = torch.cdist(measures.bands(pictures), self._bands).argmin(dim=1).tolist()
        return [
            None if fact.scene is None else self._scenes[place] == fact.scene
            for place, fact in zip(best, facts, strict=True)
        ]

    def _pair_marks(self, pictures: Tensor, questions: Sequence[Question]) -> Marks:
        """Both things where they were asked for: each is looked for in its own half only."""
        marks: Marks = {name: [None] * len(questions) for name in ("two things", "relation")}
        for is_row in (True, False):
            rows = [
                row
                for row, question in enumerate(questions)
                if question.facts.relation is not None
                and layout.is_row(question.facts.relation, question.canvas) == is_row
            ]
            if not rows:
                continue
            said = [self._seen(half) for half in measures.halves(pictures[rows], is_row=is_row)]
            for row, *found in zip(rows, *said, strict=True):
                facts = questions[row].facts
                marks["two things"][row] = sorted(found) == sorted(facts.labels)
                if facts.relation != "beside":
                    marks["relation"][row] = tuple(found) == facts.labels
        return marks

    def _seen(self, halves: Tensor) -> list[str]:
        """The likeliest label over the two squares of each half."""
        judge = self._judges.known
        scores = [judge.look(square).labels.softmax(dim=1) for square in measures.squared(halves)]
        return [judge.labels[best] for best in torch.stack(scores).amax(dim=0).argmax(dim=1).tolist()]


def _label_marks(name: str, judge: Judge, opinion: Opinion, facts: Sequence[Facts]) -> Marks:
    numbers = {label: number for number, label in enumerate(judge.labels)}
    wanted = [numbers.get(fact.labels[0]) if _is_single(fact) else None for fact in facts]
    best = opinion.labels.topk(min(5, len(judge.labels)), dim=1).indices.tolist()
    return {
        f"{name} top-1": [None if w is None else w == row[0] for w, row in zip(wanted, best, strict=True)],
        f"{name} top-5": [None if w is None else w in row for w, row in zip(wanted, best, strict=True)],
    }


def _background_marks(pictures: Tensor, facts: Sequence[Facts]) -> list[bool | None]:
    named = measures.background_names(pictures)
    return [
        None if fact.background is None else name == fact.background for name, fact in zip(named, facts, strict=True)
    ]


def _count_marks(pictures: Tensor, facts: Sequence[Facts]) -> Marks:
    counted = measures.counts(pictures)
    return {
        f"{wanted} things": [
            number == wanted if fact.relation is None and fact.count == wanted else None
            for number, fact in zip(counted, facts, strict=True)
        ]
        for wanted in (2, 3, 4)
    }


def _colour_marks(pictures: Tensor, facts: Sequence[Facts]) -> list[bool | None]:
    if not any(fact.colour and fact.background for fact in facts):
        return [None] * len(facts)
    named = measures.colour_names(pictures)
    return [
        name == fact.colour if fact.colour and fact.background else None
        for name, fact in zip(named, facts, strict=True)
    ]


def _is_single(fact: Facts) -> bool:
    return fact.count == 1 and fact.relation is None


def _middle(pictures: Tensor) -> Tensor:
    """The square in the middle."""
    height, width = pictures.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[..., top : top + side, left : left + side]


def _reference_bands(painter: Painter) -> tuple[list[str], Tensor]:
    """What each sky over each ground looks like at the top and at the bottom, several times."""
    rng = random.Random("references")
    scenes: list[Scene] = []
    for sky, ground, _ in itertools.product(SKIES, (*GROUNDS, None), range(_REFERENCES)):
        backdrop = outdoors(rng, sky, ground)
        facts = Facts(labels=(), style="", scene=backdrop.scene, count=0)
        scenes.append(compose((), backdrop, facts, seed=rng.getrandbits(32)))
    return [scene.facts.scene or "" for scene in scenes], measures.bands(painter.paint(scenes, 128, 128))
