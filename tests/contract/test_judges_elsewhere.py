"""Judges elsewhere, asked over real sockets by a courier: what they say counts, and without an answer nothing goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from inprocess import Json
from posting import HOST, Post

from fluxserve.engine.fake import MAGENTA
from fluxserve.service.judges import Judges
from fluxserve.settings import Judge
from receivers import Behave, drips, never_answers, resets, says, status

URL = f"https://{HOST}/v1/moderations"


def answers(scores: Json) -> Behave:
    """As OpenAI's endpoint does."""
    body = json.dumps({"results": [{"flagged": True, "category_scores": scores}]}).encode()
    return says(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


@pytest.fixture
def judged(post: Callable[..., Post]) -> Callable[..., Post]:
    """Starts a server with one judge, which behaves as told."""

    def start(behave: Behave, **about: str) -> Post:
        judge = {"url": URL, "key": "a-key", "model": "omni", **about}
        here = post(behave, moderation_judges=[judge], moderation_timeout=0.3)
        here.server.service.moderation.judges.ask = here.couriers.ask
        return here

    return start


def test_a_judge_refuses_what_our_rules_let_through(judged: Callable[..., Post]) -> None:
    here = judged(answers({"sexual": 0.1, "sexual/minors": 0.0, "hate": 0.6}))
    task = here.server.submit({"prompt": "a red apple"})
    assert here.server.poll(task)["details"]["Moderation Reasons"] == ["hate"]
    (seen,) = here.receiver.seen
    assert (seen.method, seen.path, seen.headers["authorization"]) == ("POST", "/v1/moderations", "Bearer a-key")
    assert json.loads(seen.body) == {"input": "a red apple", "model": "omni"}
    tolerant = here.server.submit({"prompt": "a red apple", "safety_tolerance": 4})
    assert here.server.poll(tolerant)["status"] == "Pending"


def test_what_our_rules_refuse_no_judge_is_asked_about(judged: Callable[..., Post]) -> None:
    here = judged(answers({"sexual": 0.0}))
    task = here.server.submit({"prompt": "a naked schoolgirl"})
    assert here.server.poll(task)["status"] == "Request Moderated"
    assert here.receiver.seen == []


@pytest.mark.parametrize(
    "behave",
    [
        never_answers,
        drips,
        resets,
        status(500),
        status(401),
        status(302, location="/"),
        answers({}),
        answers({"sexual": -5.0}),
        answers({"sexual": 0.0, "hate": 1.5}),
        says(b"nonsense"),
    ],
)
def test_without_an_answer_nothing_is_accepted(judged: Callable[..., Post], behave: Behave) -> None:
    here = judged(behave)
    answer = here.server.post("/v1/flux-dev", {"prompt": "a red apple"})
    assert answer.status_code == 503
    assert "cannot be judged" in answer.json()["detail"]
    assert answer.headers["retry-after"]
    assert here.server.claim() == []
    assert here.server.faults() == []


def test_nor_without_a_courier(judged: Callable[..., Post]) -> None:
    here = judged(answers({"sexual": 0.0}))
    here.server.run(here.kill_courier())
    assert here.server.post("/v1/flux-dev", {"prompt": "a red apple"}).status_code == 503


def test_a_judge_of_pictures_sees_them_before_they_are_stored(judged: Callable[..., Post]) -> None:
    here = judged(answers({"sexual": 0.0, "violence/graphic": 0.9}), asked_about="pictures")
    task = here.server.submit({"prompt": "a red apple"})
    assert here.receiver.seen == []
    here.server.draw()
    polled = here.server.poll(task)
    assert (polled["status"], polled["details"]["Moderation Reasons"]) == ("Content Moderated", ["gore"])
    (part,) = json.loads(here.receiver.seen[0].body)["input"]
    assert part["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert stored(here) == []


def test_a_picture_that_a_judge_does_not_judge_is_nobodys(judged: Callable[..., Post]) -> None:
    here = judged(status(500), asked_about="pictures")
    task = here.server.submit({"prompt": "a red apple"})
    here.server.draw()
    polled = here.server.poll(task)
    assert (polled["status"], polled["cost"]) == ("Error", 0.0)
    assert stored(here) == []
    refused = here.server.submit({"prompt": MAGENTA})
    here.server.draw()
    assert here.server.poll(refused)["status"] == "Content Moderated"
    assert len(here.receiver.seen) == 1  # our own classifier was enough


def test_switched_off_no_judge_is_asked(post: Callable[..., Post]) -> None:
    here = post(status(500), moderation="off", moderation_judges=[{"url": URL, "asked_about": "both"}])
    here.server.service.moderation.judges.ask = here.couriers.ask
    task = here.server.submit({"prompt": "a naked schoolgirl"})
    here.server.draw()
    assert here.server.poll(task)["status"] == "Ready"
    assert here.receiver.seen == []


def test_who_judges_is_part_of_what_equal_requests_have_in_common() -> None:
    one, other = (Judges((Judge(url=URL, model=model),), timeout=1.0).identity for model in ("a", "b"))
    assert one != other


def stored(here: Post) -> list[Path]:
    return [path for path in (here.server.folder / "results").rglob("*") if path.is_file()]


def test_the_key_is_told_to_nobody_else() -> None:
    judge = Judge(url=URL, key="a-secret-key")  # type: ignore[arg-type]
    assert "a-secret-key" not in repr(judge) + judge.model_dump_json()
