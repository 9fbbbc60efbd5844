"""Scenes and their captions, drawn by seed: which things, where, before what, and the words that ask for it.

Six stages: 1 one thing in the middle of a plain colour; 2 also skies, grounds and named styles; 3 also pairs, counts,
sizes, corners and coloured things; 4 many pairs of common things, said in the order in which they stand, all labels
more alike in number, and sentences with words that nothing in the picture answers to; 5 pairs of any things; 6 pairs
said in any order. The stage that pictures are measured by is the third. What it does not know: pixels (painter.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

from training import captions, layout
from training.backdrops import COLOURS, GROUNDS, SKIES, Backdrop, Rgb, outdoors, plain
from training.canvases import Canvas
from training.layout import Layer
from training.looks import Look
from training.records import Record
from training.vocabulary import Entry, Weighted, entries, is_held_out
from training.words import IDLE_DEEDS, PRAISE, STYLE_ADJECTIVES, STYLE_SHARES, is_countable, lists

_KINDS = {"single": 0.58, "pair": 0.16, "count": 0.12, "size": 0.05, "coloured": 0.09}
_MANY_PAIRS = {"single": 0.36, "pair": 0.52, "count": 0.06, "size": 0.02, "coloured": 0.04}
_PAIRED = 4  # the first stage with many pairs
_COMMON = 4  # the stage that pairs common things only: who stands where is learnt sooner where things are few
_ORDERED = 5  # the last stage that says pairs in their order
_SAID = 1 / 3  # how often the default style is named
_FREE, _FREER = 0.06, 0.1
_STRAY = 0.12  # of the captions from stage 4 on, have words that the picture has nothing to do with
_FOREIGN = {1: 0.13, 2: 0.3, 3: 0.3, 4: 0.2, 5: 0.2, 6: 0.2}  # of the captions of one thing in its default style
_PATIENCE = 20_000  # draws until a combination counts as not there
_HELD_OUT_KINDS = ("background", "style", "pair")


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of a scene, for those who measure: labels from left to right or from top to bottom."""

    labels: tuple[str, ...]
    style: str
    background: str | None = None  # the plain colour, None before a scene
    scene: str | None = None  # "on grass at sunset"
    count: int = 1  # how many things are painted
    relation: str | None = None  # "beside", "left of", "above", "on top of": the first label's to the second
    colour: str | None = None
    held_out: bool = False


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """A picture to paint: colours 0..1, places in shares of the canvas; `seed` scatters stars and clouds."""

    layers: tuple[Layer, ...]
    top: Rgb
    bottom: Rgb
    ground: Rgb | None = None
    horizon: float = 1.0
    waves: bool = False
    hills: bool = False
    lane: bool = False
    stars: bool = False
    clouds: int = 0
    sun: tuple[float, float, float, Rgb] | None = None
    seed: int
    caption: str
    facts: Facts


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing in one style, and whether the caption says the style."""

    entry: Entry
    style: str
    is_said: bool

    @property
    def said(self) -> str | None:
        return self.style if self.is_said else None


class SceneSampler:
    """Scenes of one stage: the same (seed, index, canvas) is the same scene, whoever asks, in whatever order.

    `looks` (one for each record) lets things stand on the ground and take colours; without them every sprite counts
    as square. With `held_out` each scene has a combination that training never shows.
    """

    def __init__(
        self,
        records: Sequence[Record],
        stage: int,
        seed: int,
        held_out: bool = False,
        looks: Sequence[Look] | None = None,
    ) -> None:
        self._stage, self._seed, self._held_out = stage, seed, held_out
        self._looks = looks
        vocabulary = entries(records)
        is_even = stage >= _PAIRED
        common = [e for e in vocabulary if e.label in lists().common]
        self._common = {
            style: Weighted(shown)
            for style in {e.default_style for e in common}
            if len(shown := [e for e in common if e.default_style == style]) > 1
        }
        self._all = Weighted(vocabulary, is_even=is_even)
        styles = dict.fromkeys(style for entry in vocabulary for style in entry.sprites)
        self._having = {
            style: Weighted([e for e in vocabulary if style in e.sprites], is_even=is_even) for style in styles
        }
        self._showing = {
            style: Weighted(shown, is_even=is_even)
            for style in styles
            if (shown := [e for e in vocabulary if e.default_style == style])
        }

    def scene(self, index: int, canvas: Canvas) -> Scene:
        """The scene of this index on a canvas of (height, width)."""
        rng = random.Random(f"{self._seed}/{self._stage}/{index}/{canvas[0]}x{canvas[1]}")
        kind = self._kind(rng)
        if kind == "pair":
            return self._pair(rng, canvas)
        if kind == "count":
            return self._count(rng, canvas)
        if kind == "coloured" and (scene := self._coloured(rng, canvas)):
            return scene
        if kind == "size":
            return self._sized(rng, canvas)
        return self._single(rng, canvas, kind)

    def _kind(self, rng: random.Random) -> str:
        if self._held_out:
            return rng.choice(_HELD_OUT_KINDS[: self._stage])
        if self._stage < 3:
            return "single"
        kinds = _MANY_PAIRS if self._stage >= _PAIRED else _KINDS
        return rng.choices(list(kinds), list(kinds.values()))[0]

    def _single(self, rng: random.Random, canvas: Canvas, kind: str) -> Scene:
        chosen = self._choose(rng, must_hold_out=kind == "style")
        entry, sprite = chosen.entry, self._sprite(rng, chosen)
        if self._is_foreign(rng, chosen):
            layer = layout.centred(sprite)
            return self._compose(rng, (layer,), plain("white"), self._foreign(rng, entry), chosen, (entry.label,))
        if kind == "background":
            chosen, backdrop = self._held_out_background(rng)
            entry, sprite = chosen.entry, self._sprite(rng, chosen)
        else:
            backdrop = self._backdrop(rng, (entry,), scenes=0.3, is_tile=self._look(sprite).is_tile)
        if backdrop.scene is None:
            layer = layout.centred(sprite)
        else:
            layer = layout.standing(
                sprite, self._look(sprite), canvas, backdrop, is_flying=entry.label in lists().flyers
            )
        caption = self._caption(rng, chosen, backdrop)
        return self._compose(rng, (layer,), backdrop, caption, chosen, (entry.label,))

    def _pair(self, rng: random.Random, canvas: Canvas) -> Scene:
        first, second = self._two(rng)
        sprites = self._sprite(rng, first), self._sprite(rng, second)
        looks = self._look(sprites[0]), self._look(sprites[1])
        relation = layout.draw_relation(rng, canvas)
        is_row = layout.is_row(relation, canvas)
        is_tile = not is_row or any(look.is_tile for look in looks)
        backdrop = self._backdrop(rng, (first.entry, second.entry), scenes=0.2, is_tile=is_tile)
        layers = layout.pair(sprites, looks, canvas, relation, backdrop)
        nouns = [captions.noun(rng, self._term(rng, choice.entry)) for choice in (first, second)]
        is_ordered = _PAIRED <= self._stage <= _ORDERED
        related = captions.related(rng, nouns[0], nouns[1], relation, is_ordered=is_ordered)
        body = related + captions.place(rng, backdrop)
        labels = first.entry.label, second.entry.label
        return self._compose(rng, layers, backdrop, self._dress(rng, body, first), first, labels, relation=relation)

    def _count(self, rng: random.Random, canvas: Canvas) -> Scene:
        count = rng.choices((2, 3, 4), (0.45, 0.35, 0.2))[0]
        chosen = self._choose(rng)
        for _ in range(_PATIENCE):
            if is_countable(chosen.entry.name):
                break
            chosen = self._choose(rng)
        entry, sprite = chosen.entry, self._sprite(rng, chosen)
        backdrop = self._backdrop(rng, (entry,), scenes=0.0)
        layers = layout.grid(sprite, canvas, count)
        term = self._term(rng, entry)
        body = captions.several(rng, term if is_countable(term) else entry.name, count) + captions.place(rng, backdrop)
        return self._compose(rng, layers, backdrop, self._dress(rng, body, chosen), chosen, (entry.label,))

    def _sized(self, rng: random.Random, canvas: Canvas) -> Scene:
        chosen = self._choose(rng)
        entry, sprite = chosen.entry, self._sprite(rng, chosen)
        backdrop = self._backdrop(rng, (entry,), scenes=0.0)
        size, corner = layout.draw_size(rng)
        layer = layout.sized(sprite, canvas, size, corner)
        where = f" in the {corner} corner" if corner else ""
        body = captions.noun(rng, self._term(rng, entry), size) + where + captions.place(rng, backdrop)
        return self._compose(rng, (layer,), backdrop, self._dress(rng, body, chosen), chosen, (entry.label,))

    def _coloured(self, rng: random.Random, canvas: Canvas) -> Scene | None:
        """A thing in a colour that its sprite can take; None when none is found in a few draws."""
        for _ in range(24):
            chosen = self._choose(rng)
            entry, sprite = chosen.entry, self._sprite(rng, chosen)
            if tint := layout.draw_tint(rng, self._look(sprite), entry.label, entry.group):
                break
        else:
            return None
        colour, hue = tint
        backdrop = self._backdrop(rng, (entry,), scenes=0.2, is_tile=self._look(sprite).is_tile)
        if backdrop.scene is None:
            layer = layout.centred(sprite)
        else:
            layer = layout.standing(
                sprite, self._look(sprite), canvas, backdrop, is_flying=entry.label in lists().flyers
            )
        body = captions.noun(rng, self._term(rng, entry), colour) + captions.place(rng, backdrop)
        layers = (layer._replace(hue=hue),)
        return self._compose(
            rng, layers, backdrop, self._dress(rng, body, chosen), chosen, (entry.label,), colour=colour
        )

    def _choose(self, rng: random.Random, must_hold_out: bool = False) -> _Choice:
        """A thing and its style; with `must_hold_out` one whose named style is held out."""
        for _ in range(_PATIENCE):
            entry = self._all.draw(rng)
            style, is_said = self._style(rng, entry)
            if not must_hold_out:
                return _Choice(entry=entry, style=style, is_said=is_said)
            if held := [style for style in entry.sprites if is_held_out("style", entry.label, style)]:
                return _Choice(entry=entry, style=rng.choice(held), is_said=True)
        raise LookupError("no style of any label is held out")

    def _style(self, rng: random.Random, entry: Entry) -> tuple[str, bool]:
        default = entry.default_style
        if self._stage == 1:
            return default, False
        shares = [
            STYLE_SHARES["glossy"] if style == default else STYLE_SHARES.get(style, 0.1) for style in entry.sprites
        ]
        style = rng.choices(list(entry.sprites), shares)[0]
        is_said = style != default or rng.random() < _SAID
        return (default, False) if is_said and is_held_out("style", entry.label, style) else (style, is_said)

    def _two(self, rng: random.Random) -> tuple[_Choice, _Choice]:
        """Two things of one style: the style said, or the default of both."""
        must = self._held_out
        while True:
            first = self._choose(rng)
            pool = (self._having if first.is_said else self._showing)[first.style]
            if self._stage == _COMMON and first.style in self._common:
                pool = self._common[first.style]
                first = _Choice(entry=pool.draw(rng), style=first.style, is_said=False)
            for _ in range(200):
                entry = pool.draw(rng)
                if entry.label == first.entry.label or (
                    first.is_said and is_held_out("style", entry.label, first.style)
                ):
                    continue
                if is_held_out("pair", first.entry.label, entry.label) == must:
                    return first, _Choice(entry=entry, style=first.style, is_said=first.is_said)

    def _backdrop(self, rng: random.Random, shown: Sequence[Entry], scenes: float, is_tile: bool = False) -> Backdrop:
        """What is behind `shown`; a tile or a stack stands on plain colours only."""
        if self._stage > 1 and not is_tile and rng.random() < scenes:
            return self._outdoors(rng, shown)
        if rng.random() < (0.4 if self._stage < 3 else 0.5):
            return plain("white")
        allowed = [name for name in COLOURS if name != "white" and not any(self._is_barred(e, name) for e in shown)]
        return plain(rng.choice(allowed) if allowed else "white")

    def _outdoors(self, rng: random.Random, shown: Sequence[Entry]) -> Backdrop:
        labels = {entry.label for entry in shown}
        ground = rng.choice([*GROUNDS, None])
        if labels & lists().boats and rng.random() < 0.6:
            ground = "on water"
        elif labels & lists().flyers and rng.random() < 0.6:
            ground = None
        return outdoors(rng, rng.choice([*SKIES, "on a sunny day"]), ground)

    def _is_barred(self, entry: Entry, colour: str) -> bool:
        return is_held_out("background", entry.label, colour)

    def _held_out_background(self, rng: random.Random) -> tuple[_Choice, Backdrop]:
        for _ in range(_PATIENCE):
            chosen = self._choose(rng)
            held = [name for name in COLOURS if name != "white" and self._is_barred(chosen.entry, name)]
            if held:
                return chosen, plain(rng.choice(held))
        raise LookupError("no background of any label is held out")

    def _sprite(self, rng: random.Random, chosen: _Choice) -> int:
        return rng.choice(chosen.entry.sprites[chosen.style])

    def _look(self, sprite: int) -> Look:
        return self._looks[sprite] if self._looks is not None else Look()

    def _is_foreign(self, rng: random.Random, chosen: _Choice) -> bool:
        return (
            not (self._held_out or chosen.is_said)
            and bool(chosen.entry.foreign)
            and rng.random() < _FOREIGN[self._stage]
        )

    def _foreign(self, rng: random.Random, entry: Entry) -> str:
        return captions.finish(rng, rng.choice(entry.foreign))

    def _term(self, rng: random.Random, entry: Entry) -> str:
        """Label, name or keyword, in the shares of all English captions."""
        chance = rng.random()
        if chance < 0.52:
            return entry.label
        return rng.choice(entry.keywords) if chance > 0.86 and entry.keywords else entry.name

    def _caption(self, rng: random.Random, chosen: _Choice, backdrop: Backdrop) -> str:
        """The caption of one thing."""
        entry, term = chosen.entry, self._term(rng, chosen.entry)
        if chosen.is_said and chosen.style in STYLE_ADJECTIVES and rng.random() < 0.15:
            body = captions.noun(rng, term, chosen.style)
            return self._dress(rng, body + captions.place(rng, backdrop), chosen, is_styled=True)
        praise = rng.choice(PRAISE) if self._stage > 1 and rng.random() < 0.06 else ""
        if self._stage >= _PAIRED and rng.random() < _STRAY:
            body = captions.astray(rng, captions.noun(rng, term, captions.epithet(rng)))
            return self._dress(rng, body + captions.place(rng, backdrop), chosen)
        body = captions.noun(rng, term, praise) + captions.deed(rng, entry.label, entry.group, backdrop)
        if self._stage > 2 and entry.group in {"animals", "smileys", "people"} and rng.random() < 0.04:
            body = f"{body} {rng.choice(IDLE_DEEDS)}"
        return self._dress(rng, body + captions.place(rng, backdrop), chosen)

    def _dress(self, rng: random.Random, body: str, chosen: _Choice, is_styled: bool = False) -> str:
        if self._stage == 1:
            return captions.finish(rng, body)
        is_free = rng.random() < (_FREER if self._stage >= _PAIRED else _FREE)
        if chosen.said and not is_styled:
            body = captions.in_style(rng, body, chosen.said)
        return captions.dress(rng, body, is_free=is_free)

    def _compose(
        self,
        rng: random.Random,
        layers: tuple[Layer, ...],
        backdrop: Backdrop,
        caption: str,
        chosen: _Choice,
        labels: tuple[str, ...],
        relation: str | None = None,
        colour: str | None = None,
    ) -> Scene:
        facts = Facts(
            labels=labels,
            style=chosen.style,
            background=backdrop.background,
            scene=backdrop.scene,
            count=len(layers),
            relation=relation,
            colour=colour,
            held_out=self._held_out,
        )
        return Scene(
            layers=layers,
            top=backdrop.top,
            bottom=backdrop.bottom,
            ground=backdrop.ground,
            horizon=backdrop.horizon,
            waves=backdrop.waves,
            hills=backdrop.hills,
            lane=backdrop.lane,
            stars=backdrop.stars,
            clouds=backdrop.clouds,
            sun=backdrop.sun,
            seed=rng.getrandbits(32),
            caption=caption,
            facts=facts,
        )
