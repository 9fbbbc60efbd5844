"""The commands: `fluxserve serve | worker | courier | generate | verify | models | keys | credits | quarantine |
doctor | bench | fsck | backup | restore`.

They read arguments, call `app` or the client, and print. Errors are one clear line and exit status 1.
What it does not know: how anything works.
"""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from fluxserve import __version__, catalogue, cli_accounts, engine, logs
from fluxserve.accounts.credits import format_credits
from fluxserve.api import admin
from fluxserve.app import administration, licenses
from fluxserve.console import Config, DataDir, day, err, fail, out, read_settings, show_table
from fluxserve.engine.checkpoints import Checkpoint, plan
from fluxserve.errors import ConfigurationError, FluxserveError
from fluxserve.worker import process

if TYPE_CHECKING:
    from fluxserve.app.server import Running
    from fluxserve.doctor import Finding

cli = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Serve the Flux image generation API from your own machine.",
)  # fmt: skip
cli.add_typer(cli_accounts.keys, name="keys")
cli.add_typer(cli_accounts.credits_, name="credits")
models = typer.Typer(help="What can be asked for, what draws it here, and what it costs.")
cli.add_typer(models, name="models")

#: The exit status of a worker that cannot run as it is configured; the fleet waits longer before the next try.
EXIT_CONFIGURATION = 78


def main() -> None:
    """Run the command line; our errors become one line."""
    try:
        cli()
    except FluxserveError as error:
        fail(error.message)


def _version(value: bool) -> None:
    if value:
        out.print(f"fluxserve {__version__}")
        raise typer.Exit


@cli.callback()
def common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Serve the Flux image generation API from your own machine."""


@cli.command()
def serve(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one.  [default: 8808]")] = None,
    data_dir: DataDir = None,
    engine_: Annotated[
        str | None, typer.Option("--engine", help="auto, diffusion, fake, or none to only queue.  [default: auto]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Local worker processes.  [default: one, or one for each core with mini]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.  [default: info]")] = None,
) -> None:
    """Serve the API. Every other setting: docs/settings.md, FLUXSERVE_*, or the settings file."""
    settings = read_settings(
        config,
        {
            "host": host,
            "port": port,
            "data_dir": data_dir,
            "engine": engine_,
            "workers": workers,
            "log_level": log_level,
        },
    )
    logs.configure(settings.log_level, settings.log_format)
    licenses.accept_licenses(settings, _ask_license if sys.stdin.isatty() else None)
    from fluxserve.app.server import run_server  # takes as long to load as all the rest

    run_server(settings, _log_start if settings.log_format == "json" else _banner)


def _ask_license(checkpoint: Checkpoint) -> bool:
    return typer.confirm(
        f"{checkpoint.name} is licensed under {checkpoint.license_needed}. "
        "Have you read that licence, and do you accept it?"
    )


def _log_start(running: Running) -> None:
    """For machines: one record, and the key only in its file."""
    facts = {"action": "serving", "url": running.url, "engine": running.engine, "data_dir": str(running.data_dir)}
    kept = {"new_key_in": str(running.data_dir / "api_key")} if running.new_key else {}
    logging.getLogger("fluxserve").info("Serving the Flux API", extra={**facts, **kept})


def _banner(running: Running) -> None:
    weights = "; ".join(sorted({checkpoint.describe() for checkpoint in running.checkpoints.values()}))
    drawn_by = weights if running.engine == "diffusion" else _ENGINE_LINES[running.engine]
    url = running.public_url or running.url
    lines = [
        f"[bold]fluxserve {__version__}[/] serves the Flux API at [bold]{url}[/]",
        f"  draws with   {escape(drawn_by)}",
        f"  docs         {url}/docs",
        f"  data folder  {escape(str(running.data_dir))}",
    ]
    if running.new_key:
        kept = running.data_dir / "api_key"
        lines.append(f"  API key      [bold]{running.new_key}[/]  (shown once; kept in {escape(str(kept))})")
    out.print("\n".join(lines), soft_wrap=True)


_ENGINE_LINES = {
    "fake": "the fake engine: cheap patterns for tests, no networks",
    "none": "nothing yet: pip install 'fluxserve[local]', or connect a worker; tasks are accepted and wait",
}


@cli.command()
def worker(
    server: Annotated[str, typer.Option(help="unix:PATH or tcp:HOST:PORT of a server's worker_listen.")],
    config: Config = None,
    worker_id: Annotated[str | None, typer.Option(help="A name that no other worker has.")] = None,
    parented: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Draw for a server. Another machine's server needs FLUXSERVE_WORKER_TOKEN."""
    settings = process.settings_from_pipe() if parented else read_settings(config, {})
    logs.configure(settings.log_level, settings.log_format)
    try:
        process.run_worker(
            settings, server=server, worker_id=worker_id or f"worker-{secrets.token_hex(4)}", parented=parented
        )
    except ConfigurationError as error:
        fail(error.message, EXIT_CONFIGURATION)


@cli.command()
def courier(
    server: Annotated[str, typer.Option(help="unix:PATH or tcp:HOST:PORT of a server's worker_listen.")],
    config: Config = None,
    worker_id: Annotated[str | None, typer.Option(help="A name that no other courier or worker has.")] = None,
    parented: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Call addresses for a server, such as those of webhooks. `serve` starts one by itself, unless told not to."""
    settings = process.settings_from_pipe() if parented else read_settings(config, {})
    logs.configure(settings.log_level, settings.log_format)
    from fluxserve.courier.process import run_courier  # only a courier needs it

    try:
        run_courier(
            settings, server=server, courier_id=worker_id or f"courier-{secrets.token_hex(4)}", parented=parented
        )
    except ConfigurationError as error:
        fail(error.message, EXIT_CONFIGURATION)


@cli.command(name="generate")
def generate_command(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A model of `fluxserve models`.")] = "flux-dev",
    image: Annotated[
        list[str] | None,
        typer.Option(
            help="A picture to edit, fill, expand, follow or draw over, a file or a URL that the server fetches; more "
            "than one where the model takes so many."
        ),
    ] = None,
    mask: Annotated[str | None, typer.Option(help="White where the picture is drawn anew; a file or a URL.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels, a multiple of 32.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels, a multiple of 32.")] = None,
    aspect_ratio: Annotated[str | None, typer.Option(help="W:H, for flux-pro-1.1-ultra.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same picture.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="1.5 to 5.")] = None,
    output_format: Annotated[
        Literal["jpeg", "png", "webp"] | None, typer.Option("--format", help="By default by the name of the file.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="By default named after the prompt.")] = None,
    url: Annotated[str | None, typer.Option(envvar="FLUXSERVE_URL", help="A running server.")] = None,
    key: Annotated[str | None, typer.Option(envvar="FLUXSERVE_API_KEY", help="Its API key.", show_envvar=True)] = None,
    data_dir: Annotated[Path, typer.Option(help="Data folder of a running server on this machine.")] = Path(
        "fluxserve-data"
    ),
    fresh: Annotated[bool, typer.Option(help="Start a server for this call, in a fresh folder.")] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait while the picture comes no nearer and no worker gets ready.")
    ] = 600.0,
) -> None:
    """Draw one picture: on a running server, or on one that is started for the call."""
    from fluxserve import generate

    fields = {
        "width": width, "height": height, "aspect_ratio": aspect_ratio, "seed": seed, "steps": steps,
        "guidance": guidance, "output_format": output_format,
    }  # fmt: skip
    wish = generate.Wish(
        prompt=prompt,
        model=model,
        parameters={name: value for name, value in fields.items() if value is not None},
        output=output,
        timeout=timeout,
        images=tuple(image or ()),
        mask=mask,
    )
    place = None if fresh else generate.find_server(url=url, key=key, data_dir=data_dir)
    drawn = generate.draw(wish, place, err)
    out.print(f"{drawn.path}", soft_wrap=True)
    out.print(f"  seed {drawn.seed}, {drawn.seconds:.1f} s, drawn by {drawn.drawn_by}", soft_wrap=True)
    for warning in drawn.warnings:
        err.print(f"  [yellow]warning:[/] {escape(warning)}", soft_wrap=True)


@cli.command(name="bench")
def bench_command(
    model: Annotated[
        str, typer.Argument(help="A model of `fluxserve models`: its checkpoint is measured.")
    ] = "flux-dev",
    shape: Annotated[
        str | None, typer.Option(help="A published shape with random numbers instead, or thin: few of its blocks.")
    ] = None,
    width: Annotated[int, typer.Option(min=64, help="Pixels.")] = 1024,
    height: Annotated[int, typer.Option(min=64, help="Pixels.")] = 1024,
    steps: Annotated[int | None, typer.Option(min=1, help="Of a picture; by default the model's or shape's.")] = None,
    references: Annotated[
        int | None, typer.Option(min=0, help="Pictures beside it; by default the shape's, or none.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each stage is measured; medians count.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False,
    config: Config = None,
) -> None:
    """How fast each stage of a picture is here, in seconds, TFLOP/s, and of what the device can do at most."""
    from fluxserve import bench

    wish = bench.Wish(
        model=model, shape=shape, size=catalogue.Size(width, height), steps=steps, references=references, rounds=rounds
    )
    report = bench.measure(read_settings(config, {}), wish, lambda what: err.print(what, markup=False))
    if as_json:
        out.print(bench.as_json(report), markup=False, soft_wrap=True)
        return
    for line in bench.about(report):
        out.print(line, markup=False, soft_wrap=True)
    show_table(bench.HEADINGS, bench.rows(report))


@models.callback(invoke_without_command=True)
def list_models(context: typer.Context, config: Config = None) -> None:
    """What can be asked for, what draws it here, and what it costs."""
    if context.invoked_subcommand is not None:
        context.obj = config
        return
    settings = read_settings(config, {})
    here = plan(settings)
    rows = [
        (
            name,
            spec.title,
            _price(spec.price),
            drawn_by.name,
        )
        for name, drawn_by in here.items()
        if (spec := catalogue.MODELS[name])
    ]
    show_table(("model", "what it is", "credits", "drawn by"), rows)
    for line in sorted(
        {f"{checkpoint.describe()} [{', '.join(map(str, checkpoint.origin))}]" for checkpoint in here.values()}
    ):
        out.print(f"\n{escape(line)}", soft_wrap=True)
    for line in dict.fromkeys(
        line for name, drawn_by in here.items() for line in drawn_by.does_otherwise(catalogue.MODELS[name])
    ):
        out.print(f"\n{line}", soft_wrap=True)
    for name, reason in catalogue.NOT_DRAWN.items():
        out.print(f"\n{name}: {reason}", soft_wrap=True)
    if missing := engine.missing(settings):
        out.print(f"\n{escape(missing)}", soft_wrap=True)
    out.print("\n* not published by the hosted API: our own price", soft_wrap=True)


@models.command(name="check")
def check_models(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(help="The one to check; by default all.")] = None,
    config: Config = None,
) -> None:
    """What each model's weights are, what they need, and whether they fit here; reads no more than their headers."""
    from fluxserve import doctor

    _show(doctor.examine_models(read_settings(config or context.obj, {}), model))


def _price(price: catalogue.Price) -> str:
    further = f" + {format_credits(price.further)} a further MP" if price.further else ""
    return f"{format_credits(price.millicredits)}{further}{'' if price.published else ' *'}"


@cli.command(name="doctor")
def doctor_command(config: Config = None, data_dir: DataDir = None) -> None:
    """What would run where, and what is missing."""
    from fluxserve import doctor

    _show(doctor.examine(read_settings(config, {"data_dir": data_dir})))


def _show(findings: Sequence[Finding]) -> None:
    """A line each; ends with status 1 where one is bad."""
    for finding in findings:
        mark = {"ok": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}[finding.grade]
        out.print(f"{mark}  {finding.subject:<13} {escape(finding.text)}", soft_wrap=True)
    if any(finding.grade == "bad" for finding in findings):
        raise typer.Exit(1)


@cli.command(name="verify")
def verify_command(
    files: Annotated[list[Path], typer.Argument(help="Pictures.")],
    authority: Annotated[
        Path | None, typer.Option(help="Certificates (PEM) to trust; by default those of this installation.")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """What pictures say of themselves, and whether they are as an authority that is trusted here has signed them."""
    from fluxserve import verify

    are_trusted = True
    for report in verify.examine(files, verify.anchors_of(read_settings(config, {"data_dir": data_dir}), authority)):
        if isinstance(report, FluxserveError):
            err.print(f"error: {escape(report.message)}", soft_wrap=True)
            are_trusted = False
            continue
        out.print(escape(str(report.file)), soft_wrap=True)
        for subject, text in report.lines:
            out.print(f"  {subject:<13} {escape(text)}", soft_wrap=True)
        are_trusted = are_trusted and report.is_trusted
    if not are_trusted:
        raise typer.Exit(1)


@cli.command()
def quarantine(config: Config = None, data_dir: DataDir = None) -> None:
    """Tasks that ended what draws them three times, newest first. They got their credits back and are not retried."""
    answer = administration.administer(read_settings(config, {"data_dir": data_dir}), admin.ListQuarantined())
    admin.rows(answer)
    lines = [
        (
            row.id, row.account_id, row.model, row.size, str(row.steps), str(row.seed), str(row.spoiled),
            str(row.best_step), day(row.finished_at),
        )
        for row in answer.quarantined
    ]  # fmt: skip
    show_table(("task", "account", "model", "size", "steps", "seed", "ended", "came to step", "at"), lines)


@cli.command()
def fsck(config: Config = None, data_dir: DataDir = None) -> None:
    """Check that the books are in order: tasks, ledger, outbox, and the files of input pictures."""
    answer = administration.administer(read_settings(config, {"data_dir": data_dir}), admin.Fsck())
    admin.rows(answer)
    for violation in answer.violations:
        out.print(violation, soft_wrap=True, markup=False)
    if answer.violations:
        fail(f"{len(answer.violations)} violations")
    out.print("The books are in order.")


@cli.command()
def backup(
    target: Annotated[Path, typer.Argument(help="File to write.")], config: Config = None, data_dir: DataDir = None
) -> None:
    """Copy the database to a file, also while the server runs. Pictures, waypoints and secrets.json are not in it."""
    command = admin.Backup(target=str(target.absolute()))
    admin.rows(administration.administer(read_settings(config, {"data_dir": data_dir}), command))
    out.print(f"Backed up to {escape(str(target))}.", soft_wrap=True)
    out.print("Keep secrets.json of the data folder with it: keys cannot be checked without.", soft_wrap=True)


@cli.command()
def restore(
    source: Annotated[Path, typer.Argument(help="A backup.")], config: Config = None, data_dir: DataDir = None
) -> None:
    """Put a backup in the database's place; the old one is kept beside it. The server has to be stopped."""
    kept = administration.restore(read_settings(config, {"data_dir": data_dir}), source)
    out.print("Restored. Its keys work only with the secrets.json they were made with.", soft_wrap=True)
    if kept is not None:
        out.print(f"The database that was there is kept as {escape(str(kept))}", soft_wrap=True)
