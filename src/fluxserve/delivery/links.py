"""Signed links: to one picture for a while, and to one task for as long as it lives; and cursors of lists.

Every signature is HMAC-SHA256 over its purpose and fields, each with its length in front, so that no signature
serves another purpose and no two field lists read the same. The first key signs, all keys verify: to rotate, put a
new key in front and drop the old one when its links have expired.
What it does not know: the clock (`now` is an argument), storage and HTTP.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from fluxserve.errors import ConfigurationError, LinkRefused

_VERSION = b"\x01"
_KEY_ID, _EXPIRY, _RANDOM, _MAC, _POSITION = 4, 5, 16, 16, 8  # bytes
#: A multiple of 3, so that base64 has no spare bits in which two texts could mean the same token.
_TOKEN = len(_VERSION) + _KEY_ID + _EXPIRY + _RANDOM + _MAC
_LEAST_KEY = 32
#: How far the clocks of two servers may differ, in seconds.
_SKEW = 60
_NOT_VALID = "This link is not valid. Use it exactly as the task's answer gave it, or poll the task again."


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureLink:
    """A link that was found to be good: what it leads to, and until when (Unix seconds)."""

    object_name: str
    expires_at: int


class LinkSigner:
    """Signs and opens links; `max_ttl` is the longest life, in seconds, that an opened link may have left."""

    def __init__(self, keys: Sequence[bytes], max_ttl: int) -> None:
        if not keys or min(map(len, keys)) < _LEAST_KEY:
            raise ConfigurationError(f"Links need at least one signing key of at least {_LEAST_KEY} bytes.")
        self._keys = {_key_id(key): key for key in keys}
        self._id, self._key = next(iter(self._keys.items()))
        self._max_ttl = max_ttl

    def sign_picture(self, object_name: str, expires_at: int) -> str:
        """The path of a link to `object_name` until `expires_at`, such as `/results/TOKEN/sample.jpeg`."""
        stem, _, suffix = object_name.rpartition(".")
        claim = _VERSION + self._id + expires_at.to_bytes(_EXPIRY) + bytes.fromhex(stem[3:])
        mac = signature(self._key, b"picture", claim, suffix.encode())
        return f"/results/{base64.urlsafe_b64encode(claim + mac).decode()}/sample.{suffix}"

    def open_picture(self, token: str, name: str, now: float) -> PictureLink:
        """What the two parts of a link's path lead to. Raises LinkRefused: not valid, or expired."""
        stem, _, suffix = name.rpartition(".")
        claim, mac = _split(token)
        key = self._keys.get(claim[1 : 1 + _KEY_ID])
        if (
            key is None
            or stem != "sample"
            or not hmac.compare_digest(mac, signature(key, b"picture", claim, _bytes(suffix)))
        ):
            raise LinkRefused(_NOT_VALID)
        expires_at = int.from_bytes(claim[1 + _KEY_ID : -_RANDOM])
        random = claim[-_RANDOM:].hex()
        if expires_at > now + self._max_ttl + _SKEW:
            raise LinkRefused(_NOT_VALID)
        if now >= expires_at:
            raise LinkRefused(f"This link expired {now - expires_at:.0f} s ago. Poll the task again for a new one.")
        return PictureLink(object_name=f"{random[:2]}/{random}.{suffix}", expires_at=expires_at)

    def capability(self, task_id: str) -> str:
        """22 url-safe characters that let their holder poll `task_id` without a key."""
        return _capability(self._key, task_id)

    def is_capability(self, task_id: str, text: str) -> bool:
        """Whether `text` is a capability for `task_id`, compared in constant time."""
        given = _bytes(text)
        return any(hmac.compare_digest(_capability(key, task_id).encode(), given) for key in self._keys.values())

    def cursor(self, account_id: str, position: int) -> str:
        """A place in the account's list, in 32 url-safe characters.

        Nobody can read the position: it counts the tasks of all accounts.
        """
        return base64.urlsafe_b64encode(_sealed(self._key, account_id, position.to_bytes(_POSITION))).decode()

    def open_cursor(self, account_id: str, text: str) -> int | None:
        """The place that `text` stands for; None: it is no cursor of this account."""
        try:
            raw = base64.urlsafe_b64decode(_bytes(text))
        except binascii.Error:
            return None
        if len(raw) != _POSITION + _MAC or base64.urlsafe_b64encode(raw) != _bytes(text):
            return None
        for key in self._keys.values():
            position = _masked(key, raw[_POSITION:], raw[:_POSITION])
            if hmac.compare_digest(_sealed(key, account_id, position), raw):
                return int.from_bytes(position)
        return None


def _sealed(key: bytes, account_id: str, position: bytes) -> bytes:
    """The masked position and its MAC, which the mask follows from."""
    mac = signature(key, b"cursor", _bytes(account_id), position)
    return _masked(key, mac, position) + mac


def _masked(key: bytes, mac: bytes, position: bytes) -> bytes:
    mask = signature(key, b"cursor mask", mac)
    return bytes(one ^ other for one, other in zip(position, mask, strict=False))


def signature(key: bytes, purpose: bytes, *fields: bytes) -> bytes:
    """128 bits over the purpose and each field with its length in front."""
    parts = [b"%d:%b" % (len(field), field) for field in (purpose, *fields)]
    return hmac.digest(key, b"".join(parts), "sha256")[:_MAC]


def _capability(key: bytes, task_id: str) -> str:
    mac = signature(key, b"capability", _bytes(task_id))
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(b"fluxserve link key id" + key).digest()[:_KEY_ID]


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _split(token: str) -> tuple[bytes, bytes]:
    """Claim and MAC; only the one spelling that `sign_picture` writes is read."""
    try:
        raw = base64.urlsafe_b64decode(_bytes(token))
    except binascii.Error:
        raise LinkRefused(_NOT_VALID) from None
    if len(raw) != _TOKEN or raw[:1] != _VERSION or base64.urlsafe_b64encode(raw) != _bytes(token):
        raise LinkRefused(_NOT_VALID)
    return raw[:-_MAC], raw[-_MAC:]
