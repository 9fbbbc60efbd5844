import errno
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fluxserve.delivery.storage import LocalStorage, new_object_name
from fluxserve.errors import PictureGone

NAME = "ab/" + "ab" * 16 + ".jpeg"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_nobody_else_may_read_the_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "pictures"
    folder.mkdir(parents=True, mode=0o755)
    LocalStorage(folder).put(NAME, b"x")
    assert mode(folder) == mode(folder / "tmp") == mode(folder / "ab") == 0o700
    assert mode(folder / NAME) == 0o600


def test_a_put_leaves_nothing_but_the_picture(tmp_path: Path) -> None:
    LocalStorage(tmp_path).put(NAME, b"x")
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [Path(NAME)]


def test_links_in_the_folder_are_not_followed(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "pictures")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (tmp_path / "pictures" / "ab").mkdir()
    (tmp_path / "pictures" / NAME).symlink_to(secret)
    with pytest.raises(PictureGone):
        storage.open(NAME)
    shutil.move(tmp_path / "pictures" / "ab", tmp_path / "ab")
    (tmp_path / "ab" / Path(NAME).name).unlink()
    (tmp_path / "ab" / Path(NAME).name).write_text("secret")
    (tmp_path / "pictures" / "ab").symlink_to(tmp_path / "ab")
    with pytest.raises(PictureGone):
        storage.open(NAME)


def test_only_pictures_are_listed_by_their_age(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    young = new_object_name("png")
    for name in (NAME, young):
        storage.put(name, b"x")
    os.utime(tmp_path / NAME, (1000, 1000))
    (tmp_path / "ab" / "notes.txt").touch()
    os.utime(tmp_path / "ab" / "notes.txt", (1000, 1000))
    assert list(storage.names_older_than(1001)) == [NAME]
    assert list(storage.names_older_than(1000)) == []


def test_leftovers_of_a_dead_server_are_swept_and_a_running_put_is_not(tmp_path: Path) -> None:
    LocalStorage(tmp_path)
    old, running = tmp_path / "tmp" / "old", tmp_path / "tmp" / "running"
    for path in (old, running):
        path.write_bytes(b"half a pict")
    os.utime(old, (time.time() - 4000,) * 2)
    LocalStorage(tmp_path)
    assert not old.exists()
    assert running.exists()


FILL = """
import os
from pathlib import Path
from fluxserve.delivery.storage import LocalStorage, new_object_name
from fluxserve.errors import DiskFull

folder = Path(os.environ["FOLDER"])
storage = LocalStorage(folder)
kept = []
try:
    for _ in range(100):
        name = new_object_name("png")
        storage.put(name, b"x" * 20_000)
        kept.append(name)
except DiskFull as error:
    assert "space" in error.message, error.message
assert 0 < len(kept) < 100
assert not list((folder / "tmp").iterdir())
assert all((folder / name).read_bytes() == b"x" * 20_000 for name in kept)
assert sorted(storage.names_older_than(1e12)) == sorted(kept)
storage.delete(kept.pop())
storage.put(new_object_name("png"), b"x" * 20_000)
"""


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    small = f"mount -t tmpfs -o size=256k tmpfs {shlex.quote(str(tmp_path))}"
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, small], capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    environment = {**os.environ, "FOLDER": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = f'{small} && exec {shlex.quote(sys.executable)} -c "$SCRIPT"'
    done = subprocess.run(
        [*alone, script], env={**environment, "SCRIPT": FILL}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_other_failures_of_the_disk_are_not_called_a_full_disk(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / "ab").write_text("a file where a folder belongs")
    with pytest.raises(OSError) as failure:
        storage.put(NAME, b"x")
    assert failure.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert not list((tmp_path / "tmp").iterdir())
    with pytest.raises(PictureGone):
        storage.open(NAME)
