"""Input pictures by URL over HTTP: accepted at once, fetched by the courier, drawn as if they had come as base64."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from calls import Call
from facts import PREFIXES
from inprocess import Json
from posting import HOST, Post

from fluxserve.engine.fake import FINGERPRINT
from receivers import Behave, Seen, answer_ok, never_answers, resets, says, status
from sample_pictures import PNG, file_of, picture, text_of

Posting = Callable[..., Post]
URL = f"https://{HOST}/a.png?sig=hush"
FILE = base64.b64decode(PNG)
LYING = file_of(picture(480, 320), "JPEG")


def shows(*files: bytes) -> Behave:
    """Each path `/0`, `/1` and so on shows a file; any other the first one."""

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        number = seen.path.split("?")[0].strip("/")
        file = files[int(number)] if number.isdecimal() else files[0]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(file) + file)

    return behave


def with_worker(here: Post) -> Post:
    """Somebody draws flux-dev, so that equal requests are known by it."""
    here.server.run(here.server.service.welcome("w1", {"flux-dev": FINGERPRINT}))
    return here


def submit(here: Post, path: str = "/v1/flux-dev", **fields: object) -> Json:
    answer = here.server.post(path, {"prompt": "a red apple", **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def failed(here: Post, task: Json) -> str:
    """Why it ended; it cost nothing."""
    polled = here.server.poll(task)
    assert (polled["status"], polled["cost"], polled["result"]) == ("Error", 0.0, None)
    assert here.server.balance(here.server.key) is None
    return str(polled["details"]["error"])


def wait(here: Post) -> float:
    """The clock goes on to the next attempt; how far."""
    seconds = here.server.service.preparing.next_at() - here.server.now
    here.server.now += seconds
    return seconds


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_picture_by_url_is_drawn_like_the_same_one_as_base64(post: Posting, prefix: str) -> None:
    here = with_worker(post(shows(FILE)))
    fields = {"width": 256, "height": 256, "seed": 5, "output_format": "png"}
    task = submit(here, f"{prefix}/flux-dev", image_prompt=URL, **fields)
    assert (task["cost"], task["input_mp"], task["output_mp"]) == (2.5, None, None)
    waiting = here.server.poll(task)
    assert (waiting["status"], waiting["progress"], waiting["details"]) == ("Pending", 0.0, None)
    assert here.receiver.connections == 0
    here.prepare()
    assert [(seen.method, seen.path) for seen in here.receiver.seen] == [("GET", "/a.png?sig=hush")]
    here.server.draw()
    by_url = here.server.poll(task)
    assert by_url["details"]["input_pictures"] == {"image_prompt": "256x256"}
    # Equal pixels and a seed: the same picture, without drawing it again.
    again = here.server.poll(submit(here, image_prompt=PNG, **fields))
    assert again["details"]["cached"] is True
    pictures = [here.server.ask("GET", one["result"]["sample"]).content for one in (by_url, again)]
    assert pictures[0] == pictures[1]


def test_a_task_that_was_prepared_follows_an_equal_one_or_has_its_picture(post: Posting) -> None:
    here = with_worker(post(shows(FILE)))
    fields = {"width": 256, "height": 256, "seed": 5}
    leader, follower = submit(here, image_prompt=PNG, **fields), submit(here, image_prompt=URL, **fields)
    here.prepare()
    assert len(here.server.claim()) == 1
    late = submit(here, image_prompt=URL, **fields)
    here.server.draw_claimed(here.server.record(leader))
    here.prepare()
    for task in (follower, late):
        polled = here.server.poll(task)
        assert (polled["status"], polled["details"]["cached"], polled["cost"]) == ("Ready", True, 2.5)


HOSTILE_URLS = (Path(__file__).parents[1] / "unit/delivery/hostile_urls.txt").read_text("utf-8").split()
HOSTILE = (
    "https://user:word@example.com/a.png",
    "http://127.0.0.1/a.png",
    "http://[::ffff:127.0.0.1]/a.png",
    "http://169.254.169.254/latest/meta-data/",
    "https://example.com:22/",
    "https://0x7f.1/",
    "https://",
    "http://exa mple.com/",
)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_url_that_is_never_called_is_a_422_that_names_its_field(post: Posting, prefix: str) -> None:
    here = post()
    for url in HOSTILE:
        answer = here.server.post(f"{prefix}/flux-2-pro", {"prompt": "x", "input_image": URL, "input_image_2": url})
        assert answer.status_code == 422, url
        (item,) = answer.json()["detail"]
        assert (item["type"], item["loc"]) == ("picture_url", ["body", "input_image_2"])
    assert len(here.server.service.preparing) == 0
    assert here.network.asked == []


def test_no_hostile_url_is_ever_connected_to(post: Posting) -> None:
    here = post()
    here.network.zone = {"inner.test": ["10.0.0.1"], "both.test": ["93.184.215.14", "127.0.0.1"]}
    urls = [*HOSTILE_URLS, "https://inner.test/", "http://both.test/a.png", "http://nowhere.test/"]
    tasks: list[Json] = []
    for url in urls:
        answer = here.server.post("/v1/flux-dev", {"prompt": "x", "image_prompt": url})
        assert answer.status_code in (200, 422), url
        tasks += [answer.json()] if answer.status_code == 200 else []
    assert len(tasks) >= 3
    while len(here.server.service.preparing):
        here.prepare()
        here.server.now += 10.0
    for task in tasks:
        assert failed(here, task).startswith("image_prompt: ")
    assert here.network.dialled == []
    assert here.receiver.connections == 0


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1/", f"https://inner.test/{'x' * 9}", "https://[fd00::1]/", "https://169.254.169.254/"]
)
def test_a_redirect_inside_ends_the_task_and_reaches_nobody(post: Posting, target: str) -> None:
    here = post(status(302, location=target))
    here.network.zone = {HOST: here.network.zone[HOST], "inner.test": ["10.0.0.1"]}
    task = submit(here, image_prompt=URL)
    for _ in range(3):
        here.prepare()
        if here.server.poll(task)["status"] == "Pending":
            wait(here)
    assert failed(here, task) in (
        "image_prompt: its URL cannot be reached", "image_prompt: its URL redirects to one that is not called"
    )  # fmt: skip
    assert set(here.network.dialled) == {"93.184.215.14"}


NEVER = {
    "image_prompt: its URL is answered with HTTP 404, not with a picture": status(404),
    "image_prompt: its URL is answered with HTTP 204, not with a picture": status(204),
    "image_prompt: its URL redirects more than 3 times": status(302, location=URL),
    "image_prompt: its URL answers with more than 20 MB": says(
        b"HTTP/1.1 200 OK\r\ncontent-length: 20000001\r\n\r\n" + bytes(20_000_001)
    ),
    "image_prompt: This is no PNG, JPEG or WebP, or it is damaged": answer_ok,
    "image_prompt: Picture should be at least 256 pixels wide and high, not 100x300": shows(file_of(picture(100, 300))),
}


@pytest.mark.parametrize("reason", NEVER, ids=lambda text: text[14:40])
def test_what_never_becomes_a_picture_ends_the_task_at_once(post: Posting, reason: str) -> None:
    here = post(NEVER[reason])
    task = submit(here, image_prompt=URL)
    here.prepare()
    assert failed(here, task) == reason


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (status(503), "is answered with HTTP 503, not with a picture"),
        (status(429), "is answered with HTTP 429, not with a picture"),
        (resets, "brought no whole HTTP answer"),
    ],
)
def test_what_may_pass_is_tried_three_times(post: Posting, behave: Behave, reason: str) -> None:
    here = post(behave)
    task = submit(here, image_prompt=URL)
    here.prepare()
    assert wait(here) == 1.0
    here.prepare()
    assert wait(here) == 5.0
    assert here.server.poll(task)["status"] == "Pending"
    here.prepare()
    assert failed(here, task) == f"image_prompt: its URL {reason}"
    assert here.receiver.connections == 3


def test_a_host_that_recovers_costs_nothing_and_is_left_alone_as_long_as_it_asks(post: Posting) -> None:
    here = post(status(503, retry_after="20"))
    task = submit(here, image_prompt=URL)
    here.prepare()
    assert wait(here) == 20.0
    here.receiver.behave = shows(FILE)
    here.prepare()
    here.server.draw()
    assert here.server.poll(task)["status"] == "Ready"


def test_one_bad_picture_of_several_is_named_and_never_left_out(post: Posting) -> None:
    here = post(shows(FILE, b"no picture"))
    task = submit(here, "/v1/flux-2-pro", input_image=f"https://{HOST}/0", input_image_2=f"https://{HOST}/1")
    here.prepare()
    assert failed(here, task).startswith("input_image_2: ")
    assert not list((here.server.folder / "inputs").rglob("*.png"))


def test_pictures_that_do_not_fit_each_other_are_named_at_the_end(post: Posting) -> None:
    here = post(shows(FILE, LYING))
    task = submit(here, "/v1/flux-pro-1.0-fill", image=f"https://{HOST}/0", mask=f"https://{HOST}/1")
    here.prepare()
    assert failed(here, task) == "mask: Mask should be as large as image, 256x256, not 480x320"


def test_an_alpha_channel_behind_a_url_is_a_mask(post: Posting) -> None:
    image = picture(256, 256, mode="RGBA")
    image.putalpha(picture(256, 256).convert("L"))
    here = post(shows(file_of(image), FILE))
    task = submit(here, "/v1/flux-pro-1.0-fill", image=URL)
    without = submit(here, "/v1/flux-pro-1.0-fill", image=f"https://{HOST}/1")
    here.prepare()
    here.server.draw()
    assert list(here.server.poll(task)["details"]["input_pictures"]) == ["image", "mask"]
    assert failed(here, without) == "mask: Field required, unless image has an alpha channel"


def test_a_request_with_both_kinds_of_pictures(post: Posting) -> None:
    here = post(shows(LYING))
    task = submit(here, "/v1/flux-pro-1.0-fill", image=URL, mask=text_of(LYING))
    here.prepare()
    here.server.draw()
    polled = here.server.poll(task)
    assert polled["details"]["input_pictures"] == {"image": "480x320", "mask": "480x320"}


def test_the_most_is_reserved_and_the_rest_given_back_once_the_picture_is_there(post: Posting) -> None:
    here = post(shows(LYING))
    key = here.server.new_key(grant=20_000)
    task = here.server.submit_with("/v1/flux-2-pro", {"X-Key": key}, {"prompt": "x", "input_image": URL})
    # Four megapixels in, four out: what would not be known before is reserved.
    assert (task["cost"], here.server.balance(key)) == (13.5, 6500)
    here.prepare()
    assert here.server.balance(key) == 20_000 - 4500
    (listed,) = here.server.ask("GET", "/v1/tasks", key=key).json()["tasks"]
    assert listed["cost"] == 4.5
    here.server.draw()
    assert (here.server.poll(task)["cost"], here.server.balance(key)) == (4.5, 15_500)


def test_where_the_size_is_asked_for_only_the_input_is_reserved_for(post: Posting) -> None:
    here = post(shows(LYING))
    fields = {"width": 512, "height": 512, "input_image": URL}
    assert submit(here, "/v1/flux-2-pro", **fields)["cost"] == 3.0 + 4 * 1.5
    assert submit(here, "/v1/flux-kontext-pro", input_image=URL)["cost"] == 4.0


def test_fields_that_no_picture_could_fit_are_refused_at_once(post: Posting) -> None:
    here = post()
    for model, fields, field in (
        ("flux-pro-1.0-expand", {"image": URL}, "top"),
        ("flux-pro-1.0-expand", {"image": URL, "left": 2048, "right": 2048, "top": 2048}, "top"),
        ("flux-dev", {"image": URL, "image_prompt": URL}, "image_prompt"),
        ("flux-pro-1.0-fill", {"image": PNG, "prompt": URL, "mask": ""}, "mask"),
        ("flux-dev", {"image_prompt": URL, "image": "aGk="}, "image"),
    ):
        answer = here.server.post(f"/v1/{model}", {"prompt": "x", **fields})
        assert answer.status_code == 422, (model, fields)
        assert answer.json()["detail"][0]["loc"] == ["body", field]


def test_a_preparing_task_can_be_cancelled_listed_and_counted(post: Posting) -> None:
    arrived = asyncio.Event()

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await never_answers(seen, writer)

    here = post(behave)
    key = here.server.new_key(grant=5000, max_active=1)
    fields = {"prompt": "x", "image_prompt": URL}
    task = here.server.submit_with("/v1/flux-dev", {"X-Key": key}, fields)
    here.begin_preparing(arrived)
    (listed,) = here.server.ask("GET", "/v1/tasks", key=key, query={"status": "Pending"}).json()["tasks"]
    assert (listed["id"], listed["progress"], listed["cost"]) == (task["id"], 0.0, 2.5)
    more = here.server.ask("POST", "/v1/flux-dev", key=key, body=json.dumps(fields).encode())
    assert more.status_code == 429
    assert here.server.ask("DELETE", f"/v1/tasks/{task['id']}", key=key).json()["details"] == {"error": "cancelled"}
    assert here.server.balance(key) == 5000
    here.prepare()
    assert here.server.poll(task)["status"] == "Error"


def test_events_and_long_polls_of_a_task_whose_picture_never_comes(post: Posting) -> None:
    here = post(status(404))
    task = submit(here, image_prompt=URL)
    stream = Call(here.server, f"/v1/tasks/{task['id']}/events", key=here.server.key)
    poll = Call(here.server, f"{task['polling_url']}&wait=20")
    assert stream.begin()[0] == 200
    assert stream.event().data["status"] == "Pending"
    here.prepare()
    ended = stream.event()
    assert (ended.name, ended.data["status"]) == ("result", "Error")
    assert poll.begin()[0] == 200
    assert json.loads(poll.whole())["status"] == "Error"


def test_a_webhook_tells_of_a_picture_that_could_not_be_fetched(post: Posting) -> None:
    here = post(status(404))
    submit(here, image_prompt=URL, webhook_url=f"https://{HOST}/hook")
    here.prepare()
    here.receiver.behave = answer_ok
    here.deliver()
    told = json.loads(here.receiver.seen[-1].body)
    assert (told["status"], told["cost"]) == ("Error", 0.0)


def test_the_same_url_is_the_same_request(post: Posting) -> None:
    here = post(shows(FILE))
    body = {"prompt": "x", "image_prompt": URL}
    first = here.server.post("/v1/flux-dev", body, idempotency_key="k").json()
    assert here.server.post("/v1/flux-dev", body, idempotency_key="k").json() == first
    other = here.server.post("/v1/flux-dev", {**body, "image_prompt": f"{URL}2"}, idempotency_key="k")
    assert other.status_code == 422
    here.prepare()
    again = here.server.post("/v1/flux-dev", body, idempotency_key="k").json()
    assert (again["id"], again["input_mp"]) == (first["id"], 0.07)


def test_a_courier_that_is_killed_over_a_picture_costs_nothing(post: Posting) -> None:
    arrived = asyncio.Event()

    async def behave(seen: Seen, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await never_answers(seen, writer)

    here = post(behave)
    task = submit(here, image_prompt=URL)
    here.begin_preparing(arrived)
    here.server.run(here.kill_courier())
    here.server.run(here.preparer.settled(10.0))
    assert here.server.poll(task)["status"] == "Pending"
    here.receiver.behave = shows(FILE)
    here.server.run(here.start_courier())
    wait(here)
    here.prepare()
    here.server.draw()
    assert here.server.poll(task)["status"] == "Ready"


def test_neither_urls_nor_what_they_brought_are_logged_or_left_in_the_books(
    post: Posting, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    here = post(shows(FILE))
    good = submit(here, image_prompt=URL)
    here.prepare()
    here.receiver.behave = status(404)
    submit(here, image_prompt=f"{URL}&more")
    here.prepare()
    here.server.draw()
    assert here.server.poll(good)["status"] == "Ready"
    assert "hush" not in caplog.text
    assert [record.getMessage() for record in caplog.records if "prepared" in record.getMessage()] == ["Task prepared"]
    with sqlite3.connect(here.server.folder / "fluxserve.db") as database:
        dump = "\n".join(database.iterdump())
    database.close()
    assert "hush" not in dump
