"""Each finished picture is signed before it is stored, in a thread; one that cannot be is no reason to lose a task.

What it does not know: what a signature is made of, and where pictures go.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from fluxserve.catalogue import OutputFormat
from fluxserve.delivery.provenance import Signer
from fluxserve.errors import NotSigned
from fluxserve.store.base import Drawn

UNSIGNED = "This picture has no C2PA manifest: it could not be signed."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A picture as it is delivered; `is_repeatable`: it may answer equal requests too."""

    picture: bytes
    drawn: Drawn
    is_repeatable: bool = True


class Signing:
    """Signs by `signer`; None: pictures are not signed here. `required`: none is delivered without."""

    def __init__(self, signer: Signer | None = None, *, required: bool = False) -> None:
        self._signer = signer
        self._required = required

    @property
    def identity(self) -> str:
        """SHA-256 in hex of the certificate that stands for this installation; empty where nothing is signed."""
        return self._signer.credential.identity if self._signer else ""

    @property
    def anchors(self) -> bytes:
        """What verifies the pictures, in PEM; empty where nothing is signed, or its authority is not known here."""
        return self._signer.credential.anchors if self._signer else b""

    async def seal(self, picture: bytes, suffix: OutputFormat, drawn: Drawn) -> Sealed:
        """The picture, signed. Raises NotSigned where it cannot be and has to."""
        if self._signer is None:
            return Sealed(picture=picture, drawn=drawn)
        try:
            signed = await asyncio.to_thread(self._signer.sign, picture, suffix)
        except NotSigned:
            if self._required:
                raise
            told = replace(drawn, warnings=(*drawn.warnings, UNSIGNED))
            return Sealed(picture=picture, drawn=told, is_repeatable=False)
        return Sealed(picture=signed, drawn=drawn)
