"""Prompts that are to be enriched: by an endpoint over real sockets; drawn as they stand where that is of no use."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from inprocess import Json, Server
from posting import HOST, Post

from fluxserve.engine.fake import FINGERPRINT
from fluxserve.service.upsampling import (
    AWAY,
    FAILED,
    FAILURES,
    MAX_GROWTH,
    NO_COMPLETION,
    PAUSE_S,
    REFUSED,
    RESTING,
    SLOW,
    UNAVAILABLE,
)
from receivers import Behave, drips, never_answers, resets, says, status

PREFIXES = ("/v1", "/flux/v1")
APPLE = "a red apple"
RICH = "A crisp red apple on a weathered oak table in low morning light, painted in oils."
UPSAMPLER = {"url": f"https://{HOST}/v1", "model": "tiny-writer", "key": "a-key"}


def answers(text: object, **more: object) -> Behave:
    """As OpenAI's endpoint does, and servers like it."""
    message = {"role": "assistant", "content": text}
    return completes({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], **more})


def completes(body: Json) -> Behave:
    encoded = json.dumps(body).encode()
    return says(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(encoded), encoded))


@pytest.fixture
def upsampled(post: Callable[..., Post]) -> Callable[..., Post]:
    """Starts a server whose prompt upsampler behaves as told."""

    def start(behave: Behave, **settings: object) -> Post:
        here = post(behave, prompt_upsampler=UPSAMPLER, **{"prompt_upsampler_timeout": 0.3, **settings})
        here.server.service.upsampling.ask = here.couriers.ask
        return here

    return start


def drawn(here: Post, task: Json) -> Json:
    """What polls say of a task once it was prepared and drawn."""
    here.prepare()
    here.server.draw()
    polled = here.server.poll(task)
    assert here.server.faults() == []
    return polled


def warnings(polled: Json) -> list[str]:
    return list((polled["details"] or {}).get("warnings", []))


def ask(server: Server, path: str = "/v1/flux-dev", **fields: object) -> Json:
    return server.submit({"prompt": APPLE, "prompt_upsampling": True, **fields}, path=path)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prompt_is_enriched_before_it_is_drawn_and_the_result_says_what_was_drawn(
    upsampled: Callable[..., Post], prefix: str
) -> None:
    here = upsampled(answers(RICH))
    task = ask(here.server, f"{prefix}/flux-dev")
    assert here.server.poll(task)["status"] == "Pending"
    assert here.server.claim() == []
    polled = drawn(here, task)
    assert (polled["status"], polled["result"]["prompt"], warnings(polled)) == ("Ready", RICH, [])
    (seen,) = here.receiver.seen
    assert (seen.method, seen.path, seen.headers["authorization"]) == ("POST", "/v1/chat/completions", "Bearer a-key")
    asked = json.loads(seen.body)
    assert (asked["model"], asked["stream"]) == ("tiny-writer", False)
    assert [message["role"] for message in asked["messages"]] == ["system", "user"]
    assert asked["messages"][1]["content"] == APPLE


@pytest.mark.parametrize(
    ("path", "fields", "is_enriched"),
    [
        ("flux-dev", {}, False),
        ("flux-dev", {"prompt_upsampling": False}, False),
        ("flux-2-flex", {}, True),
        ("flux-2-flex", {"prompt_upsampling": None}, True),
        ("flux-2-flex", {"prompt_upsampling": False}, False),
        ("flux-2-pro", {}, True),
        ("flux-2-pro", {"disable_pup": True}, False),
        ("flux-2-klein-4b", {}, False),
        ("flux-dev", {"prompt": "", "prompt_upsampling": True}, False),
    ],
)
def test_each_model_has_the_published_default(
    upsampled: Callable[..., Post], path: str, fields: Json, is_enriched: bool
) -> None:
    here = upsampled(answers(RICH))
    polled = drawn(here, here.server.submit({"prompt": APPLE, **fields}, path=f"/v1/{path}"))
    assert polled["status"] == "Ready"
    assert (polled["result"]["prompt"] == RICH, len(here.receiver.seen)) == (is_enriched, int(is_enriched))
    assert warnings(polled) == []


def test_where_none_is_set_up_the_prompt_is_drawn_as_it_stands_and_a_warning_says_so(server: Server) -> None:
    for path, fields in (("flux-dev", {"prompt_upsampling": True}), ("flux-2-pro", {})):
        task = server.submit({"prompt": APPLE, **fields}, path=f"/v1/{path}")
        server.draw()
        polled = server.poll(task)
        assert (polled["result"]["prompt"], warnings(polled)) == (APPLE, [UNAVAILABLE])
    quiet = server.submit({"prompt": APPLE, "disable_pup": True}, path="/v1/flux-2-pro")
    server.draw()
    assert warnings(server.poll(quiet)) == []


HOSTILE = [
    (never_answers, SLOW),
    (drips, SLOW),
    (resets, AWAY),
    (status(500), "it answers 500"),
    (status(302, location="/"), "it answers 302"),
    (says(b"nonsense"), AWAY),
    (says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]"), NO_COMPLETION),
    (says(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000\r\n\r\n" + b"a" * 10_000_000), AWAY),
    (completes({"choices": []}), NO_COMPLETION),
    (answers(None), NO_COMPLETION),
    (answers(["a", "list"]), NO_COMPLETION),
    (answers("  \x00\n "), "its answer is empty"),
    (answers("<think>what could it be</think>"), "its answer is empty"),
    (answers("<think>what could it be, and then it was cut off"), "its answer is thoughts alone"),
]


@pytest.mark.parametrize(("behave", "reason"), HOSTILE)
def test_an_endpoint_that_is_down_slow_or_hostile_costs_the_task_nothing_but_a_warning(
    upsampled: Callable[..., Post], behave: Behave, reason: str
) -> None:
    here = upsampled(behave)
    polled = drawn(here, ask(here.server, seed=5))
    told = (polled["status"], polled["result"]["prompt"], warnings(polled))
    assert told == ("Ready", APPLE, [FAILED.format(reason)])
    assert here.server.service.upsampling.trouble == reason


def test_nor_does_one_that_nobody_calls(upsampled: Callable[..., Post]) -> None:
    here = upsampled(answers(RICH))
    here.server.run(here.kill_courier())
    polled = drawn(here, ask(here.server))
    told = (polled["status"], polled["result"]["prompt"], warnings(polled))
    assert told == ("Ready", APPLE, [FAILED.format(AWAY)])


def test_an_endpoint_that_fails_several_times_is_not_waited_for_any_more_until_later(
    upsampled: Callable[..., Post],
) -> None:
    here = upsampled(status(500))
    for asked in (*range(1, FAILURES + 1), FAILURES):
        reason = RESTING if len(here.receiver.seen) == FAILURES else "it answers 500"
        assert warnings(drawn(here, ask(here.server))) == [FAILED.format(reason)]
        assert len(here.receiver.seen) == asked
    here.server.now += PAUSE_S
    here.receiver.behave = answers(RICH)
    assert drawn(here, ask(here.server))["result"]["prompt"] == RICH
    assert here.server.service.upsampling.trouble == ""


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (f'  "{RICH}"\n', RICH),
        (f"<think>\nAn apple. Hm.\n</think>\n\n{RICH}", RICH),
        ("one\nline\tand \x1b[31manother", "one line and [31manother"),
        ("<b>bold</b> & 'quoted'", "<b>bold</b> & 'quoted'"),
        ("word " * 2000, ("word " * 2000)[: len(APPLE) + MAX_GROWTH].rpartition(" ")[0]),
    ],
)
def test_what_it_answers_is_a_text_to_draw_and_nothing_more(
    upsampled: Callable[..., Post], text: str, prompt: str
) -> None:
    here = upsampled(answers(text))
    assert drawn(here, ask(here.server))["result"]["prompt"] == prompt


def test_an_enriched_prompt_is_judged_again_and_one_that_is_refused_is_not_drawn(
    upsampled: Callable[..., Post],
) -> None:
    here = upsampled(answers("a naked schoolgirl"))
    polled = drawn(here, ask(here.server))
    assert (polled["status"], polled["result"]["prompt"], warnings(polled)) == ("Ready", APPLE, [REFUSED])
    refused = ask(here.server, prompt="a naked schoolgirl")
    assert here.server.poll(refused)["status"] == "Request Moderated"
    assert len(here.receiver.seen) == 1  # what is refused at once is shown to nobody


def test_equal_enriched_prompts_with_equal_seeds_are_one_picture(upsampled: Callable[..., Post]) -> None:
    here = upsampled(answers(RICH))
    here.server.run(here.server.service.welcome("w1", {"flux-dev": FINGERPRINT}))
    first = drawn(here, ask(here.server, seed=5))
    assert "cached" not in first["details"]
    again = ask(here.server, seed=5)
    here.prepare()
    assert here.server.poll(again)["details"]["cached"] is True


def test_a_task_that_is_cancelled_meanwhile_is_over(upsampled: Callable[..., Post]) -> None:
    here = upsampled(answers(RICH))
    task = ask(here.server)
    assert here.server.ask("DELETE", f"/v1/tasks/{task['id']}", key=here.server.key).status_code == 200
    here.prepare()
    assert here.server.poll(task)["details"]["error"] == "cancelled"
    assert here.server.claim() == []
    assert here.server.faults() == []
