"""The server's own secrets, in one file of the data folder that only its user may read.

Made at the first start and never changed by the server. Without it every API key and link made before is worthless,
so a file that cannot be read stops the start instead of being made anew.
What it does not know: what the secrets are used for.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fluxserve.delivery.files import sync_folder, write_new
from fluxserve.errors import ConfigurationError

FILE_NAME = "secrets.json"
_LEAST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """`pepper` is mixed into API keys before they are stored; the first of `link_keys` signs, all verify."""

    pepper: bytes
    link_keys: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"Secrets(pepper=***, link_keys=*** ({len(self.link_keys)}))"


def load_or_create(data_folder: Path) -> Secrets:
    """Read the secrets, or make them at the first start. Raises ConfigurationError."""
    path = data_folder / FILE_NAME
    if not path.exists():
        _create(path)
    return _read(path)


def _read(path: Path) -> Secrets:
    try:
        with path.open("rb") as file:
            is_private = not os.fstat(file.fileno()).st_mode & 0o077
            content = file.read()
    except OSError:
        raise ConfigurationError(f"The secrets in {path} cannot be read: check who owns the file.") from None
    if not is_private:
        raise ConfigurationError(f"The secrets in {path} can be read by other users. Run: chmod 600 {path}")
    try:
        found = msgspec.json.decode(content, type=Secrets)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise _damaged(path) from None
    if not found.link_keys or min(map(len, (found.pepper, *found.link_keys))) < _LEAST_BYTES:
        raise _damaged(path)
    return found


def _damaged(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"The secrets in {path} are damaged. Restore the file from a backup, or delete it: then the server makes new "
        "ones, and every API key and link made before stops working."
    )


def _create(path: Path) -> None:
    """Write beside and link into place: whole or not at all, and of two starts at once the first one wins."""
    made = Secrets(pepper=secrets.token_bytes(_LEAST_BYTES), link_keys=(secrets.token_bytes(_LEAST_BYTES),))
    tmp = path.with_name(f".{FILE_NAME}.{secrets.token_hex(8)}")
    try:
        try:
            write_new(tmp, msgspec.json.encode(made))
            with suppress(FileExistsError):
                path.hardlink_to(tmp)
        finally:
            tmp.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError:
        raise ConfigurationError(f"The secrets cannot be written to {path}: check the data folder.") from None
