"""Links under attack: nothing but what was signed opens, and only in its time."""

from __future__ import annotations

import base64
import random
import secrets
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxserve.delivery.links import LinkSigner, signature
from fluxserve.delivery.storage import new_object_name
from fluxserve.errors import ConfigurationError, LinkRefused

TTL = 600
OLD, NEW = bytes(range(32)), bytes(range(32, 64))
SIGNER = LinkSigner([NEW], TTL)

object_names = st.builds(
    lambda raw, suffix: f"{raw.hex()[:2]}/{raw.hex()}.{suffix}",
    st.binary(min_size=16, max_size=16),
    st.sampled_from(["jpeg", "png", "webp"]),
)
moments = st.integers(0, 2**38)


def parts(path: str) -> tuple[str, str]:
    _, results, token, name = path.split("/")
    assert results == "results"
    return token, name


def is_open(token: str, name: str, now: float, signer: LinkSigner = SIGNER) -> bool:
    try:
        signer.open_picture(token, name, now)
    except LinkRefused:
        return False
    return True


@given(object_names, moments)
def test_a_link_leads_to_what_was_signed_until_it_expires(object_name: str, now: int) -> None:
    token, name = parts(SIGNER.sign_picture(object_name, now + TTL))
    for age in (0, TTL - 1, TTL - 0.001):
        link = SIGNER.open_picture(token, name, now + age)
        assert (link.object_name, link.expires_at) == (object_name, now + TTL)
    for age in (TTL, TTL + 1, TTL + 10**9):
        with pytest.raises(LinkRefused, match=r"expired .* Poll the task again"):
            SIGNER.open_picture(token, name, now + age)


@example("ab/" + "ab" * 16 + ".png", 1000, TTL + 60)
@example("ab/" + "ab" * 16 + ".png", 1000, TTL + 61)
@given(object_names, moments, st.integers(0, 2**39))
def test_no_link_is_believed_further_ahead_than_links_live(object_name: str, now: int, ahead: int) -> None:
    token, name = parts(SIGNER.sign_picture(object_name, now + ahead))
    assert is_open(token, name, now) == (0 < ahead <= TTL + 60)


@given(object_names, moments)
def test_every_single_changed_bit_is_refused(object_name: str, now: int) -> None:
    token, name = parts(SIGNER.sign_picture(object_name, now + TTL))
    raw = base64.urlsafe_b64decode(token)
    for bit in range(len(raw) * 8):
        changed = (int.from_bytes(raw) ^ 1 << bit).to_bytes(len(raw))
        assert not is_open(base64.urlsafe_b64encode(changed).decode(), name, now)


@given(object_names)
def test_every_changed_character_of_the_path_is_refused(object_name: str) -> None:
    token, name = parts(SIGNER.sign_picture(object_name, TTL))
    for index in range(len(token)):
        for bit in range(8):
            assert not is_open(token[:index] + chr(ord(token[index]) ^ 1 << bit) + token[index + 1 :], name, 0)
    for index in range(len(name)):
        for bit in range(8):
            assert not is_open(token, name[:index] + chr(ord(name[index]) ^ 1 << bit) + name[index + 1 :], 0)


@given(object_names, st.text(max_size=3), st.data())
def test_a_token_has_only_one_spelling(object_name: str, junk: str, data: st.DataObject) -> None:
    token, name = parts(SIGNER.sign_picture(object_name, TTL))
    at = data.draw(st.integers(0, len(token)))
    assert is_open(token[:at] + junk + token[at:], name, 0) == (junk == "")
    assert not is_open(token.rstrip("A=") + "==", name, 0)
    assert "-" not in token or not is_open(token.replace("-", "+"), name, 0)
    assert "_" not in token or not is_open(token.replace("_", "/"), name, 0)


@given(st.text(max_size=80), st.text(max_size=20))
def test_any_text_at_all_is_refused_and_nothing_worse(token: str, name: str) -> None:
    assert not is_open(token, name, 0)
    assert not is_open(token, "sample.jpeg", 0)


def refuse_random_tokens(count: int) -> None:
    token, name = parts(SIGNER.sign_picture(new_object_name("png"), TTL))
    head = base64.urlsafe_b64decode(token)[:-16]
    rng = random.Random(7)
    for _ in range(count // 2):
        assert not is_open(base64.urlsafe_b64encode(rng.randbytes(42)).decode(), name, 0)
        assert not is_open(base64.urlsafe_b64encode(head + rng.randbytes(16)).decode(), name, 0)


def test_twenty_thousand_random_tokens_are_refused() -> None:
    refuse_random_tokens(20_000)


@pytest.mark.long
def test_two_hundred_thousand_random_tokens_are_refused() -> None:
    refuse_random_tokens(200_000)


def test_the_first_key_signs_and_all_verify() -> None:
    object_name = new_object_name("webp")
    before, during, after = LinkSigner([OLD], TTL), LinkSigner([NEW, OLD], TTL), LinkSigner([NEW], TTL)
    old, new = (parts(signer.sign_picture(object_name, TTL)) for signer in (before, during))
    assert is_open(*old, 0, during)
    assert is_open(*new, 0, during)
    assert is_open(*new, 0, after)
    assert not is_open(*old, 0, after)
    assert not is_open(*new, 0, before)
    capability = before.capability("task")
    assert during.is_capability("task", capability)
    assert not after.is_capability("task", capability)
    assert during.capability("task") == after.capability("task") != capability


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_capability_opens_its_own_task_only(task_id: str, other: str) -> None:
    capability = SIGNER.capability(task_id)
    assert len(capability) == 22
    assert SIGNER.is_capability(task_id, capability)
    assert SIGNER.is_capability(other, capability) == (other == task_id)
    assert not SIGNER.is_capability(task_id, other)


@given(st.uuids())
def test_every_changed_bit_of_a_capability_is_refused(task_id: object) -> None:
    capability = SIGNER.capability(str(task_id))
    for index in range(len(capability)):
        for bit in range(8):
            changed = capability[:index] + chr(ord(capability[index]) ^ 1 << bit) + capability[index + 1 :]
            assert not SIGNER.is_capability(str(task_id), changed)
    for longer in (capability + "=", capability + "==", " " + capability, capability[:-1], ""):
        assert not SIGNER.is_capability(str(task_id), longer)


fields = st.lists(st.binary(max_size=4), max_size=4)


@given(fields, fields)
@example([b"ab", b"c"], [b"a", b"bc"])
@example([b"a"], [b"a", b""])
def test_no_two_purposes_or_field_lists_share_a_signature(one: list[bytes], other: list[bytes]) -> None:
    assert (signature(NEW, b"picture", *one) == signature(NEW, b"picture", *other)) == (one == other)
    assert signature(NEW, b"picture", *one) != signature(NEW, b"capability", *one)
    assert signature(NEW, b"picture", *one) != signature(OLD, b"picture", *one)
    assert len(signature(NEW, b"picture", *one)) >= 16


def test_links_of_one_picture_say_nothing_about_another() -> None:
    tokens = [parts(SIGNER.sign_picture(new_object_name("jpeg"), TTL))[0] for _ in range(100)]
    assert all(one[20:] != other[20:] for one, other in pairwise(sorted(tokens)))


@pytest.mark.parametrize("keys", [[], [b""], [secrets.token_bytes(31)], [OLD, b"short"]])
def test_missing_or_short_keys_are_refused(keys: list[bytes]) -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        LinkSigner(keys, TTL)


@pytest.mark.parametrize("suffix", ["jpeg", "png", "webp"])
def test_the_path_ends_in_a_picture_name_and_has_no_query(suffix: str) -> None:
    path = SIGNER.sign_picture("ab/" + "ab" * 16 + "." + suffix, TTL)
    assert path.endswith(f"/sample.{suffix}")
    assert not set("?#%&= ") & set(path)


positions = st.integers(0, 2**63 - 1)


@given(st.text(max_size=40), positions)
def test_a_cursor_stands_for_its_place_after_a_new_key_came_in_front_too(account: str, position: int) -> None:
    cursor = LinkSigner([OLD], TTL).cursor(account, position)
    assert len(cursor) == 32
    assert LinkSigner([NEW, OLD], TTL).open_cursor(account, cursor) == position
    assert SIGNER.open_cursor(account, cursor) is None


@given(st.text(max_size=40), st.text(max_size=40), positions)
def test_a_cursor_is_of_use_to_one_account(account: str, other: str, position: int) -> None:
    opened = SIGNER.open_cursor(other, SIGNER.cursor(account, position))
    assert opened == (position if account == other else None)


@given(positions, st.integers(0, 31), st.characters(codec="utf-8"))
def test_a_cursor_that_was_changed_is_none(position: int, index: int, letter: str) -> None:
    cursor = SIGNER.cursor("a", position)
    changed = cursor[:index] + letter + cursor[index + 1 :]
    assert SIGNER.open_cursor("a", changed) == (position if changed == cursor else None)


@given(st.text() | st.binary(min_size=24, max_size=24).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_other_text_is_no_cursor(text: str) -> None:
    assert SIGNER.open_cursor("a", text) is None


def test_cursors_of_neighbours_have_nothing_in_common() -> None:
    raw = [base64.urlsafe_b64decode(SIGNER.cursor("a", position)) for position in range(200)]
    for one, other in pairwise(raw):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 6
