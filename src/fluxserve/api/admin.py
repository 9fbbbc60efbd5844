"""Administration over a private socket: keys, quarantine, the books, backups, for the command line on this machine.

The same commands run in the command line's own process when no server is there; both call `execute`.
What it does not know: HTTP. Nothing here can be reached from the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from fluxserve.delivery.storage import Storage
from fluxserve.errors import ConfigurationError, FluxserveError
from fluxserve.service.inputs import damages
from fluxserve.service.keyring import Keyring
from fluxserve.store.base import Account, Grant, KeyEntry, Store, TaskRecord
from fluxserve.worker.connection import same_user
from fluxserve.worker.protocol import read_frame

_LENGTH = struct.Struct(">I")
MAX_FRAME = 2**24
#: A check or a backup of a large database takes its time.
TIMEOUT_S = 600.0


class CreateKey(msgspec.Struct, frozen=True, kw_only=True, tag="create_key"):
    """Make a key. `grant` in thousandths of a credit; None: an unlimited account. `weight`: its share beside others."""

    name: str
    account: str | None
    grant: int | None
    max_active: int | None
    max_work: float | None
    rate_per_minute: int | None
    weight: float


class ListKeys(msgspec.Struct, frozen=True, kw_only=True, tag="list_keys"):
    """Every key."""


class RevokeKey(msgspec.Struct, frozen=True, kw_only=True, tag="revoke_key"):
    """Close a key."""

    key_id: str


class GrantCredits(msgspec.Struct, frozen=True, kw_only=True, tag="grant_credits"):
    """Add thousandths of a credit to the account of that name, or of the key of that id or name."""

    account: str
    amount: int


class ListAccounts(msgspec.Struct, frozen=True, kw_only=True, tag="list_accounts"):
    """Every account."""


class Fsck(msgspec.Struct, frozen=True, kw_only=True, tag="fsck"):
    """Check the books."""


class Backup(msgspec.Struct, frozen=True, kw_only=True, tag="backup"):
    """Copy the database to an absolute path."""

    target: str


class ListQuarantined(msgspec.Struct, frozen=True, kw_only=True, tag="list_quarantined"):
    """Every task that ended because it ended its engines, as long as it is kept."""


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """A key as the command line shows it; `text` only right after it was made."""

    id: str
    name: str
    account: str
    balance: int | None
    max_active: int | None
    max_work: float | None
    rate_per_minute: int | None
    weight: float
    created_at: float
    revoked_at: float | None
    text: str | None = None


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """An account as the command line shows it, in thousandths of a credit; `balance` None: it is unlimited."""

    name: str
    balance: int | None
    granted: int
    spent: int


class QuarantinedRow(msgspec.Struct, frozen=True, kw_only=True):
    """A quarantined task as the command line shows it: what it takes to draw it again, but not its prompt.

    `best_step` is how far it came; `spoiled` counts the engines it ended, 0: it only waited for one that did.
    """

    id: str
    account_id: str
    model: str
    size: str
    steps: int
    seed: int
    spoiled: int
    best_step: int
    finished_at: float | None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a command answers: rows of keys, accounts or tasks, violations, or the message of an error."""

    keys: tuple[KeyRow, ...] = ()
    accounts: tuple[AccountRow, ...] = ()
    quarantined: tuple[QuarantinedRow, ...] = ()
    violations: tuple[str, ...] = ()
    error: str | None = None


Command = CreateKey | ListKeys | RevokeKey | GrantCredits | ListAccounts | Fsck | Backup | ListQuarantined
_encoder = msgspec.msgpack.Encoder()
_command = msgspec.msgpack.Decoder(Command)
_answer = msgspec.msgpack.Decoder(Answer)


async def execute(
    command: Command, *, store: Store, keyring: Keyring, inputs: Storage, now: Callable[[], float]
) -> Answer:
    """Carry a command out; `inputs` holds the files of input pictures."""
    match command:
        case CreateKey():
            if any(
                entry.key.name == command.name and entry.key.revoked_at is None for entry in await keyring.entries()
            ):
                return Answer(
                    error=f"There is a key named {command.name} already: choose another name, or revoke that one."
                )
            text, entry = await keyring.create(
                name=command.name,
                account=command.account,
                grant=command.grant,
                max_active=command.max_active,
                max_work=command.max_work,
                rate_per_minute=command.rate_per_minute,
                weight=command.weight,
                now=now(),
            )
            return Answer(keys=(_row(entry, text),))
        case ListKeys():
            return Answer(keys=tuple(_row(entry) for entry in await keyring.entries()))
        case RevokeKey(key_id=key_id):
            revoked = await keyring.revoke(key_id, now())
            if revoked is None:
                return Answer(error=f"There is no key {key_id}. `fluxserve keys list` shows them all.")
            return Answer(keys=(_row(revoked),))
        case GrantCredits():
            return await _grant(command, store, now())
        case ListAccounts():
            return Answer(accounts=tuple(map(_account_row, await store.accounts())))
        case ListQuarantined():
            return Answer(quarantined=tuple(map(_quarantined_row, await store.quarantined())))
        case Fsck():
            return Answer(violations=(*await store.fsck(), *await damages(store, inputs)))
        case Backup(target=target):
            await store.backup(Path(target))
            return Answer()


async def _grant(command: GrantCredits, store: Store, now: float) -> Answer:
    """To the account of that name, else of the key of that id, else of the only key of that name."""
    keys, meant = await store.keys(), command.account
    named = {account.name for account in await store.accounts()}
    owners = {entry.account_name for entry in keys if entry.key.id == meant}
    owners = owners or {entry.account_name for entry in keys if entry.key.name == meant}
    if meant not in named and len(owners) > 1:
        accounts = ", ".join(sorted(owners))
        return Answer(error=f"Several accounts have a key named {meant}: {accounts}. Name one of these.")
    owner = meant if meant in named else next(iter(owners), meant)
    account = await store.grant(Grant(account=owner, amount=command.amount, now=now))
    if account is None:
        return Answer(error=f"There is no account or key {meant}. `fluxserve credits show` lists accounts.")
    if account.balance is None:
        return Answer(error=f"The account {account.name} is unlimited: it needs no credits.")
    return Answer(accounts=(_account_row(account),))


def _account_row(account: Account) -> AccountRow:
    return AccountRow(name=account.name, balance=account.balance, granted=account.granted, spent=account.spent)


def _row(entry: KeyEntry, text: str | None = None) -> KeyRow:
    key = entry.key
    return KeyRow(
        id=key.id, name=key.name, account=entry.account_name, balance=entry.balance, max_active=key.max_active,
        max_work=key.max_work, rate_per_minute=key.rate_per_minute, weight=key.weight, created_at=key.created_at,
        revoked_at=key.revoked_at, text=text,
    )  # fmt: skip


def _quarantined_row(record: TaskRecord) -> QuarantinedRow:
    drawing = record.generation
    return QuarantinedRow(
        id=record.id, account_id=record.account_id, model=drawing.model, size=str(drawing.size), steps=drawing.steps,
        seed=drawing.seed, spoiled=record.attempts.spoiled, best_step=record.attempts.best_step,
        finished_at=record.finished_at,
    )  # fmt: skip


class AdminSocket:
    """Answers commands on the private socket."""

    def __init__(self, *, store: Store, keyring: Keyring, inputs: Storage, now: Callable[[], float]) -> None:
        self._store = store
        self._keyring = keyring
        self._inputs = inputs
        self._now = now

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: commands until it closes."""
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, FluxserveError, msgspec.DecodeError):
            if not same_user(writer.get_extra_info("socket")):
                return
            while (body := await read_frame(reader, limit=MAX_FRAME)) is not None:
                try:
                    answer = await execute(
                        _command.decode(body),
                        store=self._store,
                        keyring=self._keyring,
                        inputs=self._inputs,
                        now=self._now,
                    )
                except FluxserveError as error:
                    answer = Answer(error=error.message)
                writer.write(_frame(answer))
                await writer.drain()
        writer.close()


def ask(path: Path, command: Command) -> Answer | None:
    """Send a command to the running server; None when no server listens. Raises ConfigurationError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(str(path))
        except OSError:
            return None
        if not same_user(connection):
            raise ConfigurationError(f"{path} belongs to another user: it is not this server's admin socket.")
        try:
            connection.sendall(_frame(command))
            (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
            return _answer.decode(_receive(connection, length))
        except (OSError, EOFError, msgspec.DecodeError):
            raise ConfigurationError("The running server did not answer on its admin socket.") from None


def _receive(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def _frame(message: Command | Answer) -> bytes:
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def rows(answer: Answer) -> Sequence[KeyRow]:
    """The keys of an answer; raises ConfigurationError for an error."""
    if answer.error is not None:
        raise ConfigurationError(answer.error)
    return answer.keys
