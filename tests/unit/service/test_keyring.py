"""The keyring: keys are found by their text, and closed at once when they are revoked."""

from __future__ import annotations

import hmac

from service_house import House

from builders import NOW, in_event_loop
from fluxserve.accounts import api_keys
from fluxserve.service.keyring import Keyring


async def made(house: House) -> tuple[str, str]:
    """The text and the id of a new key."""
    text, entry = await house.keyring.create(
        name="k", account=None, grant=None, max_active=None, rate_per_minute=None, weight=1.0, now=NOW
    )
    return text, entry.key.id


@in_event_loop
async def test_a_new_key_is_found_by_its_text_and_by_nothing_else(house: House) -> None:
    assert house.keyring.is_empty
    text, key_id = await made(house)
    assert not house.keyring.is_empty
    found = house.keyring.find(text)
    assert found is not None
    assert found.id == key_id
    for other in ("", text[:-1], text + " ", text.lower(), key_id, "fx_live_", "\x00", "é"):
        assert house.keyring.find(other) is None


class Incomparable(str):
    """A text that nothing can be found out about by comparing it."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise AssertionError("the text of a key was compared")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__

    def __hash__(self) -> int:
        raise AssertionError("the text of a key was looked up")


@in_event_loop
async def test_of_a_key_nothing_is_compared_but_its_digest_under_the_pepper(house: House) -> None:
    """What a comparison's time could tell is then of digests that no caller can choose."""
    text, key_id = await made(house)
    found = house.keyring.find(Incomparable(text))
    assert found is not None
    assert found.id == key_id
    for wrong in (text[:-1], text[:-1] + "?", "?" + text[1:], ""):
        assert house.keyring.find(Incomparable(wrong)) is None
    # Keys that share all but a character share nothing of what is looked up: about half of the bits differ.
    near, far = (api_keys.digest(one, b"pepper") for one in (text, text[:-1] + "?"))
    assert 80 < (int.from_bytes(near) ^ int.from_bytes(far)).bit_count() < 176
    assert near == hmac.new(b"pepper", text.encode(), "sha256").digest()


@in_event_loop
async def test_a_revoked_key_opens_nothing_at_once_and_after_a_restart(house: House) -> None:
    text, key_id = await made(house)
    other, _ = await made(house)
    revoked = await house.keyring.revoke(key_id, NOW)
    again = Keyring(house.store, b"pepper")
    await again.load()
    for keyring in (house.keyring, again):
        assert keyring.find(text) is None
        assert keyring.find(other) is not None
    assert revoked is not None
    assert revoked.key.is_revoked
    assert len(await house.keyring.entries()) == 2


@in_event_loop
async def test_an_unknown_key_cannot_be_revoked(house: House) -> None:
    assert await house.keyring.revoke("unknown", NOW) is None


@in_event_loop
async def test_keys_are_found_after_a_restart_with_the_same_pepper_only(house: House) -> None:
    text, _ = await made(house)
    for pepper, known in ((b"pepper", True), (b"another", False)):
        again = Keyring(house.store, pepper)
        await again.load()
        assert (again.find(text) is not None) == known


@in_event_loop
async def test_the_text_of_a_key_is_kept_nowhere(house: House) -> None:
    text, _ = await made(house)
    body = text.removeprefix("fx_live_")[:43].encode()
    await house.store.close()
    files = [path.read_bytes() for path in house.folder.rglob("*") if path.is_file()]
    assert files
    assert not any(body in content for content in files)
    house.open()  # for the check at the end


@in_event_loop
async def test_an_account_of_ones_own_is_made_where_none_is_named(house: House) -> None:
    await made(house)
    await made(house)
    names = {entry.account_name for entry in await house.keyring.entries()}
    assert len(names) == 2
    assert all(name.startswith("account-") for name in names)
