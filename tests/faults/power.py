"""What is on a disk after power was lost: every call on files is recorded, and replayed as far as it was synced.

`strace` writes down each call of the server and its workers with its data. Of what was written to a file, what was
there before its last fsync began is on the disk; of the entries of a folder, those that were there before that of the
folder's fsync. The rest is lost, or kept by chance: write by write, sector by sector, entry by entry, in any order.
Not modelled: disks that lie about their flushes, sectors that are torn themselves, mapped memory (SQLite's -shm file is
mapped, and made anew at every start).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

SECTOR = 512
_CALLS = (
    "openat,creat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,mkdir,mkdirat,"
    "link,linkat,symlink,symlinkat,pwritev,pwritev2,writev,fallocate,copy_file_range,truncate"
)
#: Calls that the replay does not know; a server that makes them on its data would be replayed wrongly.
_UNKNOWN = ("symlink", "symlinkat", "writev", "pwritev", "pwritev2", "fallocate", "copy_file_range", "truncate")
#: Calls that name their files, beside those that have them open.
_NAMING = (
    "openat", "creat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "link", "linkat",
    "symlink", "symlinkat", "truncate",
)  # fmt: skip
_LINE = re.compile(r"^(\d+) +(\d+\.\d+) (.*)$")
_CALL = re.compile(r"^(\w+)\((.*)\) += (-?\d+)[^<]*(?:<[^>]*>)?.*<(\d+\.\d+)>$")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_PLACE = re.compile(r"<((?:\\x[0-9a-f]{2})+)>")


def missing() -> str:
    """Why nothing can be recorded here; empty: it can."""
    if shutil.which("strace") is None:
        return "needs strace"
    tried = subprocess.run(["strace", "-f", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "strace may not look at processes here"


def recording(to: Path) -> tuple[str, ...]:
    """What to put in front of a command."""
    return ("strace", "-f", "-ttt", "-T", "-xx", "-y", "-s", str(2**24), "-e", f"trace={_CALLS}", "-o", str(to))


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One that has succeeded, on files below the folder. Seconds since the epoch; paths are relative to the folder."""

    name: str
    began: float
    ended: float
    path: str
    other: str = ""
    data: bytes = b""
    offset: int | None = None
    flags: str = ""
    length: int = 0


def calls(record: Path, folder: Path) -> list[Call]:
    """In the order in which they ended."""
    found = [call for line in _whole(record) if (call := _call(*line, folder)) is not None]
    return sorted(found, key=lambda one: one.ended)


def _whole(record: Path) -> Iterator[tuple[float, str]]:
    """Calls as one line each, with the time they began: what another thread interrupted is put together."""
    begun: dict[str, tuple[float, str]] = {}
    with record.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if (parts := _LINE.match(line.rstrip("\n"))) is None:
                continue
            pid, at, text = parts.groups()
            if text.endswith("<unfinished ...>"):
                begun[pid] = float(at), text.removesuffix("<unfinished ...>").rstrip()
            elif text.startswith("<... "):
                first = begun.pop(pid, None)
                if first is not None:
                    yield first[0], first[1] + text.partition(" resumed>")[2]
            else:
                yield float(at), text


def _call(began: float, text: str, folder: Path) -> Call | None:
    parts = _CALL.match(text)
    if parts is None:
        return None
    name, arguments, result, seconds = parts[1], parts[2], int(parts[3]), float(parts[4])
    if result < 0:
        return None
    places = [_decoded(place) for place in _PLACE.findall(arguments)]
    texts = [_decoded(one) for one, _ in _TEXT.findall(arguments)]
    named = name in _NAMING
    base = places[0] if places and (name.endswith("at") or name == "renameat2") else b"/"
    given = texts if named else places[:1]
    paths = [_below(folder, base if named else b"/", one) for one in given]
    path = next((one for one in paths if one is not None), None)
    if path is None:
        return None
    assert name not in _UNKNOWN, f"{name} on {path} is not modelled"
    assert not any(cut for _, cut in _TEXT.findall(arguments)), "the record lacks data"
    numbers = re.findall(r", (\d+)(?=,|$)", arguments)
    return Call(
        name=name, began=began, ended=began + seconds, path=path,
        other=(paths[-1] or "") if named and len(paths) > 1 else "",
        data=texts[0][:result] if name in ("write", "pwrite64") and texts else b"",
        offset=int(numbers[-1]) if name == "pwrite64" else None,
        flags=arguments.rpartition('"')[2] if name == "openat" else "",
        length=int(numbers[-1]) if name == "ftruncate" else 0,
    )  # fmt: skip


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _below(folder: Path, base: bytes, path: bytes) -> str | None:
    """Relative to the folder; None: it is elsewhere."""
    whole = Path(base.decode(errors="replace")) / path.decode(errors="replace")
    return str(whole.relative_to(folder)) if whole.is_relative_to(folder) else None


@dataclass(slots=True, eq=False)
class _File:
    """What was written to it and when, newest last; `synced`: what is on the disk in any case."""

    synced: bytes = b""
    written: list[tuple[float, int, bytes | None]] = field(default_factory=list)
    position: int = 0

    def sync(self, began: float) -> None:
        """What was written before is there from now on."""
        self.synced = _applied(self.synced, [one for one in self.written if one[0] <= began])
        self.written = [one for one in self.written if one[0] > began]

    def left(self, rng: Random | None) -> bytes:
        """After the loss; `rng`: what is kept by chance."""
        return _applied(self.synced, self.written if rng is None else list(_by_chance(self.written, rng)))


@dataclass(slots=True)
class Disk:
    """A folder's files, as they are in memory and as they are on the disk.

    `lies`: nothing that is asked to be synced is.
    """

    lies: bool = False
    names: dict[str, _File | None] = field(default_factory=dict)
    #: By folder, its entries on the disk, and those changes that are not there yet: a name, and what it stands for.
    entries: dict[str, dict[str, _File | None]] = field(default_factory=dict)
    changes: dict[str, list[tuple[float, str, _File | str | None]]] = field(default_factory=dict)

    def make(self, call: Call) -> None:
        """A call has ended."""
        match call.name:
            case "openat" | "creat":
                self._open(call)
            case "write":
                if (file := self.names.get(call.path)) is not None:
                    file.written.append((call.ended, file.position, call.data))
                    file.position += len(call.data)
            case "pwrite64":
                if (file := self.names.get(call.path)) is not None:
                    file.written.append((call.ended, call.offset or 0, call.data))
            case "ftruncate":
                if (file := self.names.get(call.path)) is not None:
                    file.written.append((call.ended, call.length, None))
            case "mkdir" | "mkdirat" if call.path != ".":  # the folder itself is there
                self._enter(call, call.path, None)
            case "rename" | "renameat" | "renameat2":
                self._enter(call, call.other, self.names.pop(call.path, None))
                self._leave(call, call.path)
            case "link" | "linkat":
                self._enter(call, call.other, self.names.get(call.path))
            case "unlink" | "unlinkat":
                self.names.pop(call.path, None)
                self._leave(call, call.path)
            case "fsync" | "fdatasync" if not self.lies:
                if (file := self.names.get(call.path)) is not None:
                    file.sync(call.began)
                else:
                    self._sync_folder(call)

    def _open(self, call: Call) -> None:
        if call.path not in self.names:
            if "O_CREAT" in call.flags or call.name == "creat":
                self._enter(call, call.path, _File())
            return
        file = self.names[call.path]
        if file is not None and "O_TRUNC" in call.flags:
            file.written.append((call.ended, 0, None))
        if file is not None and "O_WRONLY" in call.flags:
            file.position = 0

    def _enter(self, call: Call, path: str, file: _File | None) -> None:
        self.names[path] = file
        folder, _, name = path.rpartition("/")
        self.changes.setdefault(folder or ".", []).append((call.ended, name, file if file is not None else "folder"))

    def _leave(self, call: Call, path: str) -> None:
        folder, _, name = path.rpartition("/")
        self.changes.setdefault(folder or ".", []).append((call.ended, name, None))

    def _sync_folder(self, call: Call) -> None:
        changes = self.changes.get(call.path, [])
        entries = self.entries.setdefault(call.path, {})
        for _, name, meant in (one for one in changes if one[0] <= call.began):
            _change(entries, name, meant)
        self.changes[call.path] = [one for one in changes if one[0] > call.began]

    def leave(self, to: Path, rng: Random | None = None) -> None:
        """What is left after the loss, as a folder; `rng`: what is kept by chance, or nothing that was not synced."""
        self._leave_folder(".", to, rng)

    def _leave_folder(self, folder: str, to: Path, rng: Random | None) -> None:
        to.mkdir(mode=0o700, parents=True, exist_ok=True)
        entries = dict(self.entries.get(folder, {}))
        for _, name, meant in self.changes.get(folder, []):
            if rng is not None and rng.random() < _KEPT:
                _change(entries, name, meant)
        for name, file in entries.items():
            if name.endswith("-shm"):
                continue
            if file is None:
                self._leave_folder(name if folder == "." else f"{folder}/{name}", to / name, rng)
            else:
                (to / name).touch(mode=0o600)
                (to / name).write_bytes(file.left(rng) if rng is not None else file.synced)


#: Of what was not synced, the share that is on the disk by chance.
_KEPT = 0.5


def _change(entries: dict[str, _File | None], name: str, meant: _File | str | None) -> None:
    if meant is None:
        entries.pop(name, None)
    else:
        entries[name] = None if isinstance(meant, str) else meant


def _applied(data: bytes, written: list[tuple[float, int, bytes | None]]) -> bytes:
    content = bytearray(data)
    for _, offset, piece in written:
        if piece is None:
            del content[offset:]
            content.extend(bytes(offset - len(content)))
        else:
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(piece)] = piece
    return bytes(content)


def _by_chance(
    written: list[tuple[float, int, bytes | None]], rng: Random
) -> Iterator[tuple[float, int, bytes | None]]:
    for at, offset, piece in written:
        if piece is None:
            if rng.random() < _KEPT:
                yield at, offset, None
            continue
        begin = 0
        while begin < len(piece):
            end = min(len(piece), (offset + begin) // SECTOR * SECTOR + SECTOR - offset)
            if rng.random() < _KEPT:
                yield at, offset + begin, piece[begin:end]
            begin = end


def lost(recorded: list[Call], at: float, to: Path, *, rng: Random | None, lies: bool = False) -> None:
    """The folder, empty when the recording began, as power lost at that moment leaves it."""
    disk = Disk(lies=lies)
    for call in recorded:
        if call.ended > at:
            break
        disk.make(call)
    disk.leave(to, rng)
