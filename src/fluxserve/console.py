"""What every command of the command line needs: where it prints, its settings, its tables, its end.

What it does not know: the commands.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fluxserve.errors import JsonValue
from fluxserve.settings import Settings, load

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

Config = Annotated[Path | None, typer.Option("--config", help="TOML file with settings; or FLUXSERVE_CONFIG.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder that holds the database, pictures and keys.")]


def fail(message: str, status: int = 1) -> None:
    """Say what is wrong and end."""
    err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    sys.exit(status)


def read_settings(config: Path | None, overrides: dict[str, JsonValue | Path | None]) -> Settings:
    """The settings, with those of the command line that were given."""
    return load(config, {name: value for name, value in overrides.items() if value is not None})


def show_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table that cuts nothing off; for a program that reads it, lines with tabs."""
    if not out.is_terminal:
        for line in (headings, *rows):
            typer.echo("\t".join(line))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def day(value: float | None) -> str:
    """Seconds since 1970 as this machine's clock shows them."""
    return "" if value is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(value))
