"""Commands on a data folder: in its running server, or here when there is none."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from fluxserve import database
from fluxserve.api import admin
from fluxserve.app.folder import admin_path, database_path, input_storage, locked, open_store
from fluxserve.delivery.secrets import load_or_create
from fluxserve.errors import ConfigurationError
from fluxserve.service.keyring import Keyring
from fluxserve.settings import Settings


def administer(settings: Settings, command: admin.Command) -> admin.Answer:
    """Run a command in the running server, or here when the data folder's lock is free. Raises ConfigurationError."""
    answer = admin.ask(admin_path(settings), command)
    if answer is not None:
        return answer
    if not isinstance(command, admin.CreateKey) and not database_path(settings).is_file():
        raise ConfigurationError(f"There is no database in {settings.data_dir}: name its folder with --data-dir.")
    with locked(settings):
        return asyncio.run(_execute_here(settings, command))


async def _execute_here(settings: Settings, command: admin.Command) -> admin.Answer:
    async with open_store(settings) as store:
        keyring = Keyring(store, load_or_create(settings.data_dir).pepper)
        await keyring.load()
        inputs = input_storage(settings)
        return await admin.execute(command, store=store, keyring=keyring, inputs=inputs, now=time.time)


def restore(settings: Settings, source: Path) -> Path | None:
    """Put a backup in the database's place; refuses while a server runs. Returns where the old one is kept."""
    with locked(settings):
        return database.restore(source, database_path(settings))
