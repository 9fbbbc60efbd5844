"""Measures a pipeline folder: `training/evaluate`.

Every figure of drawn pictures stands beside the same figure of real ones, painted from the same scenes. Pictures are
kept in the work folder, so that a stopped evaluation goes on where it was. What it does not know: how mini was trained.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from training import classifier, closeness, judge, latents, measures, work
from training.canvases import SHRUNK
from training.closeness import Distances, Sprites
from training.drawing import KEPT, Artist, Gallery
from training.exams import GUIDANCE, STEPS, Exam, Examiner, Question
from training.grading import Grader, Judges, Marks
from training.looks import measure
from training.painter import Painter
from training.pictures import DRAWING
from training.render import load_sprites
from training.report import Figure, Report, Value, figures, markdown, write
from training.scenes import Scene

PIPELINE = Path(__file__).parent.parent / "src/fluxserve/mini/pipeline"
_RECOGNISED = 5  # of a thing's 8 pictures
_CLOSE = 1000  # plain pictures whose nearest sprite is looked for
_UNSEEN = "emojione"  # a set that mini was never shown
_REBUILT = 64  # pictures sent through the autoencoder


class Evaluation:
    """One pipeline, the judges and the real pictures."""

    def __init__(self, artist: Artist, judges: Judges, share: float, steps: int, guidance: float) -> None:
        sprites, records = load_sprites(DRAWING)
        self._artist, self._judges = artist, judges
        self._painter, self._count = Painter(sprites), len(sprites)
        self._gallery = Gallery(artist, work.folder() / "evaluation" / "pictures")
        self._grader = Grader(judges, self._painter)
        self._examiner = Examiner(records, measure(sprites), share, steps, guidance)
        self._figures: list[Figure] = []
        self._values: list[Value] = []
        self._things: dict[str, dict[str, int]] = {}

    def run(self, facts: dict[str, str]) -> Report:
        """All exams, then what is measured once."""
        for exam in self._examiner.exams():
            started = time.monotonic()
            pictures, real = self._gallery.pictures(exam), self._real(exam.questions)
            drawn_marks, real_marks = (self._grader.marks(exam.questions, shown) for shown in (pictures, real))
            self._figures += figures(exam.name, drawn_marks, real_marks)
            self._measure(exam, pictures, real, drawn_marks, real_marks)
            print(f"{exam.name}: {len(exam.questions)} pictures in {time.monotonic() - started:.0f} s", flush=True)
        self._values += self._rebuilt()
        return Report(facts=facts, figures=self._figures, values=self._values, things=self._things)

    def _measure(
        self, exam: Exam, pictures: list[Tensor], real: list[Tensor], drawn_marks: Marks, real_marks: Marks
    ) -> None:
        """What some exams show besides marks."""
        if exam.name == "plain":
            self._count_things(exam, drawn_marks, real_marks)
            self._values += self._nearest(pictures)
        elif exam.name == "mixture":
            self._values.append(self._frechet(pictures, real))
        elif "steps" in exam.name or "guidance" in exam.name:
            saturations = (f"{measures.saturation(torch.stack(shown)):.3f}" for shown in (pictures, real))
            self._values.append(Value(name=f"{exam.name}: saturation", drawn=next(saturations), real=next(saturations)))

    def _real(self, questions: Sequence[Question]) -> list[Tensor]:
        painted: list[Tensor] = []
        for canvas, group in groupby(questions, key=lambda question: question.canvas):
            height, width = (round(side * KEPT / min(canvas)) for side in canvas)
            painted += self._paint([question.scene for question in group], height, width)
        return painted

    def _paint(self, scenes: Sequence[Scene], height: int, width: int) -> list[Tensor]:
        parts = [self._painter.paint(scenes[first : first + 64], height, width) for first in range(0, len(scenes), 64)]
        return list(torch.cat(parts).clamp(-1, 1))

    def _count_things(self, exam: Exam, drawn: Marks, real: Marks) -> None:
        """How many things are recognised in most of their pictures, by judge; and the figures of the commonest."""
        commonest = set(self._examiner.commonest)
        is_common = [question.facts.labels[0] in commonest for question in exam.questions]
        self._figures += figures(
            f"plain, the {len(commonest)} commonest", _only(drawn, is_common), _only(real, is_common)
        )
        for name in ("known", "strict"):
            counted = [_by_label(exam, marks[f"{name} top-1"]) for marks in (drawn, real)]
            for label, right in counted[0].items():
                self._things.setdefault(label, {})[name] = right
            shown = [f"{sum(n >= _RECOGNISED for n in by.values())} of {len(by)}" for by in counted]
            self._values.append(
                Value(
                    name=f"things recognised in {_RECOGNISED} of 8 pictures, {name} judge",
                    drawn=shown[0],
                    real=shown[1],
                )
            )

    def _nearest(self, pictures: list[Tensor]) -> list[Value]:
        """Memorisation: the distance to the nearest sprite, beside that of sprites never shown."""
        known = self._judges.known
        step = max(1, len(pictures) // _CLOSE)
        ours = closeness.traits(torch.stack(pictures[::step]), known)
        learnt = Sprites(self._painter, self._count, known)
        unseen_sprites, _ = load_sprites((_UNSEEN,))
        others = Sprites(Painter(unseen_sprites), len(unseen_sprites), known)
        names = ("in features", "in pixels of 64 x 64, 0 ... 255")
        drawn, unseen = learnt.distances(*ours), learnt.distances(others.features, others.pixels)
        return [
            Value(
                name=f"distance to the nearest sprite, {name}",
                drawn=_told(d),
                real=f"{_UNSEEN}, never shown: {_told(u)}",
            )
            for name, d, u in zip(names, drawn, unseen, strict=True)
        ]

    def _frechet(self, pictures: list[Tensor], real: list[Tensor]) -> Value:
        others = self._paint(self._examiner.second_sample(len(pictures)), KEPT, KEPT)
        drawn, twins, apart = (
            self._judges.known.look(torch.stack(shown)).features for shown in (pictures, real, others)
        )
        return Value(
            name=f"Frechet distance of {len(pictures)} pictures to as many real ones",
            drawn=f"{measures.frechet(drawn, twins):.3f}",
            real=f"{measures.frechet(apart, twins):.3f}",
        )

    def _rebuilt(self) -> list[Value]:
        vae = self._artist.parts().vae
        scenes = self._examiner.second_sample(_REBUILT)
        pictures = torch.stack(self._paint(scenes, 512, 512))
        values = [
            Value(name="autoencoder, 512 x 512", drawn=f"{closeness.reconstruction(vae, pictures):.1f} dB", real="")
        ]
        if self._artist.checkpoint.vae_factor == SHRUNK * latents.PATCH:
            decibels = closeness.drawing(vae, latents.load(), pictures)
            values.append(Value(name="decoder from the exact latents, 512 x 512", drawn=f"{decibels:.1f} dB", real=""))
        return values


def _only(marks: Marks, is_kept: Sequence[bool]) -> Marks:
    return {name: [v for v, kept in zip(values, is_kept, strict=True) if kept] for name, values in marks.items()}


def _by_label(exam: Exam, marks: Sequence[bool | None]) -> Counter[str]:
    """For each label that the judge knows, its pictures that were recognised."""
    counter: Counter[str] = Counter()
    for question, mark in zip(exam.questions, marks, strict=True):
        if mark is not None:
            counter[question.facts.labels[0]] += mark
    return counter


def _told(distances: Distances) -> str:
    shares = f"5 % {distances.lowest:.2f}, 50 % {distances.middle:.2f}, 95 % {distances.highest:.2f}"
    return f"mean {distances.mean:.2f} ({shares})"


def main(
    pipeline: Annotated[Path, typer.Option(help="The folder to measure.")] = PIPELINE,
    share: Annotated[float, typer.Option("--fraction", help="Of the questions; 0.1 takes minutes.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Of each picture, where nothing else is measured.")] = STEPS,
    guidance: Annotated[float, typer.Option(help="Of each picture, where nothing else is measured.")] = GUIDANCE,
    strict: Annotated[Path | None, typer.Option(help="The judge that never saw mini's styles.")] = None,
    known: Annotated[Path | None, typer.Option(help="The judge that saw everything.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Draw seeded pictures, judge them and real ones, and write evaluation/evaluation.md and .json."""
    judges = Judges(
        strict=classifier.load(strict or judge.at_hand("strict")),
        known=classifier.load(known or judge.at_hand("known")),
    )
    artist = Artist(pipeline, device, threads)
    facts = {
        "weights": f"{artist.checkpoint.name}, {artist.weights[:16]}",
        "settings": f"{steps} steps, guidance {guidance:g}, {share:g} of all questions",
        "labels": f"{len(judges.known.labels)} of the known judge, {len(judges.strict.labels)} of the strict judge",
    }
    report = Evaluation(artist, judges, share, steps, guidance).run(facts)
    write(report, work.folder() / "evaluation")
    print(markdown(report))


if __name__ == "__main__":
    typer.run(main)
