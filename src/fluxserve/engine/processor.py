"""What the machine's processor is and can do, as far as drawing depends on it; read without torch.

What it does not know: settings, networks.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Any of these multiplies bfloat16: AVX-512's and AMX's instructions of x86, and those of ARM.
_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")
_NAME = re.compile(r"^model name\s*: (.*)$", re.MULTILINE)
_FLAGS = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """`flags`: what it can do, in Linux's words; none where the system does not tell."""

    name: str
    flags: frozenset[str]

    @property
    def multiplies_bfloat16(self) -> str:
        """The flag that says so; empty: it takes such numbers apart, which is several times slower than float32."""
        return next((flag for flag in _BFLOAT16 if flag in self.flags), "")


def read(text: str) -> Processor:
    """From what Linux tells of the first processor."""
    name, flags = _NAME.search(text), _FLAGS.search(text)
    return Processor(
        name=name[1].strip() if name else platform.processor() or platform.machine(),
        flags=frozenset(flags[1].split()) if flags else frozenset(),
    )


@cache
def here() -> Processor:
    """This machine's."""
    return read(description())


def description() -> str:
    """What Linux tells of the first processor; empty on other systems."""
    try:
        return Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
    except OSError:
        return ""
