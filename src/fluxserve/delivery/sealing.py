"""Secrets of callers at rest: AES-256-GCM under a key that is not in the database, each bound to what it belongs to.

What it does not know: what the secrets are used for, or where they lie.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_NONCE = 12


class Sealer:
    """Seals and opens texts; `secret` is the server's own."""

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(hmac.digest(secret, b"fluxserve sealed secrets", "sha256"))

    def seal(self, text: str, owner: str) -> str:
        """The text, unreadable, and of use for this owner alone."""
        nonce = secrets.token_bytes(_NONCE)
        sealed = self._cipher.encrypt(nonce, text.encode(errors="surrogatepass"), owner.encode())
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, owner: str) -> str | None:
        """The text that was sealed for this owner; None: it was not, or under another key."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return self._cipher.decrypt(raw[:_NONCE], raw[_NONCE:], owner.encode()).decode(errors="surrogatepass")
        except (binascii.Error, InvalidTag, ValueError):
            return None
