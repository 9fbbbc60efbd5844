"""What every client here is asked for by `FLUX_CASE`, and how it tells what came of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

URL, KEY = os.environ["FLUX_URL"], os.environ["FLUX_KEY"]
#: A PNG to edit, and where the picture goes.
PICTURE, OUT = Path(os.environ["FLUX_PICTURE"]), Path(os.environ["FLUX_OUT"])
PROMPT = "a red apple"
#: The exit status of a client that raised an error, which it printed.
REFUSED = 3


def run(cases: Mapping[str, Callable[[], bytes]]) -> None:
    """Keep the picture of the case that is asked for, or print the client's error."""
    case = cases[os.environ["FLUX_CASE"]]
    try:
        picture = case()
    except Exception as error:  # noqa: BLE001 - whatever a client raises is what it tells
        print(error)
        sys.exit(REFUSED)
    OUT.write_bytes(picture)
