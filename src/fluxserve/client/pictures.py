"""Pictures: one that was drawn, as a value to keep, show and go on from; and those that requests bring."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fluxserve.client.answers import Result
from fluxserve.client.errors import ClientError

if TYPE_CHECKING:
    from PIL.Image import Image

_MEDIA_TYPES = {".jpeg": "image/jpeg", ".jpg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}


@runtime_checkable
class _Saves(Protocol):
    """As Pillow's images do."""

    def save(self, file: io.BytesIO, name: str, /) -> None:
        """Write a file of that format."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A downloaded picture and where it came from.

    >>> apple = generate("a red apple", width=256, height=256, seed=7)
    >>> apple.seed, apple.cost
    (7, 2.5)
    >>> apple.save("apple.jpeg")
    PosixPath('apple.jpeg')
    >>> apple.pil().size
    (256, 256)
    """

    data: bytes
    media_type: str
    result: Result

    @property
    def seed(self) -> int:
        """That draws it again."""
        return self.result.seed

    @property
    def prompt(self) -> str:
        """That was drawn."""
        return self.result.prompt

    @property
    def cost(self) -> float | None:
        """In credits; None where the server does not say."""
        return self.result.cost

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the server did not do as asked."""
        return self.result.warnings

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the file as it came, which keeps what it says of its origin; returns its path.

        Another suffix than that of its format makes another file of it, with Pillow, and that says nothing of it.
        """
        target = Path(path)
        wanted = _MEDIA_TYPES.get(target.suffix.lower())
        if wanted is None or wanted == self.media_type.partition(";")[0]:
            target.write_bytes(self.data)
        else:
            self.pil().save(target)
        return target

    def pil(self) -> Image:
        """As an image of Pillow, which has to be installed."""
        try:
            from PIL import Image
        except ImportError:
            raise ClientError("pil() needs Pillow: pip install pillow.") from None
        return Image.open(io.BytesIO(self.data))

    def _repr_mimebundle_(self, **_: object) -> dict[str, bytes]:
        """How notebooks show it."""
        return {self.media_type.partition(";")[0]: self.data}

    def _repr_png_(self) -> bytes:
        """The same, for those that know nothing but PNG."""
        file = io.BytesIO()
        self.pil().save(file, "PNG")
        return file.getvalue()


def encoded(value: object) -> object:
    """A parameter as a request brings it: files, bytes and pictures as base64, all else as it is."""
    if isinstance(value, Picture):
        value = value.data
    elif isinstance(value, PathLike):
        value = Path(value).read_bytes()
    elif isinstance(value, _Saves):
        file = io.BytesIO()
        value.save(file, "PNG")
        value = file.getvalue()
    return base64.b64encode(value).decode() if isinstance(value, bytes | bytearray) else value
