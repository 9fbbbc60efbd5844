"""Logging: one line for each change of state, as text for people or as JSON for machines.

What it does not know: prompts, keys and link signatures. They are never put into a record above DEBUG.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Literal

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """`12:30:01 info    message (action=..., task=...)`."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        extra = ", ".join(f"{name}={value}" for name, value in record.__dict__.items() if name not in _STANDARD)
        line = f"{clock} {record.levelname.lower():<7} {record.getMessage()}" + (f" ({extra})" if extra else "")
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def configure(level: str, style: Literal["text", "json"]) -> None:
    """Send every record of `level` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(level.upper())
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "diffusers", "transformers", "uvicorn.error", "asyncio", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # Events are counted by their lines, whether those are shown or not.
    logging.getLogger("fluxserve").setLevel(min(logging.INFO, logging.getLevelNamesMapping()[level.upper()]))
    # It warns of every form that is none, and callers are told so.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
