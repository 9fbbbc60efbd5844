"""The published facts of every field, as data: what is accepted and what it comes to, what is refused and as what.

Values are JSON texts, because 512 and 512.0, or 2**64 - 1, are facts about texts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sample_pictures import PNG

PREFIXES = ("/v1", "/flux/v1")
SIZED = ("flux-dev", "flux-pro", "flux-pro-1.1", "flux-schnell")
GUIDED = ("flux-dev", "flux-pro", "flux-pro-1.1")
ULTRA = ("flux-pro-1.1-ultra",)
EVERY = (*SIZED, *ULTRA)
#: Credits a picture; schnell's is ours, because the hosted API names none.
PRICES = {"flux-dev": 2.5, "flux-pro": 5.0, "flux-pro-1.1": 4.0, "flux-schnell": 0.3, "flux-pro-1.1-ultra": 6.0}
HUGE = "1" + "0" * 30
MAX_SEED = 2**64 - 1


def text(length: int, letter: str = "x") -> str:
    """A JSON string of so many characters."""
    return json.dumps(letter * length)


def url(length: int) -> str:
    """A JSON string with an address of so many characters."""
    return json.dumps("https://example.com/".ljust(length, "x"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of some models. `accepted` maps texts to what they come to where `attribute` shows it, else to None.

    `attribute` is the field of the Generation that it ends in; `default` is its value when nothing is said.
    `warns`: using the field says in `details.warnings` that it changes nothing yet.
    """

    name: str
    models: tuple[str, ...]
    accepted: dict[str, object]
    refused: dict[str, str]
    attribute: str | None = None
    default: dict[str, object] = field(default_factory=dict)
    warns: bool = False


#: No whole number: each is refused as such.
NOT_WHOLE = dict.fromkeys(
    ("512.0", "1.5", "true", "false", '"512"', '""', "[]", "{}", "[512]", "1e2", "1e999"), "int_type"
)
NOT_A_NUMBER = dict.fromkeys(("true", "false", '"2"', '""', "[]", "{}"), "float_type") | {
    "1e999": "finite_number", "-1e999": "finite_number",
}  # fmt: skip
NOT_A_FLAG = dict.fromkeys(("0", "1", "1.0", '"true"', '""', "[]", "{}"), "bool_type")
NOT_TEXT = dict.fromkeys(("0", "1.5", "true", "[]", "{}", '["x"]'), "string_type")


def size(name: str, default: int) -> Field:
    """Width or height."""
    return Field(
        name=name,
        models=SIZED,
        attribute=name,
        default=dict.fromkeys(SIZED, default),
        accepted={"256": 256, "288": 288, "512": 512, "1408": 1408, "1440": 1440, "null": default},
        refused={
            "224": "greater_than_equal", "0": "greater_than_equal", "-32": "greater_than_equal",
            "1472": "less_than_equal", HUGE: "multiple_of|less_than_equal",
            "257": "multiple_of", "1439": "multiple_of", "500": "multiple_of",
            "255": "multiple_of|greater_than_equal", "1441": "multiple_of|less_than_equal",
            **NOT_WHOLE,
        },
    )  # fmt: skip


def steps(models: tuple[str, ...], defaults: dict[str, object], maximum: int) -> Field:
    """Steps, with another maximum for schnell."""
    return Field(
        name="steps",
        models=models,
        attribute="steps",
        default=defaults,
        accepted={"1": 1, str(maximum): maximum},
        refused={"0": "greater_than_equal", "-1": "greater_than_equal", str(maximum + 1): "less_than_equal",
                 HUGE: "less_than_equal", **NOT_WHOLE},
    )  # fmt: skip


FIELDS = (
    Field(
        name="prompt",
        models=EVERY,
        attribute="prompt",
        accepted={
            '""': "", '"a"': "a", text(10_000): "x" * 10_000, text(10_000, "\U0001f34e"): "\U0001f34e" * 10_000,
            '"\\u0000"': "\0", '"\\ud83c\\udf4e"': "\U0001f34e", '"a\\nb"': "a\nb",
        },
        refused={
            text(10_001): "string_too_long", text(10_001, "\U0001f34e"): "string_too_long", "null": "string_type",
            **NOT_TEXT,
        },
    ),
    size("width", 1024),
    size("height", 768),
    steps(GUIDED, {"flux-dev": 28, "flux-pro": 40, "flux-pro-1.1": 28}, 50),
    steps(("flux-schnell",), {"flux-schnell": 4}, 12),
    Field(
        name="guidance",
        models=GUIDED,
        attribute="guidance",
        default=dict.fromkeys(GUIDED, 3.5),
        accepted={"1.5": 1.5, "5": 5.0, "5.0": 5.0, "3": 3.0, "2.75": 2.75, "null": 3.5},
        refused={
            "1.49": "greater_than_equal", "0": "greater_than_equal", "-3.5": "greater_than_equal",
            "5.01": "less_than_equal", HUGE: "less_than_equal", **NOT_A_NUMBER,
        },
    ),
    Field(
        name="seed",
        models=EVERY,
        attribute="seed",
        accepted={"0": 0, "42": 42, str(2**53 + 1): 2**53 + 1, str(2**63): 2**63, str(MAX_SEED): MAX_SEED},
        refused={
            "-1": "greater_than_equal", str(-(2**63) - 1): "greater_than_equal", str(2**64): "less_than_equal",
            HUGE: "less_than_equal", "9" * 4000: "less_than_equal", **NOT_WHOLE,
        },
    ),
    Field(
        name="safety_tolerance",
        models=EVERY,
        accepted={"0": None, "2": None, "6": None},
        refused={"-1": "greater_than_equal", "7": "less_than_equal", **NOT_WHOLE},
        warns=True,
    ),
    Field(
        name="output_format",
        models=EVERY,
        attribute="output_format",
        default=dict.fromkeys(EVERY, "jpeg"),
        accepted={'"jpeg"': "jpeg", '"png"': "png", '"webp"': "webp", "null": "jpeg", '""': "jpeg"},
        refused=dict.fromkeys(('"gif"', '"jpg"', '"JPEG"', '" png"', "1", "true", "[]", '["png"]'), "literal_error"),
    ),
    Field(
        name="prompt_upsampling", models=EVERY, accepted={"true": None}, refused=NOT_A_FLAG, warns=True,
    ),
    Field(
        name="image_prompt",
        models=EVERY,
        accepted={json.dumps(PNG): None, json.dumps(f"data:image/png;base64,{PNG}"): None},
        refused={
            '"https://example.com/cat.png"': "picture_url", '"HTTP://example.com/"': "picture_url",
            '"aGVsbG8="': "picture", '"no base64"': "picture", '"data:image/png;base64,AA=="': "picture", **NOT_TEXT,
        },
        warns=True,
    ),
    Field(
        name="webhook_url",
        models=EVERY,
        accepted={'"https://example.com/hook?a=b"': None, '"http://10.0.0.1:8080/"': None, url(2083): None,
                  '"https://[::1]:8443/a?b#c"': None, '"https://user:word@example.com"': None,
                  '"https://bücher.example/é"': None},
        refused={
            url(2084): "string_too_long",
            **dict.fromkeys(
                ('"ftp://example.com/"', '"example.com"', '"https://"', '"https:///x"', '" https://example.com"',
                 '"https://example.com/a b"', '"https://example.com/\\n"', '"javascript:alert(1)"',
                 '"https://:x"', '"https://:443/x"', '"https://user@"', '"https://user@:443/x"', '"https://?x"',
                 '"https://[]/"', '"https://[::1/"', '"https://example.com:x/"', '"https://a:b:c/"',
                 '"https:\\\\example.com"', '"https://a\\\\b/"'),
                "string_pattern_mismatch",
            ),
            **NOT_TEXT,
        },
        warns=True,
    ),
    Field(
        name="webhook_secret",
        models=EVERY,
        accepted={'"hush"': None, text(1024): None},
        refused={text(1025): "string_too_long", **NOT_TEXT},
        warns=True,
    ),
    Field(
        name="user",
        models=EVERY,
        accepted={'"somebody"': None, text(256): None},
        refused={text(257): "string_too_long", **NOT_TEXT},
    ),
    Field(
        name="interval",
        models=("flux-pro",),
        accepted={"1": None, "2": None, "2.0": None, "3.5": None, "4": None},
        refused={"0.99": "greater_than_equal", "0": "greater_than_equal", "4.01": "less_than_equal", **NOT_A_NUMBER},
        warns=True,
    ),
    Field(
        name="raw", models=ULTRA, accepted={"true": None}, refused=NOT_A_FLAG, warns=True,
    ),
    Field(
        name="image_prompt_strength",
        models=ULTRA,
        accepted={"0": None, "0.1": None, "1": None, "1.0": None},
        refused={"-0.01": "greater_than_equal", "1.01": "less_than_equal", **NOT_A_NUMBER},
        warns=True,
    ),
    Field(
        name="aspect_ratio",
        models=ULTRA,
        attribute="size",
        default=dict.fromkeys(ULTRA, "2752x1536"),
        accepted={
            '"21:9"': "3136x1344", '"9:21"': "1344x3136", '"16:9"': "2752x1536", '"9:16"': "1536x2752",
            '"3:2"': "2496x1664", '"2:3"': "1664x2496", '"4:3"': "2368x1792", '"3:4"': "1792x2368",
            '"1:1"': "2048x2048", '"7:3"': "3136x1344", '"32:18"': "2752x1536", "null": "2752x1536", '""': "2752x1536",
        },
        refused={
            **dict.fromkeys(('"22:9"', '"9:22"', '"9999:1"', '"1:3"'), "aspect_ratio_range"),
            **dict.fromkeys(
                ('"0:1"', '"1:0"', '"16x9"', '"16:9 "', '"-16:9"', '"16:9:1"', '"1.5:1"', '"16:"', '":"', '"16:9\\n"',
                 '"10000:9999"', '"016:9"', '"\\u0661:1"'),
                "string_pattern_mismatch",
            ),
            **NOT_TEXT,
        },
    ),
)  # fmt: skip
#: Fields in which null, and in those of text "", mean the same as leaving them out.
EMPTY_IS_UNSET = frozenset({"image_prompt", "webhook_url", "webhook_secret", "user", "output_format", "aspect_ratio"})
