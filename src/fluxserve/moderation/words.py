"""A text as words that can be looked up: one spelling for all disguises, in time linear in the text.

Compatibility forms, ornaments, case, accents and invisible characters go; letters of other scripts that look alike,
digits and signs that stand for letters, stretched, doubled and spaced-out letters are read as what they stand for,
*beside* what is written, so that no disguise hides a word and no honest word is lost. Scripts without spaces have a
word for each character.
What it does not know: which words matter.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

#: Marks of kana make other letters of them; all other marks are accents.
_KANA_MARKS = "\u3099\u309a"
#: Letters that look like Latin ones, in pairs.
_ALIKE = str.maketrans(
    dict(
        (
            *zip("авекмнорстухіїјѕԁһԛԝгпь", "abekmhopctyxiijsdhqwrnb", strict=True),
            *zip("αβγδεζηικνορστυχω", "abydezniknopstuxw", strict=True),
            *zip("ɑɡɩʟʀɴɪʙʜᴀᴄᴅᴇᴊᴋᴍᴏᴘᴛᴜᴠᴡᴢſøłđ", "agilrnibhacdejkmoptuvwzsold", strict=True),
            *zip("ꓐꓑꓓꓔꓖꓗꓙꓚꓜꓝꓠꓡꓢꓣꓦꓧꓪꓫꓬꓮꓰꓲꓳꓴꓟ", "bpdtgkjczfnlsrvhwxyaeioum", strict=True),
            *zip("ᎪᎫᎬᎳᎻᏀᏃᏞᏟᏢᏦᏒᏔᏕᎢᎥᎷᏙᏚᏴᎠᎡᎽ", "ajewhgzlcpkrwstimvsbdry", strict=True),
            *zip("օսհոցզյտլ", "ouhngqjsl", strict=True),
        )
    )
)
#: The other way round: letters and digits inside a Cyrillic word.
_CYRILLIC = str.maketrans("abcehkmoptxyun03461", "авсенкмортхуипозчби")
_OTHER_SCRIPTS = re.compile("[\u0251-\u02af\u0370-\u058f\u13a0-\u13ff\u1d00-\u1d22\ua4d0-\ua4f7\u017f\xf8\u0142\u0111]")
_IS_CYRILLIC = re.compile("[\u0400-\u052f]")
#: Letters in black circles and squares, and those of flags, which have no compatibility form.
_ORNAMENTS = {first + letter: chr(ord("a") + letter) for first in (0x1F150, 0x1F170, 0x1F1E6) for letter in range(26)}
#: A Korean syllable without an end, and a consonant that ends it: no vowel follows.
_OPEN_SYLLABLE = re.compile("([\uac00-\ud7a3])([\u1100-\u1112])(?![\u1161-\u1175])")
_CONSONANTS = dict(
    zip(map(chr, range(0x1100, 0x1113)), (1, 2, 4, 7, 0, 8, 16, 17, 0, 19, 20, 21, 22, 0, *range(23, 28)), strict=True)
)
_FINALS = 28
#: What stands for a letter inside a word. A 1 is an i or an l.
_SIGNS = {"@": "a", "$": "s", "€": "e", "!": "i", "|": "i", "£": "l"}
_LEET = str.maketrans("0134578926", "oieastbgzg")
_LEET_L = str.maketrans("0134578926", "oleastbgzg")
_SIGN_IN_WORD = re.compile(r"[@$€£](?=[^\W_])|(?<=[^\W_])[!|](?=[^\W_])")
#: Han and kana: a word each. Thai, which has no spaces either, is not read.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_FIRST_UNSPACED, _LAST_UNSPACED = "\u3040", "\ua000"
_PART = re.compile(f"[{_UNSPACED}]+|[^\\W_{_UNSPACED}]+")
_SYLLABLE = re.compile("[\uac00-\ud7a3]")
_STRETCHED = re.compile(r"(.)\1{2,}")
_DOUBLED = re.compile(r"(.)\1+")
#: A sign for a vowel that everybody can guess.
_MASKED = re.compile(r"([^\W_]+)[*#]([^\W_]+)")
_VOWELS, _CYRILLIC_VOWELS = "aeiou", "аеиоуыюя"
#: So many letters that stand alone, one after the other, are read as one word too.
_LEAST_RUN = 3
#: Of longer words the beginning is read.
_LONGEST = 40


#: Patterns of single characters are fast as long as none lies beyond this one; the first of two holds no other.
_BASIC = "\uffff"
Characters = tuple[re.Pattern[str], re.Pattern[str]]


@dataclass(frozen=True, slots=True)
class Words:
    """`written`: the words in order; `spaced`: the numbers of those that are more than a character of a script without
    spaces. `beside`: other ways to read what stands at a place, by its number: words of one chunk as one, and with
    each vowel for a sign between them. `runs`: letters that stood alone, together, by the number of the last one.
    """

    written: list[str]
    spaced: list[int]
    beside: dict[int, list[str]]
    runs: dict[int, str]
    is_korean: bool


def words_of(text: str) -> Words:
    """The words of a text, in order."""
    written: list[str] = []
    spaced: list[int] = []
    beside: dict[int, list[str]] = {}
    folded = fold(text)
    for chunk in _SIGN_IN_WORD.sub(lambda found: _SIGNS[found[0]], folded).split():
        if chunk.isascii() and chunk.isalnum():
            spaced.append(len(written))
            written.append(chunk)
            continue
        parts = _PART.findall(chunk)
        length = sum(map(len, parts))
        if 1 < len(parts) < length <= _LONGEST:
            beside[len(written)] = ["".join(parts), *_unmasked(chunk)]
        for part in parts:
            if _FIRST_UNSPACED <= part <= _LAST_UNSPACED:
                written += part  # each character
            else:
                spaced.append(len(written))
                written.append(part)
    return Words(written, spaced, beside, _runs(written, spaced), bool(_SYLLABLE.search(folded)))


def fold(text: str) -> str:
    """One spelling: compatibility forms, case, accents and what nobody sees are gone."""
    if text.isascii():
        return text.lower()
    seen = _without(_unseen(), text)
    if not _is_basic(seen):
        seen = seen.translate(_ORNAMENTS)
    folded = unicodedata.normalize("NFKC", seen).casefold()
    if _is_basic(folded) and not _may_have_accents().search(folded):
        return _composed(folded)
    apart = unicodedata.normalize("NFD", folded)
    return _composed(_without(_accents(), apart))


def _composed(text: str) -> str:
    """With Korean letters that stand alone as the syllables that they spell."""
    return _OPEN_SYLLABLE.sub(_closed, unicodedata.normalize("NFC", text))


def _closed(found: re.Match[str]) -> str:
    syllable, consonant = found.groups()
    final = _CONSONANTS[consonant]
    is_open = (ord(syllable) - 0xAC00) % _FINALS == 0
    return chr(ord(syllable) + final) if final and is_open else found[0]


def _unmasked(chunk: str) -> list[str]:
    """A word with each vowel in the place of the one sign that stands for it."""
    found = _MASKED.fullmatch(chunk.strip(".,;:!?\"'()"))
    if not found:
        return []
    vowels = _CYRILLIC_VOWELS if _IS_CYRILLIC.search(chunk) else _VOWELS
    return [f"{found[1]}{vowel}{found[2]}" for vowel in vowels]


def is_plain(word: str) -> bool:
    """Nothing of it stands for anything else."""
    return word.isascii() and word.isalpha() and not _STRETCHED.search(word)


def squeezed(word: str) -> str:
    """A word without doubled letters."""
    return _DOUBLED.sub(r"\1", word[:_LONGEST])


def readings(word: str) -> tuple[str, ...]:
    """A word as it is written, and in the ways that it may be meant."""
    if is_plain(word):  # nearly all of them
        return (word[:_LONGEST],)
    found = {word[:_LONGEST]: None}
    if _OTHER_SCRIPTS.search(word):
        if _IS_CYRILLIC.search(word):
            found[word[:_LONGEST].translate(_CYRILLIC)] = None
        found |= {one.translate(_ALIKE): None for one in list(found)}
    if not word.isalpha() and not word.isdigit():
        found |= {one.translate(table): None for one in list(found) for table in (_LEET, _LEET_L)}
    if any(_STRETCHED.search(one) for one in found):
        found |= {_STRETCHED.sub(kept, one): None for one in list(found) for kept in (r"\1", r"\1\1")}
    return tuple(found)


def _runs(written: Sequence[str], spaced: Sequence[int]) -> dict[int, str]:
    alone = [number for number in spaced if len(written[number]) == 1]
    found: dict[int, str] = {}
    begin = 0
    for end in range(1, len(alone) + 1):
        if end == len(alone) or alone[end] != alone[end - 1] + 1:
            if end - begin >= _LEAST_RUN:
                letters = "".join(written[alone[begin] : alone[end - 1] + 1])
                found[alone[end - 1]] = letters.translate(_ALIKE).translate(_LEET)
            begin = end
    return found


def _without(characters: Characters, text: str) -> str:
    basic, further = characters
    return (basic if _is_basic(text) else further).sub("", text)


def _is_basic(text: str) -> bool:
    """Whether no character lies beyond _BASIC: those would take four bytes."""
    return len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)


@cache
def _unseen() -> Characters:
    """Format characters, and the fillers that are drawn as nothing."""
    fillers = {"\u115f", "\u1160", "\u3164", "\uffa0", "\u2800"}
    return _class_of(c for c in map(chr, range(sys.maxunicode + 1)) if c in fillers or unicodedata.category(c) == "Cf")


@cache
def _accents() -> Characters:
    every = map(chr, range(sys.maxunicode + 1))
    return _class_of(c for c in every if unicodedata.category(c) == "Mn" and c not in _KANA_MARKS)


@cache
def _may_have_accents() -> re.Pattern[str]:
    """Characters up to _BASIC that come apart into one and an accent, and accents."""
    every = map(chr, range(ord(_BASIC) + 1))
    return _pattern(c for c in every if _accents()[1].search(unicodedata.normalize("NFD", c)))


def _class_of(characters: Iterable[str]) -> Characters:
    every = [*characters]
    return _pattern(c for c in every if c <= _BASIC), _pattern(every)


def _pattern(characters: Iterable[str]) -> re.Pattern[str]:
    return re.compile(f"[{''.join(map(re.escape, characters))}]+")
