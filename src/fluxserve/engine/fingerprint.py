"""Fingerprints: everything that decides the value of a pixel, as one short word. Equal words promise equal pixels.

What it does not know: how pictures are drawn.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fluxserve import __version__
from fluxserve.catalogue import Size
from fluxserve.engine import layout
from fluxserve.engine.device import Runtime

_LENGTH = 16
_READERS = 4
_SHA256 = re.compile(r"[0-9a-f]{64}")


def weights_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of every file that decides what is drawn."""
    names = (layout.CARD_FILE, *layout.used_files(folder))
    files = [name for name in names if (folder / name).is_file()]
    with ThreadPoolExecutor(_READERS) as readers:
        digests = readers.map(lambda name: _digest(folder / name), files)
        listing = "\n".join(f"{name} {digest}" for name, digest in zip(files, digests, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def fingerprint(weights: str, runtime: Runtime, batches: Mapping[Size, int]) -> str:
    """The word for these weights, drawn this way by this code on this kind of machine.

    `batches` are the sizes whose forward passes have more rows than one.
    """
    import diffusers
    import torch
    import transformers

    cuda = torch.cuda.is_available() and runtime.device.startswith("cuda")
    facts = {
        "weights": weights,
        "code": [__version__, torch.__version__, diffusers.__version__, transformers.__version__],
        "device": torch.cuda.get_device_name(runtime.device) if cuda else runtime.device,
        "instructions": [platform.machine(), torch.backends.cpu.get_cpu_capability()],
        "libraries": [torch.version.cuda, torch.backends.cudnn.version()],  # type: ignore[no-untyped-call]
        "dtype": runtime.dtype,
        "threads": runtime.threads,
        "attention": "sdpa",
        "matmul": torch.get_float32_matmul_precision(),
        "batches": sorted((str(size), batch) for size, batch in batches.items() if batch > 1),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def _digest(file: Path) -> str:
    """SHA-256 of a file; the hub cache names its large files by exactly that, and they need not be read."""
    target = file.resolve()
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
