"""Webhooks from a task's end to its receiver: what comes, how it is signed, what becomes of every kind of answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import sqlite3
import time
from collections.abc import Callable

import pytest
from inprocess import Json, Server
from posting import HOST, URL, Post
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from fluxserve.delivery.sealing import Sealer
from fluxserve.delivery.webhooks import DELAYS
from receivers import Behave, Seen, answer_ok, never_answers, resets, says, status

Posting = Callable[..., Post]
SECRET = "a plain secret"
STANDARD = "whsec_" + base64.b64encode(b"k" * 32).decode()


def body_of(seen: Seen) -> Json:
    """What the receiver reads."""
    return dict(json.loads(seen.body))


def test_a_webhook_is_what_a_poll_answers_and_two_fields_more(post: Posting) -> None:
    here = post()
    task = here.ready()
    here.deliver()
    (seen,) = here.receiver.seen
    assert (seen.method, seen.path) == ("POST", "/flux?from=here")
    body, polled = body_of(seen), here.server.poll(task)
    assert list(body) == [*polled, "task_id", "timestamp"]
    assert body["task_id"] == task["id"]
    assert body["timestamp"] == "2027-01-15T08:00:00.000Z"
    assert body["result"].pop("sample").startswith("http://flux.test/results/")
    assert polled["result"].pop("sample")
    assert {name: body[name] for name in polled} == polled
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["user-agent"].startswith("fluxserve")
    assert here.server.poll(task)["status"] == "Ready"


def test_the_link_in_it_opens_the_picture(post: Posting) -> None:
    here = post()
    here.ready()
    here.deliver()
    answer = here.server.ask("GET", body_of(here.receiver.seen[0])["result"]["sample"])
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")


@pytest.mark.parametrize("how", ["failed", "cancelled"])
def test_a_task_that_ends_otherwise_is_told_too(post: Posting, how: str) -> None:
    here = post()
    task = here.submit()
    if how == "failed":
        here.server.fail(here.server.claim()[0], "The engine could not draw this task.")
    else:
        here.server.ask("DELETE", f"/v1/tasks/{task['id']}", key=here.server.key)
    here.deliver()
    body = body_of(here.receiver.seen[0])
    assert (body["status"], body["result"], body["id"]) == ("Error", None, task["id"])


def test_no_webhook_no_call(post: Posting) -> None:
    here = post()
    here.server.submit()
    here.server.draw()
    here.deliver()
    assert here.receiver.connections == 0
    assert here.deliveries() == []


@pytest.mark.parametrize(
    ("secret", "at_receiver"),
    [(STANDARD, STANDARD), (SECRET, "whsec_" + base64.b64encode(SECRET.encode()).decode())],
    ids=["whsec", "plain"],
)
def test_the_published_library_verifies_it(post: Posting, secret: str, at_receiver: str) -> None:
    here = post()
    here.server.now = time.time()  # what the library compares with
    here.ready(webhook_secret=secret)
    here.deliver()
    (seen,) = here.receiver.seen
    receiver = Webhook(at_receiver)
    assert receiver.verify(seen.body, dict(seen.headers))["status"] == "Ready"  # type: ignore[index]
    forged = {
        "another body": (seen.body + b" ", seen.headers),
        "another id": (seen.body, {**seen.headers, "webhook-id": "msg_other"}),
        "an old one": (seen.body, {**seen.headers, "webhook-timestamp": str(int(time.time()) - 301)}),
        "another signature": (seen.body, {**seen.headers, "webhook-signature": "v1,AAAA"}),
    }
    for body, headers in forged.values():
        with pytest.raises(WebhookVerificationError):
            receiver.verify(body, dict(headers))


@pytest.mark.parametrize("secret", [STANDARD, SECRET])
def test_receivers_of_the_published_api_verify_it(post: Posting, secret: str) -> None:
    here = post()
    here.ready(webhook_secret=secret)
    here.deliver()
    (seen,) = here.receiver.seen
    expected = "sha256=" + hmac.new(secret.encode(), seen.body, hashlib.sha256).hexdigest()
    assert hmac.compare_digest(seen.headers["x-bfl-signature"], expected)


def test_without_a_secret_there_is_no_signature(post: Posting) -> None:
    here = post()
    here.ready()
    here.deliver()
    headers = here.receiver.seen[0].headers
    assert {"webhook-id", "webhook-timestamp"} < set(headers)
    assert not {"webhook-signature", "x-bfl-signature", "x-webhook-secret"} & set(headers)


def test_the_secret_lies_nowhere_in_the_open_and_is_sent_only_where_the_operator_wants_it(post: Posting) -> None:
    here = post(status(500))
    canary = "canary-7f3a9c51e2"
    here.ready(webhook_secret=canary)
    here.deliver()
    assert canary not in repr(here.receiver.seen)
    files = [path.read_bytes() for path in here.server.folder.rglob("*") if path.is_file()]
    assert files
    assert not [file for file in files if canary.encode() in file]
    assert canary not in json.dumps(here.deliveries())


def test_the_secret_itself_is_a_header_where_the_operator_wants_it(post: Posting) -> None:
    here = post(webhook_secret_header=True)
    here.ready(webhook_secret=SECRET)
    here.deliver()
    assert here.receiver.seen[0].headers["x-webhook-secret"] == SECRET


def test_a_receiver_that_is_down_for_an_hour_gets_everything_on_schedule(post: Posting) -> None:
    """Target R11a: all of it, at most eight attempts each, each under one id, with a link that opens."""
    here = post(resets)
    tasks = [here.ready(prompt=f"apple {number}") for number in range(30)]
    begin, attempts = here.server.now, []
    while len(here.deliveries(status="delivered")) < len(tasks):
        if here.server.now >= begin + 3600:
            here.receiver.behave = answer_ok
        here.deliver()
        here.server.sweep()
        attempts += [here.server.now] * (here.receiver.connections - len(attempts))
        here.wait()
    assert here.server.now - begin < 3 * 3600
    assert max(one["attempts"] for one in here.deliveries()) <= 8
    # No minute of the outage saw more than a dead host may see.
    assert max(sum(at <= other < at + 60 for other in attempts) for at in attempts if at < begin + 3600) <= 50
    good = {body_of(seen)["task_id"]: seen for seen in here.receiver.seen}
    ids: dict[str, set[str]] = {}
    for seen in here.receiver.seen:
        ids.setdefault(body_of(seen)["task_id"], set()).add(seen.headers["webhook-id"])
    assert set(good) == {task["id"] for task in tasks}
    assert all(len(known) == 1 for known in ids.values())
    assert len(set.union(*ids.values())) == len(tasks)
    last = body_of(here.receiver.seen[-1])
    assert here.server.ask("GET", last["result"]["sample"]).status_code == 200


def test_attempts_follow_the_schedule_and_then_it_is_dead_and_can_be_replayed(post: Posting) -> None:
    here = post(status(500))
    task = here.ready()
    begin, times = here.server.now, []
    while here.deliveries(status="waiting"):
        here.deliver()
        times.append(here.server.now - begin)
        here.wait()
    gaps = [late - early for early, late in itertools.pairwise(times)]
    assert gaps[:3] == pytest.approx(DELAYS[1:4], abs=0.5)  # the pace of a host adds a little
    assert all(0.8 * delay <= gap <= 1.2 * delay + 0.5 for gap, delay in zip(gaps[3:], DELAYS[4:], strict=True))
    dead = here.delivery()
    assert (dead["status"], dead["attempts"], dead["last_status"]) == ("dead", len(DELAYS), 500)
    assert here.deliveries(status="dead") == [dead]
    assert (dead["next_attempt_at"], dead["ended_at"]) == (None, dead["last_attempt_at"])
    here.server.sweep()
    here.receiver.behave = answer_ok
    assert here.replay(task) == 200
    here.server.now += 300.0
    here.deliver()
    done = here.delivery()
    assert (done["status"], done["attempts"], done["last_status"]) == ("delivered", 1, 200)
    assert len({seen.headers["webhook-id"] for seen in here.receiver.seen}) == 1
    links = [body_of(seen)["result"]["sample"] for seen in here.receiver.seen]
    assert len(set(links)) == len(links)
    assert here.server.ask("GET", links[-1]).status_code == 200


async def _huge(seen: Seen, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
    for _ in range(1526):
        writer.write(b"x" * 2**16)
        await writer.drain()


ANSWERS: dict[str, tuple[Behave, str, int | None, str | None]] = {
    "204": (status(204), "delivered", 204, None),
    "100 MB": (_huge, "delivered", 200, None),
    "500": (status(500), "waiting", 500, None),
    "404": (status(404), "waiting", 404, None),
    "a redirect": (status(302, location="http://169.254.169.254/"), "waiting", 302, None),
    "gone": (status(410), "dead", 410, None),
    "a reset": (resets, "waiting", None, "no_answer"),
    "nonsense": (says(b"SSH-2.0-OpenSSH_9.6\r\n"), "waiting", None, "no_answer"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_becomes_of_each_answer(post: Posting, answer: str) -> None:
    behave, state, code, problem = ANSWERS[answer]
    here = post(behave)
    here.ready()
    here.deliver()
    found = here.delivery()
    assert (found["status"], found["attempts"], found["last_status"], found["last_problem"]) == (
        state, 1, code, problem,
    )  # fmt: skip
    assert here.receiver.connections == 1


def test_a_receiver_without_a_good_certificate_learns_nothing(post: Posting) -> None:
    here = post()
    here.network.zone = {"other.test": ["93.184.215.14"]}
    here.ready(webhook_url="https://other.test/")
    here.deliver()
    assert here.receiver.seen == []
    assert here.delivery()["last_problem"] == "tls"


def test_a_name_that_leads_inside_reaches_nobody(post: Posting) -> None:
    here = post()
    here.network.zone = {HOST: ["93.184.215.14", "127.0.0.1"]}
    here.ready()
    here.deliver()
    assert here.receiver.connections == 0
    assert here.delivery()["last_problem"] == "unreachable"


@pytest.mark.parametrize(("asked", "seconds"), [("120", 120.0), ("86400", 3600.0), ("0", 1.0), ("soon", 1.0)])
def test_retry_after_is_honoured_up_to_an_hour(post: Posting, asked: str, seconds: float) -> None:
    here = post(status(503, retry_after=asked))
    here.ready()
    here.deliver()
    assert here.delivery()["next_attempt_at"] == pytest.approx(here.server.now + seconds)


def test_a_courier_that_is_killed_loses_nothing(post: Posting) -> None:
    arrived = asyncio.Event()

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await never_answers(seen, writer)

    here = post(behave)
    task = here.ready()
    here.begin(arrived)
    here.server.run(here.kill_courier())
    here.server.run(here.couriers.settled(10.0))
    assert here.delivery()["last_problem"] == "courier_lost"
    here.receiver.behave = answer_ok
    here.server.run(here.start_courier())
    here.wait()
    here.deliver()
    assert here.delivery()["status"] == "delivered"
    assert [body_of(seen)["task_id"] for seen in here.receiver.seen] == [task["id"]] * 2
    assert len({seen.headers["webhook-id"] for seen in here.receiver.seen}) == 1


def test_a_server_that_died_knows_what_waits(post: Posting) -> None:
    here = post(status(500))
    here.ready()
    here.deliver()
    before = here.delivery()
    here.server.run(here.server.service.webhooks.load())
    assert len(here.server.service.webhooks) == 1
    here.receiver.behave = answer_ok
    here.server.now = before["next_attempt_at"]
    here.deliver()
    assert here.delivery()["status"] == "delivered"


def test_a_webhook_that_cannot_be_signed_is_not_sent_unsigned(post: Posting) -> None:
    here = post()
    task = here.ready(webhook_secret=SECRET)
    with sqlite3.connect(here.server.folder / "fluxserve.db") as database:
        sealed = Sealer(b"another server's own secret").seal(SECRET, task["id"])
        database.execute("UPDATE tasks SET webhook_secret = ?", (sealed,))
    database.close()
    here.deliver()
    assert here.receiver.connections == 0
    found = here.delivery()
    assert (found["status"], found["attempts"], found["last_problem"]) == ("waiting", 1, "secret_lost")


def test_equal_requests_are_told_each(post: Posting) -> None:
    here = post()
    tasks = [here.submit(seed=5) for _ in range(3)]
    here.server.draw()
    here.deliver()
    assert {body_of(seen)["task_id"] for seen in here.receiver.seen} == {task["id"] for task in tasks}


def test_no_account_sees_or_replays_what_is_another_s(post: Posting) -> None:
    here = post()
    task = here.ready()
    here.deliver()
    other = here.server.new_key()
    assert here.server.ask("GET", "/v1/webhooks/deliveries", key=other).json() == {
        "deliveries": [],
        "next_cursor": None,
    }
    assert here.replay(task, other) == 404
    foreign, unknown = (
        here.server.ask("POST", f"/v1/webhooks/deliveries/{id_}/replay", key=other).json()
        for id_ in (task["id"], "0" * 8)
    )
    assert foreign == unknown
    assert here.server.ask("GET", "/v1/webhooks/deliveries").status_code == 401
    assert here.server.ask("DELETE", "/v1/webhooks/deliveries", key=other).status_code == 405


def test_the_list_has_pages_in_both_dialects(post: Posting) -> None:
    here = post()
    tasks = [here.ready(prompt=f"apple {number}")["id"] for number in range(3)]
    found: list[str] = []
    cursor = ""
    while True:
        query = {"limit": "2", "cursor": cursor}
        page = here.server.ask("GET", "/flux/v1/webhooks/deliveries", key=here.server.key, query=query).json()
        found += [one["task_id"] for one in page["deliveries"]]
        if (cursor := page["next_cursor"] or "") == "":
            break
    assert found == tasks[::-1]
    (first,) = here.deliveries(limit="1")
    assert first["webhook_url"] == URL
    assert first["webhook_id"] == f"msg_{tasks[-1].replace('-', '')}"


@pytest.mark.parametrize(("name", "value"), [("status", "lost"), ("limit", "0"), ("limit", "x"), ("cursor", "a" * 32)])
def test_a_parameter_that_cannot_be_is_told(post: Posting, name: str, value: str) -> None:
    here = post()
    answer = here.server.ask("GET", "/v1/webhooks/deliveries", key=here.server.key, query={name: value})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", name]


def test_a_cursor_of_the_list_of_tasks_opens_no_other_list(post: Posting) -> None:
    here = post()
    for number in range(2):
        here.ready(prompt=f"apple {number}")
    cursor = here.server.ask("GET", "/v1/tasks", key=here.server.key, query={"limit": "1"}).json()["next_cursor"]
    answer = here.server.ask("GET", "/v1/webhooks/deliveries", key=here.server.key, query={"cursor": cursor})
    assert answer.status_code == 422


def test_a_receiver_of_the_operator_s_own_may_speak_plain_http(serve: Callable[..., Server]) -> None:
    server = serve(outbound_allow=("hooks.lan",))
    body = server.submit({"webhook_url": "http://hooks.lan:8080/x"})
    assert body["webhook_url"] == "http://hooks.lan:8080/x"
    refused = server.post("/v1/flux-dev", {"prompt": "a", "webhook_url": "http://other.lan:8080/x"})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "webhook_url"]
