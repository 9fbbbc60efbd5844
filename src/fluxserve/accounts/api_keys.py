"""API keys: 256 random bits, shown once, stored only as an HMAC under a pepper kept outside the database.

    fx_live_<43 characters>_<6 characters of CRC-32>

The checksum lets secret scanners recognise a leaked key; it protects nothing. A slow hash would: nothing, at 256
bits, and would let anyone keep the server busy with wrong keys.
"""

from __future__ import annotations

import hmac
import secrets
import zlib
from dataclasses import dataclass

_PREFIX = "fx_live_"
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A key as the server knows it: everything but the key itself. None: no limit.

    `max_active`: unfinished tasks. `max_work`: their predicted work together, in TFLOP, where there are several.
    While others wait too, its tasks get a share of the drawing in proportion to its `weight`.
    """

    id: str
    account_id: str
    name: str
    max_active: int | None
    max_work: float | None
    rate_per_minute: int | None
    weight: float
    created_at: float
    revoked_at: float | None

    @property
    def is_revoked(self) -> bool:
        """The key opens nothing any more."""
        return self.revoked_at is not None


def new_key() -> str:
    """A fresh key. Whoever holds the text can use it: print it once, store it never."""
    body = secrets.token_urlsafe(32)
    return f"{_PREFIX}{body}_{_checksum(body)}"


def new_key_id() -> str:
    """A short public name for a key, safe to log."""
    return secrets.token_hex(4)


def digest(key: str, pepper: bytes) -> bytes:
    """What is stored and looked up instead of the key."""
    return hmac.digest(pepper, key.encode("utf-8", "surrogateescape"), "sha256")


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    text = ""
    for _ in range(6):
        number, remainder = divmod(number, 62)
        text = _DIGITS[remainder] + text
    return text
