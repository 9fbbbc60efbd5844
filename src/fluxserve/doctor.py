"""What would run where on this machine, and what is missing: findings as values."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from fluxserve import __version__, database, engine
from fluxserve.app.folder import database_path, lock_path
from fluxserve.app.licenses import accepted_licenses
from fluxserve.app.signing import own_files
from fluxserve.catalogue import MODELS
from fluxserve.delivery import provenance
from fluxserve.delivery.authority import (
    CERTIFICATES_FILE,
    authority_folder,
    certificates_of,
    identity_of,
    own_credential,
)
from fluxserve.engine import device
from fluxserve.engine.checkpoints import find
from fluxserve.engine.device import Runtime
from fluxserve.engine.planning import fit
from fluxserve.errors import FluxserveError
from fluxserve.moderation import lexicon, pictures, thresholds
from fluxserve.settings import MINI, Composed, Settings, Upsampler

Grade = Literal["ok", "note", "bad"]
#: An endpoint that does not answer for so many seconds does not answer.
ENDPOINT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    grade: Grade
    subject: str
    text: str


def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order a person would ask."""
    return [
        Finding(
            "ok", "fluxserve", f"{__version__}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
        ),
        _engine(settings),
        *examine_models(settings),
        *_data(settings),
        _provenance(settings),
        _moderation(settings),
        _upsampler(settings),
    ]


def _engine(settings: Settings) -> Finding:
    choice = engine.choose(settings)
    if choice == "none":
        return Finding("note", "engine", f"none. {engine.missing(settings)}")
    if choice == "fake":
        return Finding("note", "engine", "fake: cheap patterns for tests, no networks")
    if not engine.is_installed():
        return Finding("bad", "engine", f"diffusion is asked for but not installed: {engine.INSTALL_HINT}")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "transformers")
    )
    tested = "" if sys.version_info[:2] == (3, 11) else "; tested with Python 3.11 only"
    try:
        runtime, workers = _runtime(settings), engine.worker_count(settings)
    except FluxserveError as error:
        return Finding("bad", "engine", error.message)
    where = f"{runtime.device} in {runtime.dtype}, {runtime.threads} thread(s), {workers} worker(s)"
    return Finding("ok", "engine", f"diffusion on {where}; {runtime.why}; {versions}{tested}")


def _runtime(settings: Settings) -> Runtime:
    """For all checkpoints that are there: their size decides how they are computed. Raises ConfigurationError."""
    sizes: dict[tuple[Path, ...], int] = {}
    for value in dict.fromkeys(settings.models.get(name, MINI) for name in MODELS):
        with contextlib.suppress(FluxserveError):  # it is told of by itself
            checkpoint = find(value)
            sizes[checkpoint.origin] = checkpoint.weight_bytes
    return device.resolve(settings, sum(sizes.values()))


def examine_models(settings: Settings, only: str | None = None) -> list[Finding]:
    """Of each checkpoint, or the one that draws `only`: what it is, what it needs, whether it will do; headers only.

    One that will not keeps none of the others from being looked at.
    """
    unknown = sorted({*settings.models, *((only,) if only else ())} - set(MODELS))
    findings = [
        Finding("bad", "models", f"{name} is no model: the models are {', '.join(MODELS)}.") for name in unknown
    ]
    drawn_by: dict[str | Composed, list[str]] = {}
    for name in MODELS:
        drawn_by.setdefault(settings.models.get(name, MINI), []).append(name)
    try:
        runtime = _runtime(settings) if engine.choose(settings) == "diffusion" else None
    except FluxserveError as error:
        return [*findings, Finding("bad", "models", error.message)]
    for value, names in drawn_by.items():
        if only is None or only in names:
            findings += _checkpoint(settings, value, names, runtime)
    return findings


def _checkpoint(
    settings: Settings, value: str | Composed, names: Sequence[str], runtime: Runtime | None
) -> list[Finding]:
    drawn = ", ".join(names)
    try:
        checkpoint = find(value)
        found = None if runtime is None else fit(checkpoint, runtime)
    except FluxserveError as error:
        return [Finding("bad", "models", f"{drawn}: {error.message}")]
    needed = checkpoint.license_needed
    open_question = needed is not None and needed not in accepted_licenses(settings)
    question = f'; set accept_licenses = ["{needed}"] first' if open_question else ""
    findings = [Finding("bad" if open_question else "ok", "models", f"{drawn}: {checkpoint.describe()}{question}")]
    told = dict.fromkeys(line for name in names for line in checkpoint.does_otherwise(MODELS[name]))
    findings += [Finding("note", "models", line) for line in told]
    if found is not None:
        short = "" if found.is_enough else "; it will run out of memory: choose memory_plan = auto"
        grade: Grade = "ok" if found.is_enough else "bad"
        findings.append(Finding(grade, "memory", f"{found.parts}; {found.tells}{short}"))
    return findings


def _data(settings: Settings) -> list[Finding]:
    folder = settings.data_dir
    if not folder.is_dir():
        return [Finding("ok", "data folder", f"{folder} will be made at the first start")]
    free = shutil.disk_usage(folder).free
    enough = free >= settings.min_free_disk
    findings = [
        Finding("ok" if enough else "bad", "disk", f"{free / 2**30:.1f} GiB free in {folder}"
                + ("" if enough else f"; submits are refused below {settings.min_free_disk / 2**30:.2f} GiB")),
    ]  # fmt: skip
    running = database.is_locked(lock_path(settings))
    findings.append(Finding("ok", "server", "running on this data folder" if running else "not running"))
    path = database_path(settings)
    if path.exists() and not running:
        findings.append(_database(settings))
    return findings


def _provenance(settings: Settings) -> Finding:
    """Who signs pictures; nothing is made here."""
    if settings.c2pa == "off":
        return Finding("note", "provenance", "pictures are marked but not signed: c2pa = off")
    if reason := provenance.missing():
        grade: Grade = "bad" if settings.c2pa == "required" else "note"
        return Finding(grade, "provenance", f"pictures are marked but not signed. {reason}")
    try:
        if (own := own_files(settings)) is not None:
            told = f"pictures are signed by the certificate in {own[0]}, SHA-256 {own_credential(*own).identity}"
        elif certificates := certificates_of(settings.data_dir, None):
            path = authority_folder(settings.data_dir) / CERTIFICATES_FILE
            told = f"pictures are signed; who has {path} can verify them, SHA-256 {identity_of(certificates)}"
        else:
            told = "an authority that signs pictures will be made at the first start"
    except FluxserveError as error:
        return Finding("bad", "provenance", error.message)
    return Finding("ok", "provenance", told)


def _upsampler(settings: Settings) -> Finding:
    """An endpoint is asked for its models, which costs nothing; not for a prompt, which may."""
    upsampler = settings.prompt_upsampler
    if upsampler is None:
        return Finding("note", "upsampling", "no prompt_upsampler is set: prompts are drawn as they stand")
    if not isinstance(upsampler, Upsampler):
        return Finding("ok", "upsampling", "by the language model of FLUX.2 checkpoints, where one draws")
    what = f"{upsampler.model or 'its own choice of model'} at {upsampler.url}"
    headers = {name.decode(): value.decode() for name, value in upsampler.bearer}
    try:
        answer = httpx.get(f"{upsampler.url.rstrip('/')}/models", headers=headers, timeout=ENDPOINT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Finding("bad", "upsampling", f"{what} does not answer ({type(error).__name__}): is it running?")
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Finding("bad", "upsampling", f"{what} refuses the key: set the right one in prompt_upsampler.")
    if answer.status_code != httpx.codes.OK:
        return Finding("note", "upsampling", f"{what} answers {answer.status_code} to GET /models: it may work")
    return Finding("ok", "upsampling", f"{what} answers")


def _moderation(settings: Settings) -> Finding:
    if settings.moderation == "off":
        return Finding("note", "moderation", "off: prompts and pictures are not looked at")
    languages, table = ", ".join(lexicon.load().languages), thresholds.load().version
    told = f"on: prompts in {languages}; table {table} of thresholds"
    choice = engine.choose(settings)
    if choice == "none":
        return Finding("ok", "moderation", f"{told}; pictures by the workers that connect")
    name = pictures.suited_to(choice)
    if reason := pictures.missing(name):
        return Finding("bad", "moderation", f"{told}; nothing is drawn here, for pictures cannot be judged. {reason}")
    return Finding("ok", "moderation", f"{told}; pictures by {pictures.create(name).identity}")


def _database(settings: Settings) -> Finding:
    reader = database.open_reader(database_path(settings))
    try:
        database.check(reader)
    except FluxserveError as error:
        return Finding("bad", "database", error.message)
    finally:
        reader.close()
    return Finding("ok", "database", "sound")
