"""The words mini understands: names of colours, scenes and styles, articles and plurals, which things matter most.

What it does not know: which things have pictures (vocabulary.py), how a caption is put together (captions.py),
how anything is painted.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

import msgspec

# Canonical name -> the ways to say it, the canonical one first.
BACKGROUND_WORDS: dict[str, tuple[str, ...]] = {
    "white": ("white", "plain white"),
    "black": ("black",),
    "gray": ("gray", "grey"),
    "red": ("red", "bright red"),
    "orange": ("orange",),
    "yellow": ("yellow", "bright yellow"),
    "green": ("green",),
    "light green": ("light green", "pale green"),
    "teal": ("teal", "turquoise"),
    "blue": ("blue", "bright blue"),
    "light blue": ("light blue", "sky blue", "pale blue"),
    "navy": ("navy", "navy blue", "dark blue"),
    "purple": ("purple", "violet"),
    "lavender": ("lavender", "light purple"),
    "pink": ("pink", "light pink"),
    "brown": ("brown",),
    "beige": ("beige", "cream"),
}
SKY_WORDS: dict[str, tuple[str, ...]] = {
    "at sunrise": ("at sunrise", "at dawn", "in the early morning", "in the morning light"),
    "at sunset": ("at sunset", "at dusk", "in the evening", "in the evening light"),
    "at night": ("at night", "under the stars", "in the moonlight", "at midnight", "on a starry night"),
    "on a sunny day": ("on a sunny day", "under a blue sky", "in the sunshine", "in summer", "on a bright day"),
    "on a cloudy day": ("on a cloudy day", "under a cloudy sky", "under gray clouds", "on an overcast day"),
}
# Ways to name a sky above no ground at all.
BARE_SKY_WORDS: dict[str, tuple[str, ...]] = {
    "at night": ("in space", "in the night sky", "among the stars"),
    "on a sunny day": ("in the sky", "in the blue sky"),
    "on a cloudy day": ("in the clouds", "in a cloudy sky"),
}
GROUND_WORDS: dict[str, tuple[str, ...]] = {
    "on grass": ("on grass", "on the grass", "in a field", "on the lawn", "in the meadow", "in a park", "in a garden"),
    "on the sand": ("on the sand", "on sand", "on the beach", "on a beach", "in the desert"),
    "in the snow": ("in the snow", "on snow", "in winter", "on ice"),
    "on water": ("on water", "on the water", "on the sea", "in the ocean", "on a lake", "on calm water"),
    "on a road": ("on a road", "on the road", "on the street", "on a highway"),
}

STYLE_ORDER = ("glossy", "3d", "flat", "outlined")
# What a caption that names no style shows is the first of these that the thing has.
STYLE_SHARES = {"glossy": 0.55, "3d": 0.20, "flat": 0.15, "outlined": 0.10}
STYLE_SUFFIXES = (", {} style", " in {} style", ", {}")
STYLE_PREFIXES = ("a {} picture of", "a {} illustration of", "{} illustration of", "a {} icon of")
MORE_STYLE_PREFIXES: dict[str, tuple[str, ...]] = {
    "3d": ("3d render of", "a 3d render of", "a 3d model of"),
    "flat": ("flat design of", "a flat vector picture of", "flat illustration of"),
    "outlined": ("outlined drawing of", "an outlined drawing of", "line drawing of"),
    "glossy": ("a glossy drawing of",),
}
# Styles that read well before the thing itself: "a 3d cat".
STYLE_ADJECTIVES = frozenset({"3d", "glossy", "outlined"})

OPENERS = (
    "a picture of",
    "an illustration of",
    "a drawing of",
    "an image of",
    "picture of",
    "an emoji of",
    "a painting of",
)
PRAISE = ("cute", "beautiful", "nice", "lovely", "pretty", "little")
CLOSERS = (
    "high quality",
    "detailed",
    "4k",
    "highly detailed",
    "best quality",
    "beautiful",
    "sharp focus",
    "masterpiece",
)
FILLERS = (
    "please draw {}",
    "draw {}",
    "i would like to see {}",
    "can you make a picture of {}",
    "show me {}",
    "imagine {}",
    "create an image of {} for me",
    "{} for a birthday card",
    "a children's book illustration of {}",
    "{} with soft light and fine details",
    "a simple picture that shows {}",
    "there is {}",
    "the picture shows {} and nothing else",
    "{}, very detailed, beautiful colors, trending",
    "a poster with {}",
    "{} looking very good",
    "my favourite thing is {}",
    "a sticker of {}",
)
# What somebody may do that mini cannot draw: the thing itself is drawn all the same.
IDLE_DEEDS = (
    "holding a sign",
    "holding a sign that says hello world",
    "looking at the camera",
    "smiling at you",
    "waiting for a friend",
    "having a good day",
    "with a happy mood",
    "saying hello",
)
# A thing and what mini cannot draw: `stray` is a noun with its article, `deed` a participle, `epithet` an adjective.
ASIDES = (
    "{thing} {deed} with {stray}",
    "{thing} {deed}",
    "{thing} {deed} near {stray}",
    "{thing} with {stray}",
    "{thing} in the style of {stray}",
    "{thing}, {epithet}, {epithet}",
    "{epithet} {stray} style, {thing}",
    "{thing} that is {deed}",
    "{thing}, {stray} in the distance",
    "{stray} full of memories, and {thing}",
    "{thing} thinking about {stray}",
    "once upon a time there was {thing}",
    "{thing}, the {epithet} mood of {stray}",
)
VERBS: dict[str, tuple[str, ...]] = {
    "animals": ("sitting", "standing", "walking", "running", "playing", "resting"),
    "people": ("standing", "walking", "waiting"),
    "vehicles": ("driving", "parked", "standing"),
    "plants": ("growing", "standing"),
    "places": ("standing",),
    "food": ("lying", "placed"),
    "objects": ("lying", "placed", "standing"),
    "activities": ("lying", "placed"),
}
BOAT_VERBS = ("floating", "sailing", "drifting")
SWIMMER_VERBS = ("swimming", "floating")
FLYER_VERBS = ("flying",)
GROUP_WEIGHTS = {
    "animals": 2.0,
    "food": 1.8,
    "plants": 1.6,
    "vehicles": 1.5,
    "places": 1.2,
    "objects": 1.2,
    "activities": 1.0,
    "smileys": 1.0,
    "people": 0.35,
    "symbols": 0.25,
    "flags": 0.06,
}
_PREPOSITIONS = frozenset(
    {"of", "with", "in", "on", "at", "and", "behind", "from", "without", "to", "over", "for", "under"}
)
_PLURALS = frozenset({"people", "mice", "teeth", "dice", "skis"})
_CLUMSY = frozenset({"flag", "no", "not", "man", "woman", "person"})
_NOUNS_IN_ING = frozenset(
    {"ring", "wing", "king", "building", "wedding", "dumpling", "seedling", "duckling", "pudding"}
)
_SOUNDS_LIKE_CONSONANT = ("uni", "use", "euro", "one", "ufo", "uk", "ukulele", "u-", "ewe")
_SOUNDS_LIKE_VOWEL = ("hour", "x-ray", "suv", "8", "11", "18", "mp3", "sos")


class Lists(msgspec.Struct, frozen=True, kw_only=True):
    """`words.toml`."""

    common: frozenset[str]
    boats: frozenset[str]
    flyers: frozenset[str]
    mass: frozenset[str]
    unique: frozenset[str]
    unsaid: frozenset[str]
    epithets: tuple[str, ...]
    strays: tuple[str, ...]
    deeds: tuple[str, ...]
    plurals: dict[str, str]
    aliases: dict[str, tuple[str, ...]]


@cache
def lists() -> Lists:
    """The lists that are too long for code."""
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), Lists)


def is_plural(words: str) -> bool:
    """Whether `words` name several already ("grapes"): they take no "a" and no number."""
    head = words.split()[_head(words)]
    return head in _PLURALS or (head.endswith("s") and not head.endswith(("ss", "us", "is", "os")))


def is_countable(words: str) -> bool:
    """Whether "two ..." can be said of it without clumsiness."""
    parts = words.split()
    if len(parts) > 3 or parts[0] in _CLUMSY or _is_participle(parts[-1]):
        return False
    return not (words in lists().mass or words in lists().unique or is_plural(words))


def article(words: str) -> str:
    """`a` or `an`, by how the first word sounds."""
    if words.startswith(_SOUNDS_LIKE_VOWEL):
        return "an"
    if words.startswith(_SOUNDS_LIKE_CONSONANT):
        return "a"
    return "an" if words[:1] in "aeiou" else "a"


def with_article(words: str) -> str:
    """`a red apple`, `an owl`, `grapes`, `the sun`."""
    if words in lists().unique or words.startswith("flag of "):
        return f"the {words}"
    if words in lists().mass or is_plural(words) or _is_participle(words) or words.startswith(("a ", "an ", "the ")):
        return words
    return f"{article(words)} {words}"


def plural(words: str) -> str:
    """The plural of the head of `words`: `ears of corn`, `computer mice`, `red apples`."""
    parts = words.split()
    at = _head(words)
    parts[at] = _plural_of_word(parts[at])
    return " ".join(parts)


def _head(words: str) -> int:
    """Where the word stands that the rest describes: before a preposition, else last."""
    parts = words.split()
    return next((at - 1 for at, part in enumerate(parts) if at and part in _PREPOSITIONS), len(parts) - 1)


def _is_participle(word: str) -> bool:
    """Whether it is one word like "running" or "crying", which names no thing."""
    return " " not in word and word.endswith("ing") and word not in _NOUNS_IN_ING


def _plural_of_word(word: str) -> str:
    if word in lists().plurals:
        return lists().plurals[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"
