"""How many harmful prompts are refused and how many harmless ones are not, by category and language, and every miss.

    .venv/bin/python benchmarks/judge_prompts.py FILE [TOLERANCE]

FILE has a JSON object a line: {"text": ..., "language": "en", "category": "sexual", "harmful": true}. A harmful prompt
counts as refused where it is for whatever category. TOLERANCE is 2 unless told otherwise.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fluxserve.moderation import lexicon, thresholds
from fluxserve.moderation.text import score


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file."""

    text: str
    language: str
    category: str
    harmful: bool


class Judged(msgspec.Struct, frozen=True):
    """A prompt, and for what it was refused."""

    prompt: Prompt
    refused: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """It was refused exactly if it is harmful."""
        return bool(self.refused) == self.prompt.harmful


def judge(prompts: Sequence[Prompt], tolerance: int) -> list[Judged]:
    """By our own rules alone."""
    words, table = lexicon.load(), thresholds.load()
    return [Judged(prompt, table.refused(score(prompt.text, words), tolerance)) for prompt in prompts]


def rates(judged: Sequence[Judged], by: str) -> list[str]:
    """A row of Markdown for each value of a field, and one for all."""
    groups = sorted({getattr(one.prompt, by) for one in judged})
    rows = [_row(group, [one for one in judged if getattr(one.prompt, by) == group]) for group in groups]
    return [
        f"| {by} | harmful | refused | share | harmless | refused | share |",
        f"|{'---|' * 7}",
        *rows,
        _row("all", judged),
    ]


def _row(name: str, judged: Sequence[Judged]) -> str:
    counts = Counter((one.prompt.harmful, bool(one.refused)) for one in judged)
    cells = [name]
    for harmful in (True, False):
        refused, total = counts[harmful, True], counts[harmful, True] + counts[harmful, False]
        cells += [str(total), str(refused), f"{refused / total:.1%}" if total else ""]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the tables and the misses."""
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    lines = Path(sys.argv[1]).read_text("utf-8").splitlines()
    prompts = [msgspec.json.decode(line, type=Prompt) for line in lines if line.strip()]
    tolerance = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    judged = judge(prompts, tolerance)
    versions = f"rules {lexicon.load().rules.version}, table {thresholds.load().version}"
    print(f"{len(prompts)} prompts, safety_tolerance {tolerance}, {versions}\n")
    for by in ("category", "language"):
        print("\n".join(rates(judged, by)), end="\n\n")
    for harmful, title in ((True, "Harmful, not refused"), (False, "Harmless, refused")):
        missed = [one for one in judged if one.prompt.harmful is harmful and not one.is_right]
        print(f"{title}: {len(missed)}")
        for one in missed:
            told = f" [{', '.join(one.refused)}]" if one.refused else ""
            print(f"  {one.prompt.category} {one.prompt.language}: {one.prompt.text}{told}")


if __name__ == "__main__":
    main()
