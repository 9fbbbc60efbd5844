"""How people might ask for a scene: nouns with and without articles, places, styles, openers, filler sentences.

What it does not know: how the scene is chosen or painted. Every choice is the given generator's.
"""

from __future__ import annotations

import random

from training import words
from training.backdrops import Backdrop

_PLACES = (" on {a} background",) * 5 + (
    " on {the} background",
    " on {colour}",
    " against {a} background",
    " with {a} background",
    " in front of {a} background",
    ", {colour} background",
    " {colour} background",
)
_NUMBERS = {2: ("two", "2"), 3: ("three", "3"), 4: ("four", "4")}


def noun(rng: random.Random, thing: str, *adjectives: str) -> str:
    """`a purple frog`: mostly with its article, now and then with `the` or with none."""
    named = " ".join((*(adjective for adjective in adjectives if adjective), thing))
    full, chance = words.with_article(thing), rng.random()
    if chance < 0.15:
        return named
    if chance < 0.25 or full.startswith("the "):
        return named if named.startswith("the ") else f"the {named}"
    return named if full == thing else f"{words.article(named)} {named}"


def several(rng: random.Random, thing: str, count: int) -> str:
    """`two cats`, `2 cats`."""
    word, digit = _NUMBERS[count]
    return f"{digit if rng.random() < 0.25 else word} {words.plural(thing)}"


def related(rng: random.Random, first: str, second: str, relation: str, *, is_ordered: bool = False) -> str:
    """Two noun phrases, the left or upper one first, in the words of their relation.

    With `is_ordered` they are said in that order, too.
    """
    ways: tuple[str, ...]
    if relation == "left of":
        ways = ("{0} to the left of {1}", "{1} to the right of {0}", "{0} left of {1}", "{1} right of {0}")
    elif relation == "above":
        ways = ("{0} above {1}", "{1} below {0}", "{0} over {1}", "{1} beneath {0}")
    elif relation == "on top of":
        ways = ("{0} on top of {1}", "{1} under {0}", "{0} on top of {1}", "{0} standing on {1}")
    else:
        ways = ("{0} and {1}", "{0} next to {1}", "{0} and {1}", "{0} beside {1}", "{0} with {1}")
    if is_ordered:
        ways = tuple(way for way in ways if way.startswith("{0}"))
    return rng.choice(ways).format(first, second)


def epithet(rng: random.Random) -> str:
    """An adjective that changes nothing in the picture, or none."""
    return rng.choice(words.lists().epithets) if rng.random() < 0.6 else ""


def astray(rng: random.Random, thing: str) -> str:
    """The thing with words around it that the picture does not show: they should change nothing."""
    known = words.lists()
    stray = rng.choice(known.strays)
    return rng.choice(words.ASIDES).format(
        thing=thing,
        stray=f"{words.article(stray)} {stray}",
        epithet=rng.choice(known.epithets),
        deed=rng.choice(known.deeds),
    )


def deed(rng: random.Random, label: str, group: str, backdrop: Backdrop) -> str:
    """What the thing does where it is (` sitting`), or nothing; only in scenes."""
    if backdrop.scene is None or rng.random() < 0.6:
        return ""
    if label in words.lists().flyers or (backdrop.ground_name is None and group == "vehicles"):
        return " " + rng.choice(words.FLYER_VERBS)
    if backdrop.ground_name is None:
        return ""
    if backdrop.ground_name == "on water":
        return " " + rng.choice(words.SWIMMER_VERBS if group in {"animals", "people"} else words.BOAT_VERBS)
    verbs = words.VERBS.get(group)
    return " " + rng.choice(verbs) if verbs else ""


def place(rng: random.Random, backdrop: Backdrop) -> str:
    """Where it is, with its leading blank or comma; white is mostly left unsaid, as is the sky of a sunny day."""
    if backdrop.background is not None:
        return _plain_place(rng, backdrop.background)
    if backdrop.sky is None:
        return ""
    if backdrop.ground_name is None:
        bare = words.BARE_SKY_WORDS.get(backdrop.sky, ())
        return " " + (rng.choice(bare) if bare and rng.random() < 0.3 else _one_way(rng, words.SKY_WORDS[backdrop.sky]))
    ground = _one_way(rng, words.GROUND_WORDS[backdrop.ground_name])
    if backdrop.sky == "on a sunny day" and rng.random() < 0.5:
        return f" {ground}"
    return f" {ground} {_one_way(rng, words.SKY_WORDS[backdrop.sky])}"


def _plain_place(rng: random.Random, colour: str) -> str:
    if colour == "white" and rng.random() < 0.75:
        return ""
    named = _one_way(rng, words.BACKGROUND_WORDS[colour])
    return rng.choice(_PLACES).format(a=f"{words.article(named)} {named}", the=f"the {named}", colour=named)


def _one_way(rng: random.Random, ways: tuple[str, ...]) -> str:
    """The canonical way more often than not."""
    return ways[0] if rng.random() < 0.55 else rng.choice(ways)


def in_style(rng: random.Random, body: str, style: str) -> str:
    """`body` with its style in words: `a 3d picture of ...` or `..., 3d style`."""
    if rng.random() < 0.55:
        return body + rng.choice(words.STYLE_SUFFIXES).format(style)
    prefix = rng.choice((*words.STYLE_PREFIXES, *words.MORE_STYLE_PREFIXES.get(style, ()))).format(style)
    if prefix.startswith("a "):
        prefix = f"{words.article(style)} {prefix[2:]}"
    return f"{prefix} {body}"


def dress(rng: random.Random, body: str, *, is_free: bool) -> str:
    """The caption around `body`: an opener, a closer, a filler sentence, a capital, a full stop, each now and then."""
    if is_free:
        body = rng.choice(words.FILLERS).format(body)
    elif rng.random() < 0.1 and " of " not in body:
        body = f"{rng.choice(words.OPENERS)} {body}"
    if rng.random() < 0.06:
        body = f"{body}, {rng.choice(words.CLOSERS)}"
    return finish(rng, body)


def finish(rng: random.Random, body: str) -> str:
    """A capital at the start and a full stop at the end, each at times."""
    if rng.random() < 0.25:
        body = body[:1].upper() + body[1:]
    return body + "." if rng.random() < 0.2 else body
