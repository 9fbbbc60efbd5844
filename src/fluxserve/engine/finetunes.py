"""Fine-tunes: the LoRA files of one folder, by the names that requests use for them.

`style.safetensors` is called `style`, `studio/style.safetensors` is `studio/style`. What decides a picture is what
a file holds, so its sha256 travels with the request, and whoever draws it checks that it has the same file.
Needs no torch, so the API process may ask.
What it does not know: what is in a file, which pictures use it.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import defaultdict
from pathlib import Path

from fluxserve.errors import UnknownFinetune

SUFFIX = ".safetensors"
#: No name leads out of the folder or to a hidden file, or is longer than a file's may be.
_ID = re.compile(r"[\w-][\w.-]{0,199}(/[\w-][\w.-]{0,199})?", re.ASCII)
_NAMED_AT_MOST = 10


class Finetunes:
    """What lies in `folder`; None: there are none. Files may come and go while it is used, from any thread."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder.expanduser()
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}
        #: Of each file, so that whoever names a small one does not wait for a large one.
        self._locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be asked for."""
        if self._folder is None:
            return ()
        files = sorted((*self._folder.glob(f"*{SUFFIX}"), *self._folder.glob(f"*/*{SUFFIX}")))
        names = (file.relative_to(self._folder).as_posix().removesuffix(SUFFIX) for file in files if file.is_file())
        return tuple(name for name in names if _ID.fullmatch(name))

    def file(self, name: str) -> Path:
        """Where it lies. Raises UnknownFinetune, naming those there are."""
        if self._folder is not None and _ID.fullmatch(name):
            file = self._folder / f"{name}{SUFFIX}"
            if file.is_file():
                return file
        raise self._unknown()

    def sha256(self, name: str) -> str:
        """Of the file's bytes, which are read again when it has changed. Raises UnknownFinetune."""
        file = self.file(name)
        try:
            return self._digest(file)
        except OSError:  # it went meanwhile, or is not ours to read
            raise self._unknown() from None

    def _digest(self, file: Path) -> str:
        with self._locks[file]:
            found = file.stat()
            state = found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
            known = self._known.get(file)
            if known is None or known[0] != state:
                with file.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
                known = self._known[file] = state, digest
            return known[1]

    def _unknown(self) -> UnknownFinetune:
        return UnknownFinetune(f"Finetune not found or not ready. {self._there_are()}")

    def _there_are(self) -> str:
        if self._folder is None:
            return "The setting `finetunes` names the folder for LoRA files."
        names = self.names
        more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
        return f"There are: {', '.join(names[:_NAMED_AT_MOST])}{more}." if names else "Its folder is empty."
