"""The embedded model: a tiny real FLUX.1-layout checkpoint that ships in the package, so that nothing is downloaded.

Data and its path, no code. README.md beside this file is its model card, NOTICE names where its pictures came from.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def folder() -> Path:
    """The checkpoint's folder, in diffusers layout."""
    return Path(str(files(__name__))) / "pipeline"
