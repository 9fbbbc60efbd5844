"""The commands of accounts: `fluxserve keys create | list | revoke` and `fluxserve credits grant | show`.

What it does not know: how anything works.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fluxserve.accounts.credits import format_credits, parse_credits
from fluxserve.api import admin
from fluxserve.app import administration
from fluxserve.console import Config, DataDir, day, err, out, read_settings, show_table
from fluxserve.errors import ConfigurationError
from fluxserve.service.keyring import DEFAULT_MAX_ACTIVE, DEFAULT_WEIGHT

keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
credits_ = typer.Typer(no_args_is_help=True, help="What accounts have left, and more of it.")


@keys.command(name="create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    account: Annotated[str | None, typer.Option(help="Account it spends from; by default one of its own.")] = None,
    granted: Annotated[str | None, typer.Option("--credits", help="Credits to grant; by default unlimited.")] = None,
    max_active: Annotated[int, typer.Option(min=1, help="Most unfinished tasks at a time.")] = DEFAULT_MAX_ACTIVE,
    max_work: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Most predicted TFLOP of its unfinished tasks together; one alone may be more. By default no limit.",
        ),
    ] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Most submits a minute; by default no limit.")] = None,
    weight: Annotated[
        float, typer.Option(min=0.01, max=100, help="Its share of the drawing beside other keys: 2 is twice that of 1.")
    ] = DEFAULT_WEIGHT,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key. It is printed once and cannot be shown again."""
    if not name.strip():
        raise ConfigurationError("A key needs a name: say what it is for.")
    if not name.isprintable():
        raise ConfigurationError("A key's name is one line of printable characters.")
    command = admin.CreateKey(
        name=name, account=account, grant=None if granted is None else parse_credits(granted), max_active=max_active,
        max_work=max_work, rate_per_minute=rate, weight=weight,
    )  # fmt: skip
    (row,) = admin.rows(administration.administer(read_settings(config, {"data_dir": data_dir}), command))
    out.print(row.text, markup=False, soft_wrap=True)
    err.print(
        f"Key {row.id} of account {row.account}, credits: {_balance(row.balance)}. Keep it: it cannot be shown again.",
        markup=False,
        soft_wrap=True,
    )


@keys.command(name="list")
def list_keys(config: Config = None, data_dir: DataDir = None) -> None:
    """Every key, revoked ones too."""
    rows = admin.rows(administration.administer(read_settings(config, {"data_dir": data_dir}), admin.ListKeys()))
    lines = [
        (
            row.id, row.name, row.account, _balance(row.balance),
            _limit(row.max_active), _limit(row.max_work), _limit(row.rate_per_minute), f"{row.weight:g}",
            day(row.created_at), day(row.revoked_at),
        )
        for row in rows
    ]  # fmt: skip
    show_table(
        ("id", "name", "account", "credits", "active", "TFLOP", "per minute", "weight", "made", "revoked"), lines
    )


@keys.command(name="revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Close a key at once."""
    admin.rows(administration.administer(read_settings(config, {"data_dir": data_dir}), admin.RevokeKey(key_id=key_id)))
    out.print(f"Key {key_id} is revoked.", markup=False)


# -5 is an amount that is refused, not an option.
@credits_.command(name="grant", context_settings={"ignore_unknown_options": True})
def grant_credits(
    account: Annotated[str, typer.Argument(help="The account's name, or the name or id of one of its keys.")],
    amount: Annotated[str, typer.Argument(help="Credits to add; at most three decimals.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Add credits to an account that is not unlimited."""
    command = admin.GrantCredits(account=account, amount=parse_credits(amount))
    answer = administration.administer(read_settings(config, {"data_dir": data_dir}), command)
    admin.rows(answer)
    (row,) = answer.accounts
    out.print(f"{row.name} has {_balance(row.balance)} credits now.", markup=False, soft_wrap=True)


@credits_.command(name="show")
def show_credits(config: Config = None, data_dir: DataDir = None) -> None:
    """What each account has left, was granted, and spent or holds reserved for unfinished tasks."""
    answer = administration.administer(read_settings(config, {"data_dir": data_dir}), admin.ListAccounts())
    admin.rows(answer)
    lines = [
        (row.name, _balance(row.balance), format_credits(row.granted), format_credits(row.spent))
        for row in answer.accounts
    ]
    show_table(("account", "credits", "granted", "spent"), lines)


def _balance(value: int | None) -> str:
    return "unlimited" if value is None else format_credits(value)


def _limit(value: float | None) -> str:
    return "no limit" if value is None else f"{value:g}"
