"""The folder that training works in: downloads, sprites, checkpoints, logs; nothing in it is committed."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    """`FLUXSERVE_TRAINING_WORK`, else `training/work`; made when it is not there."""
    chosen = os.environ.get("FLUXSERVE_TRAINING_WORK")
    path = Path(chosen).expanduser() if chosen else Path(__file__).parent / "work"
    path.mkdir(parents=True, exist_ok=True)
    return path
