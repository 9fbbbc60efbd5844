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
#: The models of the first published documents: every fact is tried on each of them.
FIRST = (*SIZED, *ULTRA)
KREA = ("flux-krea-dev",)
KONTEXT = ("flux-kontext-pro", "flux-kontext-max", "flux-kontext-dev")
REPAINT = ("flux-pro-1.0-fill", "flux-pro-1.0-expand")
CONTROL = ("flux-pro-1.0-canny", "flux-pro-1.0-depth")
TOOLS = (*REPAINT, *CONTROL)
PRO2 = ("flux-2-pro", "flux-2-max", "flux-2-pro-preview")
KLEIN = ("flux-2-klein-4b", "flux-2-klein-9b", "flux-2-klein-9b-preview")
FLUX2 = (*PRO2, "flux-2-flex", "flux-2-dev", *KLEIN)
#: Those that need no picture.
PROMPTED = (*FIRST, *KREA, *KONTEXT, *FLUX2)
EVERY = (*PROMPTED, *TOOLS)
#: What a body cannot do without beside what it is about, as a JSON text; a picture that is looked at later.
NEEDED = dict.fromkeys(PROMPTED, '"prompt": "an owl"') | {
    "flux-pro-1.0-fill": '"image": "AAAA"', "flux-pro-1.0-expand": '"image": "AAAA"',
    **dict.fromkeys(CONTROL, '"control_image": "AAAA"'),
}  # fmt: skip
#: Credits a picture, and those a further megapixel.
PRICES = {
    "flux-dev": (2.5, 0.0), "flux-pro": (5.0, 0.0), "flux-pro-1.1": (4.0, 0.0), "flux-pro-1.1-ultra": (6.0, 0.0),
    "flux-kontext-pro": (4.0, 0.0), "flux-kontext-max": (8.0, 0.0), **dict.fromkeys(REPAINT, (5.0, 0.0)),
    "flux-2-max": (7.0, 3.0), "flux-2-pro": (3.0, 1.5), "flux-2-pro-preview": (3.0, 1.5), "flux-2-flex": (5.0, 5.0),
    "flux-2-klein-4b": (1.4, 0.1), "flux-2-klein-9b": (1.5, 0.2), "flux-2-klein-9b-preview": (1.5, 0.2),
}  # fmt: skip
#: The same where they are ours, because the hosted API names none.
OUR_PRICES = {
    "flux-schnell": (0.3, 0.0), "flux-krea-dev": (2.5, 0.0), "flux-kontext-dev": (2.5, 0.0), "flux-2-dev": (1.2, 0.6),
    **dict.fromkeys(CONTROL, (5.0, 0.0)),
}  # fmt: skip
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
    `warns`: using the field alone says in `details.warnings` that it changes nothing. `tried` are those of the models
    that every value is sent to; the others say the same of the field in their schemas.
    """

    name: str
    models: tuple[str, ...]
    accepted: dict[str, object]
    refused: dict[str, str]
    attribute: str | None = None
    default: dict[str, object] = field(default_factory=dict)
    warns: bool = False
    tried: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Among the first models every one is tried, of the others one."""
        first = tuple(model for model in self.models if model in FIRST)
        object.__setattr__(self, "tried", self.tried or first or self.models[:1])


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
        models=(*SIZED, *KREA),
        attribute=name,
        default=dict.fromkeys((*SIZED, *KREA), default),
        accepted={"256": 256, "288": 288, "512": 512, "1408": 1408, "1440": 1440, "null": default},
        refused={
            "224": "greater_than_equal", "0": "greater_than_equal", "-32": "greater_than_equal",
            "1472": "less_than_equal", HUGE: "multiple_of|less_than_equal",
            "257": "multiple_of", "1439": "multiple_of", "500": "multiple_of",
            "255": "multiple_of|greater_than_equal", "1441": "multiple_of|less_than_equal",
            **NOT_WHOLE,
        },
    )  # fmt: skip


def side2(name: str) -> Field:
    """Width or height of FLUX.2: 0 and null mean that nothing was said."""
    return Field(
        name=name,
        models=FLUX2,
        attribute=name,
        default=dict.fromkeys(FLUX2, 1024),
        accepted={"0": 1024, "null": 1024, "64": 64, "80": 80, "1440": 1440, "4096": 4096},
        refused={
            "48": "greater_than_equal", "16": "greater_than_equal", "-16": "greater_than_equal",
            "8208": "less_than_equal", "65": "multiple_of", "1000": "multiple_of", "8192": "size_too_large",
            "4112": "size_too_large", HUGE: "multiple_of|less_than_equal", "0.0": "int_type", **NOT_WHOLE,
        },
    )  # fmt: skip


def guidance(models: tuple[str, ...], default: float, minimum: float, maximum: float) -> Field:
    """Guidance, in the range of these models."""
    accepted = {str(minimum): float(minimum), str(maximum): float(maximum), f"{maximum}.0": float(maximum)}
    return Field(
        name="guidance",
        models=models,
        attribute="guidance",
        default=dict.fromkeys(models, default),
        accepted={**accepted, "3": 3.0, "2.75": 2.75, "null": default},
        refused={
            str(minimum - 0.01): "greater_than_equal", "0": "greater_than_equal", "-3.5": "greater_than_equal",
            f"{maximum}.01": "less_than_equal", HUGE: "less_than_equal", **NOT_A_NUMBER,
        },
    )  # fmt: skip


#: URLs that no picture is fetched from.
NEVER_FETCHED = dict.fromkeys(
    ('"https://user:word@example.com/a.png"', '"http://127.0.0.1/a.png"', '"https://[::1]/a.png"', '"HTTP://2130706433/"',
     '"https://example.com:8443/a.png"', '"https://example.com:x/"', '"https://"', '"https://169.254.169.254/"',
     '"https://bücher.example/"', '"http://localhost:8808/a.png"'),
    "picture_url",
)  # fmt: skip


def pictures(models: tuple[str, ...], *names: str) -> tuple[Field, ...]:
    """Fields of pictures, as texts: what they hold is looked at later."""
    refused = {**NEVER_FETCHED, **NOT_TEXT}
    return tuple(Field(name=name, models=models, accepted={}, refused=refused) for name in names)


def whole(name: str, models: tuple[str, ...], maximum: int) -> Field:
    """A whole number from 0 on that becomes a part of the recipe."""
    refused = {"-1": "greater_than_equal", str(maximum + 1): "less_than_equal", **NOT_WHOLE}
    return Field(name=name, models=models, accepted={}, refused=refused)


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
        models=PROMPTED,
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
    steps(
        (*KREA, "flux-kontext-dev", "flux-2-flex", "flux-2-dev"),
        {"flux-krea-dev": 28, "flux-kontext-dev": 28, "flux-2-flex": 50, "flux-2-dev": 28}, 50,
    ),
    Field(
        name="steps",
        models=TOOLS,
        accepted={},
        refused={"14": "greater_than_equal", "51": "less_than_equal", **NOT_WHOLE},
    ),
    Field(name="prompt", models=TOOLS, accepted={}, refused={text(10_001): "string_too_long", **NOT_TEXT}),
    guidance(GUIDED, 3.5, 1.5, 5),
    guidance(KREA, 4.5, 1.5, 5),
    guidance(("flux-kontext-dev",), 2.5, 1, 5),
    guidance(("flux-2-flex",), 5.0, 1.5, 10),
    guidance(("flux-2-dev",), 4.0, 1.5, 10),
    Field(
        name="guidance",
        models=REPAINT,
        accepted={},
        refused={"1.49": "greater_than_equal", "100.01": "less_than_equal", **NOT_A_NUMBER},
    ),
    Field(
        name="guidance",
        models=CONTROL,
        accepted={},
        refused={"0.99": "greater_than_equal", "100.01": "less_than_equal", **NOT_A_NUMBER},
    ),
    side2("width"),
    side2("height"),
    *pictures((*KONTEXT, *FLUX2), "input_image", "input_image_2", "input_image_3", "input_image_4"),
    *pictures(
        (*PRO2, "flux-2-flex", "flux-2-dev"), "input_image_5", "input_image_6", "input_image_7", "input_image_8"
    ),
    *pictures(CONTROL, "control_image", "preprocessed_image"),
    *pictures(REPAINT, "image"),
    *pictures(("flux-pro-1.0-fill",), "mask"),
    *pictures(("flux-dev",), "image"),
    *(whole(name, ("flux-pro-1.0-expand",), 2048) for name in ("top", "bottom", "left", "right")),
    *(whole(f"canny_{end}_threshold", ("flux-pro-1.0-canny",), 500) for end in ("low", "high")),
    Field(
        name="strength",
        models=("flux-dev",),
        accepted={"0": None, "0.5": None, "1": None},
        refused={"-0.01": "greater_than_equal", "1.01": "less_than_equal", **NOT_A_NUMBER},
        warns=True,
    ),
    Field(name="disable_pup", models=PRO2, accepted={"true": None, "false": None}, refused=NOT_A_FLAG),
    Field(
        name="aspect_ratio",
        models=KONTEXT,
        attribute="size",
        default=dict.fromkeys(KONTEXT, "1024x1024"),
        accepted={
            '"21:9"': "1568x672", '"9:21"': "672x1568", '"16:9"': "1392x752", '"3:2"': "1248x832", '"4:3"': "1184x880",
            '"1:1"': "1024x1024", '"3:4"': "880x1184", "null": "1024x1024", '""': "1024x1024",
        },
        refused={'"22:9"': "aspect_ratio_range", '"16x9"': "string_pattern_mismatch", **NOT_TEXT},
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
        models=tuple(model for model in EVERY if model not in FLUX2),
        attribute="safety_tolerance",
        default=dict.fromkeys(EVERY, 2),
        accepted={"0": 0, "2": 2, "6": 6},
        refused={"-1": "greater_than_equal", "7": "less_than_equal", **NOT_WHOLE},
    ),
    Field(
        name="safety_tolerance",
        models=FLUX2,
        attribute="safety_tolerance",
        default=dict.fromkeys(FLUX2, 2),
        accepted={"0": 0, "5": 5},
        refused={"-1": "greater_than_equal", "6": "less_than_equal"},
    ),
    Field(
        name="output_format",
        models=KONTEXT,
        attribute="output_format",
        default=dict.fromkeys(KONTEXT, "png"),
        accepted={'"jpeg"': "jpeg", '"png"': "png", '"webp"': "webp", "null": "png", '""': "png"},
        refused={'"gif"': "literal_error"},
    ),
    Field(
        name="output_format",
        models=tuple(model for model in EVERY if model not in KONTEXT),
        attribute="output_format",
        default=dict.fromkeys([model for model in EVERY if model not in KONTEXT], "jpeg"),
        accepted={'"jpeg"': "jpeg", '"png"': "png", '"webp"': "webp", "null": "jpeg", '""': "jpeg"},
        refused=dict.fromkeys(('"gif"', '"jpg"', '"JPEG"', '" png"', "1", "true", "[]", '["png"]'), "literal_error"),
    ),
    Field(
        name="prompt_upsampling", models=(*FIRST, *KREA, *KONTEXT, *TOOLS), accepted={"true": None},
        refused=NOT_A_FLAG,
    ),
    Field(
        name="prompt_upsampling", models=("flux-2-flex",), accepted={"true": None}, refused=NOT_A_FLAG,
    ),
    Field(
        name="image_prompt",
        models=(*FIRST, *KREA),
        accepted={
            json.dumps(PNG): None, json.dumps(f"data:image/png;base64,{PNG}"): None,
            '"https://example.com/cat.png?a=b#c"': None, '"HTTP://EXAMPLE.com"': None,
        },
        refused={
            **NEVER_FETCHED,
            '"aGVsbG8="': "picture", '"no base64"': "picture", '"data:image/png;base64,AA=="': "picture", **NOT_TEXT,
        },
    ),
    Field(
        name="webhook_url",
        models=EVERY,
        accepted={'"https://example.com/hook?a=b"': None, url(2083): None, '"https://EXAMPLE.com:443/a?b#c"': None,
                  '"https://[2606:4700::1111]/"': None, '"https://xn--bcher-kva.example/%C3%A9"': None},
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
            # Good URLs that a webhook is not sent to.
            **dict.fromkeys(
                ('"http://example.com/"', '"http://10.0.0.1:8080/"', '"https://10.0.0.1/"', '"https://[::1]:8443/a?b#c"',
                 '"https://user:word@example.com"', '"https://bücher.example/é"', '"https://example.com:8443/"',
                 '"https://127.1/"'),
                "webhook_url",
            ),
            **NOT_TEXT,
        },
    ),
    Field(
        name="webhook_secret",
        models=EVERY,
        accepted={'"hush"': None, text(1024): None},
        refused={text(1025): "string_too_long", **NOT_TEXT},
    ),
    Field(
        name="user",
        models=EVERY,
        accepted={'"somebody"': None, text(256): None},
        refused={text(257): "string_too_long", **NOT_TEXT},
    ),
    Field(
        name="finetune_id", models=EVERY, attribute="finetune", default=dict.fromkeys(EVERY),
        accepted={"null": None, '""': None}, refused={text(257): "string_too_long", **NOT_TEXT},
    ),
    Field(
        name="finetune_strength",
        models=EVERY,
        accepted={"0": None, "0.5": None, "1": None, "2.0": None},
        refused={"-0.01": "greater_than_equal", "2.01": "less_than_equal", **NOT_A_NUMBER},
        warns=True,
    ),
    Field(
        name="interval",
        models=("flux-pro",),
        accepted={"1": None, "2": None, "2.0": None, "3.5": None, "4": None},
        refused={"0.99": "greater_than_equal", "0": "greater_than_equal", "4.01": "less_than_equal", **NOT_A_NUMBER},
    ),
    Field(
        name="raw", models=ULTRA, accepted={"true": None}, refused=NOT_A_FLAG,
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
EMPTY_IS_UNSET = frozenset(
    {"image_prompt", "webhook_url", "webhook_secret", "user", "output_format", "aspect_ratio", "input_image", "image"}
)
