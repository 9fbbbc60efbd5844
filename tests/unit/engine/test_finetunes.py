"""Which fine-tunes a folder offers, and that no name leads out of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from fluxserve.engine.finetunes import Finetunes
from fluxserve.errors import UnknownFinetune


def put(folder: Path, name: str, content: bytes = b"weights") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_files_of_the_folder_and_of_the_folders_in_it_are_offered(tmp_path: Path) -> None:
    for name in ("b.safetensors", "studio/a.safetensors", "notes.txt", ".hidden.safetensors", "a/b/c.safetensors"):
        put(tmp_path, name)
    finetunes = Finetunes(tmp_path)
    assert finetunes.names == ("b", "studio/a")
    assert finetunes.file("studio/a") == tmp_path / "studio" / "a.safetensors"


def test_the_sha256_is_that_of_the_file_as_it_is_now(tmp_path: Path) -> None:
    file, finetunes = put(tmp_path, "a.safetensors"), Finetunes(tmp_path)
    assert finetunes.sha256("a") == hashlib.sha256(b"weights").hexdigest()
    before = file.stat()
    put(tmp_path, "a.safetensors", b"another")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as large and as old as before
    assert finetunes.sha256("a") == hashlib.sha256(b"another").hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "c",
        "../secret",
        "/etc/passwd",
        "studio/../b",
        "a/b/c",
        ".hidden",
        "b.safetensors",
        "b\0",
        "b\n",
        "ß",
        "x" * 256,
    ],
)
def test_other_names_are_unknown_and_those_there_are_are_named(tmp_path: Path, name: str) -> None:
    put(tmp_path, "secret.safetensors")
    put(tmp_path, "loras/b.safetensors")
    put(tmp_path, "loras/.hidden.safetensors")
    with pytest.raises(UnknownFinetune, match=r"There are: b\.") as unknown:
        Finetunes(tmp_path / "loras").file(name)
    assert "secret" not in unknown.value.message


def test_without_a_folder_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownFinetune, match="`finetunes`"):
        Finetunes(None).sha256("a")
    with pytest.raises(UnknownFinetune, match="is empty"):
        Finetunes(tmp_path / "none").file("a")
    assert Finetunes(None).names == ()
