"""Which checkpoint draws each model, and whether its licence was accepted: by setting, or once by a person."""

from __future__ import annotations

import json
from collections.abc import Callable

from fluxserve.app.folder import prepare_data_dir
from fluxserve.engine.checkpoints import Checkpoint, plan
from fluxserve.errors import LicenseNotAccepted
from fluxserve.settings import Settings

LICENSES_FILE = "accepted_licenses.json"


def accepted_licenses(settings: Settings) -> frozenset[str]:
    """The licences accepted by setting, or earlier on this data folder."""
    try:
        kept = json.loads((settings.data_dir / LICENSES_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        kept = []
    return frozenset(settings.accept_licenses) | frozenset(str(name) for name in kept)


def accept_licenses(settings: Settings, ask: Callable[[Checkpoint], bool] | None) -> None:
    """Make sure the weights' licences are accepted, asking where somebody can answer. Raises LicenseNotAccepted."""
    accepted = accepted_licenses(settings)
    for checkpoint in plan(settings).values():
        needed = checkpoint.license_needed
        if needed is None or needed in accepted:
            continue
        if ask is None or not ask(checkpoint):
            raise LicenseNotAccepted(
                f"{checkpoint.name} is licensed under {needed}, which has to be accepted first: "
                f'set accept_licenses = ["{needed}"] or FLUXSERVE_ACCEPT_LICENSES={needed}.'
            )
        accepted |= {needed}
        prepare_data_dir(settings.data_dir)
        (settings.data_dir / LICENSES_FILE).write_text(json.dumps(sorted(accepted)) + "\n", "utf-8")
