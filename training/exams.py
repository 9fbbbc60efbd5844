"""What mini is asked: prompts with seeds, and for each the scene that a real picture of it is painted from.

So every figure has its twin: the same measure of real pictures, which says how much of an error is the judge's.
What it does not know: how pictures are drawn or judged.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from training import layout
from training.backdrops import COLOURS, plain
from training.canvases import SMALL, SQUARE, Canvas, canvases
from training.looks import Look
from training.records import Record
from training.scenes import Facts, Scene, SceneSampler
from training.views import compose
from training.vocabulary import Entry, Weighted, entries, is_held_out
from training.words import article, lists, with_article

#: Steps and guidance that FLUX.1 [dev] draws with unless it is told otherwise.
STEPS, GUIDANCE = 28, 3.5
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl")
_SEEDS = 8
_COMMONEST = 200
_STAGE = 3
_APART = 777_001  # of the training's scenes, by seed


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt (the scene's caption) with its noise; the scene's facts are what the picture has to show."""

    scene: Scene
    seed: int
    canvas: Canvas = SQUARE

    @property
    def facts(self) -> Facts:
        """What is true of the picture asked for."""
        return self.scene.facts


class Exam(msgspec.Struct, frozen=True, kw_only=True):
    """Questions that are drawn with the same settings and counted together."""

    name: str
    questions: tuple[Question, ...]
    steps: int
    guidance: float


class Examiner:
    """Sets the exams: the same records and share, the same questions. `share` of 1 asks everything."""

    def __init__(
        self, records: Sequence[Record], looks: Sequence[Look], share: float, steps: int, guidance: float
    ) -> None:
        self._records, self._looks, self._share = records, looks, share
        self._steps, self._guidance = steps, guidance
        self._entries = entries(records)

    def exams(self) -> Iterator[Exam]:
        """All of them, in the order of the report."""
        yield self._exam("plain", self._plain())
        yield self._exam("fifty", self._fifty())
        yield self._exam("backgrounds", self._backgrounds())
        yield self._exam("mixture", self._mixture())
        yield self._exam("held out", self._held_out())
        for style in dict.fromkeys(style for entry in self._entries for style in entry.sprites):
            yield self._exam(f"{style} style", self._styled(style))
        for language in LANGUAGES:
            yield self._exam(f"prompts in {language}", self._spoken(language))
        yield self._exam("synonyms", self._keywords())
        yield self._exam("other shapes", self._shapes())
        yield self._exam("1024 x 1024", self._large())
        for steps in (4, 8, 12, 28):
            yield self._exam(f"{steps} steps", self._some(), steps=steps)
        for guidance in (1.0, 2.0, 3.5, 5.0):
            yield self._exam(f"guidance {guidance:g}", self._some(), guidance=guidance)

    @property
    def commonest(self) -> tuple[str, ...]:
        """The labels that people ask for most."""
        known = {entry.label for entry in self._entries}
        rng = random.Random("commonest")
        found = sorted(known & lists().common)
        return tuple(sorted(rng.sample(found, min(_COMMONEST, len(found)))))

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels."""
        return tuple(entry.label for entry in self._entries)

    def _exam(
        self, name: str, questions: Iterator[Question], steps: int | None = None, guidance: float | None = None
    ) -> Exam:
        return Exam(
            name=name,
            questions=tuple(questions),
            steps=steps or self._steps,
            guidance=guidance or self._guidance,
        )

    def _plain(self) -> Iterator[Question]:
        """Every label, or a share of them that has its share of the commonest."""
        commonest = set(self.commonest)
        for group in (
            [e for e in self._entries if e.label in commonest],
            [e for e in self._entries if e.label not in commonest],
        ):
            for entry in _sample("plain", group, self._count(len(group))):
                for seed in range(_SEEDS):
                    yield self._single(entry, with_article(entry.label), "white", seed)

    def _fifty(self) -> Iterator[Question]:
        """Those that a test draws too."""
        entries_of = {entry.label: entry for entry in self._entries}
        for seed, (label, prompt) in enumerate(fifty().items()):
            if label in entries_of:
                yield self._single(entries_of[label], prompt, "white", seed)

    def _backgrounds(self) -> Iterator[Question]:
        for colour in (name for name in COLOURS if name != "white"):
            fit = [entry for entry in self._entries if not is_held_out("background", entry.label, colour)]
            for seed, entry in self._lot(f"backgrounds/{colour}", fit, 50):
                caption = f"{with_article(entry.label)} on {article(colour)} {colour} background"
                yield self._single(entry, caption, colour, seed)

    def _styled(self, style: str) -> Iterator[Question]:
        having = [entry for entry in self._entries if style in entry.sprites]
        fit = [entry for entry in having if not is_held_out("style", entry.label, style)]
        for seed, entry in self._lot(f"styles/{style}", fit, 150):
            yield self._single(entry, f"{with_article(entry.label)}, {style} style", "white", seed, style)

    def _mixture(self) -> Iterator[Question]:
        """Scenes as in training, of another seed."""
        return self._sampled(max(600, self._count(3000)), SQUARE)

    def _held_out(self) -> Iterator[Question]:
        return self._sampled(max(200, self._count(1000)), SQUARE, is_held_out=True)

    def _spoken(self, language: str) -> Iterator[Question]:
        """Labels in a language, where they mean this and nothing else."""
        spoken = {entry.label: self._records[entry.sprites[entry.default_style][0]].labels for entry in self._entries}
        fit = [entry for entry in self._entries if spoken[entry.label].get(language) in entry.foreign]
        for seed, entry in self._lot(f"languages/{language}", fit, 150):
            yield self._single(entry, spoken[entry.label][language], "white", seed)

    def _keywords(self) -> Iterator[Question]:
        rng = random.Random("which keyword")
        for seed, entry in self._lot("keywords", [entry for entry in self._entries if entry.keywords], 600):
            yield self._single(entry, with_article(rng.choice(entry.keywords)), "white", seed)

    def _shapes(self) -> Iterator[Question]:
        for canvas in canvases(SMALL)[1:]:
            yield from self._sampled(self._count(100), canvas)

    def _large(self) -> Iterator[Question]:
        return self._sampled(self._count(400), (1024, 1024))

    def _some(self) -> Iterator[Question]:
        for seed, entry in self._lot("some", self._entries, 200):
            yield self._single(entry, with_article(entry.label), "white", seed)

    def _sampled(self, count: int, canvas: Canvas, is_held_out: bool = False) -> Iterator[Question]:
        sampler = SceneSampler(self._records, _STAGE, _APART, is_held_out, self._looks)
        for index in range(count):
            yield Question(scene=sampler.scene(index, canvas), seed=index, canvas=canvas)

    def second_sample(self, count: int) -> list[Scene]:
        """As many other scenes as the mixture's, to measure how far apart real pictures are."""
        sampler = SceneSampler(self._records, _STAGE, _APART + 1, False, self._looks)
        return [sampler.scene(index, SQUARE) for index in range(count)]

    def _single(self, entry: Entry, caption: str, background: str, seed: int, style: str | None = None) -> Question:
        style = style or entry.default_style
        layer = layout.centred(entry.sprites[style][0])
        facts = Facts(labels=(entry.label,), style=style, background=background)
        return Question(scene=compose((layer,), plain(background), facts, caption), seed=seed)

    def _lot(self, name: str, fit: list[Entry], whole: int) -> Iterator[tuple[int, Entry]]:
        """Numbered entries, drawn by their weight in training among those that fit; none where none does."""
        weighted, rng = Weighted(fit), random.Random(name)
        return ((seed, weighted.draw(rng)) for seed in range(self._count(whole) if fit else 0))

    def _count(self, whole: int) -> int:
        return max(1, round(whole * self._share))


def fifty() -> dict[str, str]:
    """Labels, drawn by lot from the commonest, with the prompts for them; a picture's seed is its place."""
    labels = (Path(__file__).parent / "fifty.txt").read_text(encoding="utf-8").splitlines()
    return {label: with_article(label) for label in labels}


def _sample(name: str, group: list[Entry], count: int) -> list[Entry]:
    return sorted(random.Random(name).sample(group, count), key=lambda entry: entry.label)
