"""One picture from the command line: find or start a server, draw through its HTTP API, save the file."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fluxserve.app.folder import address_path, key_path
from fluxserve.catalogue import MODELS, ModelSpec, find
from fluxserve.catalogue.params import MASK, MAX_FILE, PICTURE_URL_PATTERN, Kind
from fluxserve.client import (
    AuthenticationFailed,
    Client,
    ClientError,
    Picture,
    RequestRejected,
    Result,
    Task,
    TaskTimeout,
    origin_of,
)
from fluxserve.client import Progress as News
from fluxserve.engine import missing
from fluxserve.errors import ConfigurationError, EngineNotInstalled
from fluxserve.settings import load

DEFAULT_URL = "http://127.0.0.1:8808"
#: A server answers within this time of its start; its worker may take longer.
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 20.0
#: The field that `--image` fills, where a model has more than one for pictures.
_PICTURE_FIELDS = ("image", "control_image", "image_prompt")
_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A running server and a key to it."""

    url: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to draw and where to put it; `output` None: named after the prompt, in the current folder.

    `timeout`: seconds that it is waited for while it comes no nearer and no worker gets ready.
    `images` and `mask`: files of pictures, or URLs of some, for the fields that the model has for them.
    """

    prompt: str
    model: str
    parameters: Mapping[str, object]
    output: Path | None
    timeout: float
    images: tuple[str | Path, ...] = ()
    mask: str | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """A saved picture; `seconds` from the submit to the file. `warnings`: those that were not told meanwhile."""

    path: Path
    seed: int
    seconds: float
    drawn_by: str
    warnings: tuple[str, ...]


def find_server(*, url: str | None, key: str | None, data_dir: Path) -> Place | None:
    """The running server to use; None when none answers. Raises ConfigurationError when no key is at hand."""
    published = _read(address_path(data_dir))
    address = origin_of(url or published or DEFAULT_URL)
    if "://" not in address:
        address = f"http://{address}"
    try:
        httpx.get(f"{address}/healthz", timeout=5.0).raise_for_status()
    except httpx.HTTPError:
        if url is None:
            return None
        raise ConfigurationError(f"No server answers at {url}.") from None
    if key is None and address == published:  # a key is for the server that made it, and no other
        key = _read(key_path(data_dir))
    if key is None:
        raise ConfigurationError(
            f"The server at {address} needs an API key: give --key or FLUXSERVE_API_KEY, name its data folder with "
            "--data-dir, or use --fresh."
        )
    return Place(url=address, key=key)


def draw(wish: Wish, place: Place | None, console: Console) -> Drawn:
    """Draw and save; starts a server for the call where `place` is None. Raises ConfigurationError."""
    wish = with_pictures(_with_format(wish))
    if place is not None:
        return _draw_at(place, wish, console)
    with _own_server(console) as started:
        return _draw_at(started, wish, console)


def _draw_at(place: Place, wish: Wish, console: Console) -> Drawn:
    began = time.monotonic()
    try:
        _tell_if_not_ready(place, console)
        with Client(place.url, place.key) as client:
            task = client.create(wish.model, wish.prompt, wish.parameters)
            told: set[str] = set()
            picture = _follow_until_drawn(place, client, task, wish, console, told)
    except AuthenticationFailed:
        raise ConfigurationError(
            f"The server at {place.url} refused the API key: give the right one with --key or FLUXSERVE_API_KEY."
        ) from None
    except RequestRejected as error:
        raise ConfigurationError("; ".join(error.problems) or str(error)) from None
    except TaskTimeout as error:
        raise ConfigurationError(f"{error} `fluxserve generate` again would draw another.") from None
    except ClientError as error:
        raise ConfigurationError(str(error)) from None
    path = _save(picture, wish)
    result = picture.result
    return Drawn(
        path=path,
        seed=result.seed,
        seconds=time.monotonic() - began,
        drawn_by=f"{result.details.get('drawn_by', wish.model)}",
        warnings=tuple(one for one in result.warnings if one not in told),
    )


def _tell_if_not_ready(place: Place, console: Console) -> None:
    """A picture may take for ever where nothing draws: say what the server says of it."""
    if reason := _readiness(place.url).get("reason"):
        console.print(f"waiting: {reason}", markup=False, soft_wrap=True)


def _readiness(url: str) -> Mapping[str, object]:
    """What the server says of itself; nothing where it does not answer, or is another."""
    with contextlib.suppress(httpx.HTTPError, ValueError):
        state = httpx.get(f"{url}/readyz", timeout=5.0).json()
        if isinstance(state, dict):
            return state
    return {}


def _follow(client: Client, task: Task, wish: Wish, console: Console, told: set[str]) -> Picture:
    """`told`: warnings that were printed before."""
    steps = int(str(wish.parameters.get("steps", find(wish.model).steps)))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("step {task.completed:.0f}/{task.total:.0f}"))
    with Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        shown = bar.add_task("drawing", total=steps)
        for news in client.events(task, timeout=wish.timeout, while_moving=True):
            if isinstance(news, Result):
                return client.download(news)
            for warning in news.warnings:
                if warning not in told:
                    told.add(warning)
                    bar.console.print(f"warning: {warning}", markup=False, soft_wrap=True)
            bar.update(shown, completed=news.progress * steps, description=stage(news))
    raise AssertionError("events end with a result, or raise")


def _follow_until_drawn(
    place: Place, client: Client, task: Task, wish: Wish, console: Console, told: set[str]
) -> Picture:
    """Go on waiting where nothing moves because the worker is still getting ready. Raises TaskTimeout."""
    while True:
        try:
            return _follow(client, task, wish, console, told)
        except TaskTimeout:
            if not _readiness(place.url).get("starting"):
                raise
            _tell_if_not_ready(place, console)


def stage(news: News) -> str:
    """Whether it waits or is drawn, and for how long."""
    left = "" if news.eta_seconds is None else f", about {max(1, round(news.eta_seconds))} s"
    if news.queue_position:
        return f"waiting, {news.queue_position} before it{left}"
    return f"drawing{left}"


def _with_format(wish: Wish) -> Wish:
    """The file's suffix chooses the format, unless it is given."""
    if wish.output is None:
        return wish
    chosen = _FORMATS.get(wish.output.suffix.lower())
    if chosen is not None and wish.parameters.get("output_format", chosen) != chosen:
        raise ConfigurationError(f"{wish.output} and --format {wish.parameters['output_format']} disagree.")
    if chosen is None and "output_format" in wish.parameters:
        return wish
    if chosen is None:
        raise ConfigurationError(f"{wish.output}: name a .jpeg, .png or .webp file, or give --format.")
    return replace(wish, parameters={**wish.parameters, "output_format": chosen})


def with_pictures(wish: Wish) -> Wish:
    """Its pictures as base64, or by their URLs, among its parameters.

    Raises ConfigurationError, also for a model that takes none.
    """
    spec = find(wish.model)
    check_takes(spec, wish)
    pictures = [*zip(picture_fields(spec), wish.images, strict=False)]
    pictures += [] if wish.mask is None else [(MASK, wish.mask)]
    return replace(wish, parameters={**wish.parameters, **{name: _sent(picture) for name, picture in pictures}})


def check_takes(spec: ModelSpec, wish: Wish) -> None:
    """Raise ConfigurationError where the model has not so many fields for pictures, or none for a mask."""
    most = len(picture_fields(spec))
    if len(wish.images) > most:
        takes = f"takes {most} picture{'s' * (most > 1)} at most" if most else "takes no picture: leave --image out"
        raise ConfigurationError(f"{spec.name} {takes}.")
    if wish.mask is not None and spec.param(MASK) is None:
        others = ", ".join(name for name, other in MODELS.items() if other.param(MASK))
        raise ConfigurationError(f"{spec.name} takes no mask: leave --mask out, or draw with {others}.")


def picture_fields(spec: ModelSpec) -> tuple[str, ...]:
    """What `--image` fills, in this order: all references of a model that reads some, else its one picture."""
    names = [param.name for param in spec.params if param.kind is Kind.IMAGE]
    references = tuple(name for name in names if name.startswith("input_image"))
    return references or tuple(name for name in _PICTURE_FIELDS if name in names)[:1]


def _sent(picture: str | Path) -> str:
    """A URL as it is, a file as base64."""
    if isinstance(picture, str) and re.match(PICTURE_URL_PATTERN, picture):
        return picture
    return _encoded(Path(picture))


def _encoded(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError:
        raise ConfigurationError(f"There is no picture {file} that can be read.") from None
    if not 0 < len(content) <= MAX_FILE:
        raise ConfigurationError(f"{file} has {len(content):,} bytes; pictures may have 1 to {MAX_FILE:,}.")
    return base64.b64encode(content).decode()


def _save(picture: Picture, wish: Wish) -> Path:
    suffix = picture.media_type.removeprefix("image/") or "jpeg"
    path = wish.output or _free_name(slug(wish.prompt), suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.data)
    except OSError:
        raise ConfigurationError(f"The picture cannot be written to {path}: name another file with -o.") from None
    return path


def slug(prompt: str) -> str:
    """A file name from a prompt: `"a red apple"` -> `red-apple`."""
    words = re.findall(r"\w+", prompt.lower())
    if len(words) > 1 and words[0] in ("a", "an", "the"):
        words = words[1:]
    return "-".join(words)[:60].strip("-") or "picture"


def _free_name(stem: str, suffix: str) -> Path:
    """The first of `stem.suffix`, `stem-2.suffix` ... that does not exist."""
    path, number = Path(f"{stem}.{suffix}"), 2
    while path.exists():
        path, number = Path(f"{stem}-{number}.{suffix}"), number + 1
    return path


@contextlib.contextmanager
def _own_server(console: Console) -> Iterator[Place]:
    """A server on a free port with a fresh data folder, stopped and removed afterwards, also when we are ended."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="fluxserve-") as folder, tempfile.TemporaryFile() as log:
        data_dir = Path(folder) / "data"
        if reason := missing(load()):  # broken settings are told here too, not in the child's log
            raise EngineNotInstalled(reason)
        process = subprocess.Popen(
            [sys.executable, "-m", "fluxserve", "serve", "--port", "0", "--data-dir", str(data_dir), "--workers", "1"],
            # One picture has no company: nothing has to be measured for it.
            env={**os.environ, "FLUXSERVE_TOKEN_BUDGET": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            with console.status("starting a server") as status:
                place = _wait_until_ready(process, data_dir, status.update)
            if place is None:
                log.seek(0)
                console.print(log.read().decode(errors="replace")[-4000:], markup=False)
                raise ConfigurationError("The server did not start; its last lines are above.")
            yield place
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], data_dir: Path, tell: Callable[[str], None]) -> Place | None:
    """The server once it draws, however long its worker takes to get there; None where it ends, or its worker does."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None:
        url, key = _read(address_path(data_dir)), _read(key_path(data_dir))
        state = _readiness(url) if url and key else {}
        if state.get("ready") and url and key:
            return Place(url=url, key=key)
        if not state.get("starting") and (state or time.monotonic() > deadline):
            return None
        if reason := state.get("reason"):
            tell(f"starting a server: {escape(str(reason))}")
        time.sleep(0.05)
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip() or None
    except OSError:
        return None
