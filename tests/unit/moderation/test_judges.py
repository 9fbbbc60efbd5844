"""What judges elsewhere are asked, and how their answers are read."""

from __future__ import annotations

import base64
import json

import pytest

from fluxserve.errors import ModerationFailed
from fluxserve.moderation.judges import KINDS

PLAIN, OPENAI = KINDS["http"], KINDS["openai"]


def answer(scores: object) -> bytes:
    return json.dumps({"id": "m1", "results": [{"flagged": False, "category_scores": scores}]}).encode()


def test_questions_are_as_each_kind_has_them() -> None:
    assert json.loads(PLAIN.about_text("hello", None)) == {"text": "hello"}
    assert json.loads(PLAIN.about_picture(b"abc", "image/png", "m")) == {
        "picture": base64.b64encode(b"abc").decode(), "media_type": "image/png", "model": "m",
    }  # fmt: skip
    assert json.loads(OPENAI.about_text("hello", "omni")) == {"input": "hello", "model": "omni"}
    (part,) = json.loads(OPENAI.about_picture(b"abc", "image/png", None))["input"]
    assert part == {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWJj"}}


def test_answers_become_scores_of_our_categories() -> None:
    assert PLAIN.read(b'{"scores": {"sexual": 0.25, "ours alone": 1}, "more": 1}') == {"sexual": 0.25, "ours alone": 1}
    assert PLAIN.read(b'{"scores": {}}') == {}
    theirs = {
        "sexual": 0.2,
        "sexual/minors": 0.4,
        "hate": 0.1,
        "hate/threatening": 0.7,
        "violence": 0.9,
        "hate/x": None,
    }
    assert OPENAI.read(answer(theirs)) == {"sexual": 0.2, "child_safety": 0.4, "hate": 0.7}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"ok", b"[]", b"{}", b"\xff", b'{"scores": 1}', b'{"scores": {"sexual": "high"}}',
        b'{"scores": {"sexual": 1.5}}', b'{"scores": {"sexual": -1}}', b'{"scores": {"sexual": NaN}}',
        b'{"results": []}', answer({}), answer({"violence": 0.1}), answer({"sexual": 2.0}), answer({"sexual": "x"}),
        answer(None), b'{"results": [{"flagged": false}]}',
        json.dumps({"results": [{"category_scores": {"sexual": 0.1}}] * 2}).encode(),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_taken_for_none(body: bytes) -> None:
    for kind in KINDS.values():
        with pytest.raises(ModerationFailed):
            kind.read(body)
