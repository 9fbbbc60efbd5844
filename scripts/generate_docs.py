"""Writes docs/{models,settings,errors,cli}.md from the catalogue, the settings, the error tree and the commands.

`--check` writes nothing and fails when a page is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from typer.main import get_command

from fluxserve import errors
from fluxserve.api.responses import STATUSES
from fluxserve.catalogue import MODELS, NOT_DRAWN, ModelSpec, Price
from fluxserve.catalogue.params import Kind, Param
from fluxserve.cli import cli
from fluxserve.settings import ENV_PREFIX, Settings

DOCS = Path(__file__).resolve().parent.parent / "docs"


class Parameter(Protocol):
    """What this page reads of an argument or option."""

    name: str | None
    opts: list[str]
    param_type_name: str


class TyperCommand(Protocol):
    """What this page reads of a command."""

    help: str | None
    params: Sequence[Parameter]


NOTE = "\n<!-- Written by scripts/docs; change the code instead. -->\n"


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` name those that are stale; the exit status."""
    if "--check" not in arguments:
        DOCS.mkdir(exist_ok=True)
        for name, text in pages().items():
            (DOCS / name).write_text(text, encoding="utf-8")
        return 0
    stale = stale_pages()
    for name in stale:
        sys.stderr.write(f"docs/{name} is stale: run scripts/docs\n")
    return 1 if stale else 0


def pages() -> dict[str, str]:
    """File name to text of every generated page."""
    return {
        "models.md": models_page(),
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "cli.md": cli_page(),
    }


def stale_pages() -> list[str]:
    """Names of the pages that differ from what would be written."""
    return [name for name, text in pages().items() if not _is_current(DOCS / name, text)]


def _is_current(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


# Models


def models_page() -> str:
    """Every model: price, nearest weights and parameters."""
    overview = table(
        ("Model", "Name", "What it is for", "Credits per picture", "Steps", "Nearest open weights"),
        [_overview_row(spec) for spec in MODELS.values()],
    )
    return "\n".join(
        [
            "# Models",
            NOTE,
            "A request goes to `POST /v1/MODEL`, or in the CometAPI dialect to `POST /flux/v1/MODEL`.",
            '`null`, and `""` in optional text, mean unset. A price marked * is our own: the hosted API names none.',
            "Megapixels are rounded up, those of the answer and those of all input pictures together; one is 1,048,576",
            "pixels. What draws a model is up to the setting `models`; else it is `mini`.\n",
            overview,
            *(f"`{name}` is published, but refused here with a 400: {reason}\n" for name, reason in NOT_DRAWN.items()),
            *(_model_section(spec) for spec in MODELS.values()),
        ]
    )


def _overview_row(spec: ModelSpec) -> tuple[str, ...]:
    price = _price(spec.price)
    return f"`{spec.name}`", spec.title, spec.help, price, str(spec.steps), spec.nearest_weights


def _price(price: Price) -> str:
    further = f" + {_credits(price.further)} a further megapixel" if price.further else ""
    return f"{_credits(price.millicredits)}{further}{'' if price.published else ' *'}"


def _credits(millicredits: int) -> str:
    return f"{millicredits / 1000:g}"


def _model_section(spec: ModelSpec) -> str:
    rows = [(f"`{param.name}`", _kind(param), _default(param), _allowed(param), param.help) for param in spec.params]
    plainly = f"{spec.plainly}\n\n" if spec.plainly else ""
    return f"## {spec.name}\n\n{plainly}" + table(("Parameter", "Type", "Default", "Allowed", "Meaning"), rows)


def _kind(param: Param) -> str:
    texts = (Kind.TEXT, Kind.CHOICE, Kind.RATIO, Kind.URL, Kind.IMAGE)
    return {Kind.FLAG: "boolean", **dict.fromkeys(texts, "string")}.get(param.kind, param.kind.value)


def _default(param: Param) -> str:
    if param.required:
        return "required"
    return "unset" if param.default in (None, "") else f"`{_literal(param.default)}`"


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(param: Param) -> str:
    facts = ["" if param.auto is None else f"`{param.auto}`", _range(param.minimum, param.maximum)]
    facts.append(f"multiple of {param.multiple_of}" if param.multiple_of else "")
    facts.append(f"at most {param.max_length:,} characters" if param.max_length else "")
    facts.append(", ".join(f"`{choice}`" for choice in param.choices))
    facts.append("http or https" if param.kind is Kind.URL else "")
    facts.append("at most 20 MB" if param.kind is Kind.IMAGE else "")
    facts.append("21:9 to 9:21" if param.kind is Kind.RATIO else "")
    return ", ".join(fact for fact in facts if fact)


def _range(minimum: float | None, maximum: float | None) -> str:
    if minimum is None and maximum is None:
        return ""
    if maximum is None:
        return f"from {minimum}"
    return f"at most {maximum}" if minimum is None else f"{minimum} to {maximum}"


# Settings


def settings_page() -> str:
    """Every setting with its variable, default and meaning."""
    properties = cast("Mapping[str, Mapping[str, object]]", Settings.model_json_schema()["properties"])
    rows = [
        (
            f"`{name}`",
            f"`{ENV_PREFIX}{name.upper()}`",
            _setting_default(schema),
            _setting_values(schema),
            _about(schema),
        )
        for name, schema in properties.items()
    ]
    return "\n".join(
        [
            "# Settings",
            NOTE,
            "Read once at the start: defaults, then the TOML file (`--config FILE` or `FLUXSERVE_CONFIG`), then the",
            "environment, then the command line. Durations are in seconds, sizes in bytes. In the environment a list",
            "is one text with commas, and tables are JSON. An unknown name stops the start.\n",
            table(("Setting", "Variable", "Default", "Values", "Meaning"), rows),
        ]
    )


def _about(schema: Mapping[str, object]) -> str:
    return str(schema.get("description", ""))


def _setting_default(schema: Mapping[str, object]) -> str:
    default = schema.get("default")
    return "unset" if default in (None, [], {}, ()) else f"`{_literal(default)}`"


def _setting_values(schema: Mapping[str, object]) -> str:
    options = cast("list[Mapping[str, object]]", schema.get("anyOf", [schema]))
    return " or ".join(_values(option) for option in options if option.get("type") != "null")


def _values(schema: Mapping[str, object]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in cast("list[str]", schema["enum"]))
    words = {"array": "list of names", "object": "table", "string": "text", "integer": "whole number"}
    kind = str(schema.get("type", "object"))
    if "$ref" in cast("Mapping[str, object]", schema.get("items", {})):
        return "list of tables"
    bounds = [
        f"over {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else "",
        f"from {schema['minimum']:g}" if "minimum" in schema else "",
        f"to {schema['maximum']:g}" if "maximum" in schema else "",
    ]
    return " ".join([words.get(kind, kind), *(bound for bound in bounds if bound)])


# Errors


def errors_page() -> str:
    """The tree of errors, with the status each is answered with."""
    rows = [
        (f"{'&nbsp;&nbsp;' * depth}`{error.__name__}`", _status(error), _retry(error), _first_line(error))
        for depth, error in error_tree()
    ]
    return "\n".join(
        [
            "# Errors",
            NOTE,
            "Every error fluxserve raises. A caller of the HTTP API sees the status; an error without one stops the",
            "start, or is told in a task's result or to a worker. Try again says whether the same call may succeed",
            "later.\n",
            table(("Error", "Status", "Try again", "Meaning"), rows),
        ]
    )


def error_tree() -> Iterator[tuple[int, type[errors.FluxserveError]]]:
    """Every class of the tree with its depth, parents first."""
    pending: list[tuple[int, type[errors.FluxserveError]]] = [(0, errors.FluxserveError)]
    while pending:
        depth, error = pending.pop()
        yield depth, error
        pending += [(depth + 1, child) for child in reversed(error.__subclasses__())]


def _status(error: type[errors.FluxserveError]) -> str:
    parents = error.__mro__[: error.__mro__.index(errors.FluxserveError)]
    return next((str(STATUSES[parent]) for parent in parents if parent in STATUSES), "")


def _retry(error: type[errors.FluxserveError]) -> str:
    return "yes" if error.retryable else ""


def _first_line(error: type[errors.FluxserveError]) -> str:
    return (error.__doc__ or "").partition("\n")[0]


# Commands


def cli_page() -> str:
    """Every command with its arguments and options."""
    sections = [
        _command_section(name, command)
        for name, command in _commands("fluxserve", cast("TyperCommand", get_command(cli)))
    ]
    return "\n".join(["# Commands", NOTE, "`fluxserve COMMAND --help` says the same in the terminal.\n", *sections])


def _commands(name: str, command: TyperCommand) -> Iterator[tuple[str, TyperCommand]]:
    children = cast("Mapping[str, TyperCommand]", getattr(command, "commands", {}))
    if not children:
        yield name, command
    for child_name, child in children.items():
        yield from _commands(f"{name} {child_name}", child)


def _command_section(name: str, command: TyperCommand) -> str:
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    rows = [(_spelling(param), str(getattr(param, "help", "") or "").strip()) for param in shown]
    lines = [f"## {name}\n", f"{(command.help or '').strip()}\n"]
    return "\n".join([*lines, table(("Argument or option", "Meaning"), rows)] if rows else lines)


def _spelling(param: Parameter) -> str:
    if param.param_type_name == "argument":
        return f"`{str(param.name).upper()}`"
    return ", ".join(f"`{spelling}`" for spelling in sorted(param.opts, key=len))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
