"""Previews are kept for tasks that somebody asked about, the newest of each, as far as the memory goes."""

from __future__ import annotations

from fluxserve.service.previews import MAX_PREVIEW, Previews


def test_only_what_was_asked_for_is_kept() -> None:
    previews = Previews(100)
    previews.put("a", b"1")
    assert previews.get("a") is None
    assert previews.want("a")
    assert not previews.want("a")
    previews.put("a", b"1")
    previews.put("a", b"2")
    assert previews.get("a") == b"2"
    assert (previews.is_wanted("a"), previews.is_wanted("b")) == (True, False)


def test_what_has_ended_is_forgotten() -> None:
    previews = Previews(100)
    previews.want("a")
    previews.put("a", b"1")
    previews.forget("a")
    previews.forget("never heard of")
    assert previews.get("a") is None
    previews.put("a", b"2")
    assert previews.get("a") is None
    assert previews.want("a")


def test_those_that_were_put_longest_ago_go_when_there_are_too_many() -> None:
    previews = Previews(30)
    for task in "abc":
        previews.want(task)
        previews.put(task, bytes(10))
    previews.put("a", bytes(10))
    previews.want("d")
    previews.put("d", bytes(15))
    kept = [task for task in "abcd" if previews.get(task) is not None]
    assert kept == ["a", "d"]
    previews.forget("d")
    previews.put("b", bytes(20))
    assert [task for task in "abcd" if previews.get(task) is not None] == ["a", "b"]


def test_a_preview_that_is_no_preview_by_its_size_is_not_kept() -> None:
    previews = Previews(10 * MAX_PREVIEW)
    previews.want("a")
    previews.put("a", bytes(MAX_PREVIEW + 1))
    assert previews.get("a") is None
    small = Previews(10)
    small.want("a")
    small.put("a", bytes(11))
    assert small.get("a") is None


def test_without_memory_nothing_is_wanted() -> None:
    previews = Previews(0)
    assert not previews.want("a")
    assert not previews.is_wanted("a")
