"""Fingerprints: everything that decides the value of a pixel, as one short word. Equal words promise equal pixels.

What it does not know: how pictures are drawn.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from fluxserve import __version__, catalogue
from fluxserve.catalogue import Size
from fluxserve.engine import layout, processor
from fluxserve.engine.beside import NOTHING, Beside
from fluxserve.engine.device import Runtime
from fluxserve.engine.single_file import Piece

_LENGTH = 16
#: What turns a request into pixels: the engine, and the sizes and defaults of the catalogue.
_SOURCES = (Path(__file__).parent, Path(catalogue.__file__).parent)
_DRAWING_LIBRARIES = ("diffusers", "transformers", "tokenizers", "pillow")
_READERS = 4
#: Ways to compute attention that torch may choose between, by shapes and device.
_ATTENTION = ("flash", "mem_efficient", "math", "cudnn")
#: With these, the libraries under torch choose other kernels.
_KERNEL_VARIABLES = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
)
#: What tells processors with other kernels apart, in Linux's description of the first one.
_PROCESSOR = re.compile(r"^(?:vendor_id|cpu family|model|stepping|flags|CPU \w+|Features)\s*:.*", re.MULTILINE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def weights_hash(folder: Path, pieces: Mapping[str, Piece] = MappingProxyType({}), beside: Beside = NOTHING) -> str:
    """SHA-256 over the names and contents of every file that decides what is drawn, and which parts are in which."""
    card = () if "transformer" in pieces else (layout.CARD_FILE,)
    names = (*card, layout.INDEX_FILE, *layout.used_files(folder, without=pieces))
    files = {name: folder / name for name in names if (folder / name).is_file()}
    files |= beside.files
    single = sorted({piece.file for piece in pieces.values()})
    with ThreadPoolExecutor(_READERS) as readers:
        digests = dict(zip((*files.values(), *single), readers.map(_digest, (*files.values(), *single)), strict=True))
    listing = [f"{name} {digests[file]}" for name, file in files.items()]
    listing += [f"{part} in {pieces[part].prefix} of {digests[pieces[part].file]}" for part in sorted(pieces)]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()


@cache
def sources_hash(folders: tuple[Path, ...]) -> str:
    """SHA-256 over all code that draws: another release may draw otherwise, and nobody has to remember to say so."""
    files = sorted(
        (file.relative_to(folder.parent).as_posix(), file) for folder in folders for file in folder.rglob("*.py")
    )
    listing = "\n".join(f"{name} {_digest(file)}" for name, file in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def fingerprint(weights: str, runtime: Runtime, batches: Mapping[Size, int]) -> str:
    """The word for these weights, drawn this way by this code on this kind of machine.

    `batches` are the sizes whose forward passes have more rows than one. No kernel is chosen by how fast it was: cuDNN
    and the compiler measure nothing (`device.apply`, `faster.compiled`), and all other libraries choose by shapes, by
    the processor and by what is named here. So a process draws what the last one of its fingerprint drew.
    """
    import torch

    backends = torch.backends
    cuda = torch.cuda.is_available() and runtime.device.startswith("cuda")
    facts = {
        "weights": weights,
        "code": [__version__, sources_hash(_SOURCES), torch.__version__, *map(metadata.version, _DRAWING_LIBRARIES)],
        "device": torch.cuda.get_device_name(runtime.device) if cuda else runtime.device,
        "instructions": [platform.machine(), backends.cpu.get_cpu_capability(), _processor()],
        "libraries": [torch.version.cuda, backends.cudnn.version()],  # type: ignore[no-untyped-call]
        "dtype": runtime.dtype,
        "plan": runtime.plan.words,
        "speed": [*runtime.speed.words, *_compiler(runtime)],
        "threads": runtime.threads,
        "attention": ["sdpa", *(getattr(backends.cuda, f"{kind}_sdp_enabled")() for kind in _ATTENTION)],
        "matmul": [torch.get_float32_matmul_precision(), str(backends.cuda.preferred_blas_library())],
        "convolution": [backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32],
        "environment": {name: os.environ.get(name) for name in _KERNEL_VARIABLES},
        "batches": sorted((str(size), batch) for size, batch in batches.items() if batch > 1),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_LENGTH]


def _compiler(runtime: Runtime) -> list[str]:
    """What makes kernels where networks are compiled, and the package that has them where it is not torch."""
    packages = {"triton": runtime.speed.compiled, "flash_attn_3": runtime.speed.attention == "flash3"}
    return [f"{name} {_version(name)}" for name, is_used in packages.items() if is_used]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _processor() -> str:
    """The CPU: libraries choose their kernels by its model and by what it can do."""
    return "\n".join(_PROCESSOR.findall(processor.description())) or platform.processor()


def _digest(file: Path) -> str:
    """SHA-256 of a file; the hub cache names its large files by exactly that, and they need not be read.

    Read once in a process, as long as it is the same file, of the same size and time.
    """
    target = file.resolve()
    if target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
        return target.name
    state = target.stat()
    return _digest_of(target, (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))


@lru_cache(maxsize=4096)
def _digest_of(file: Path, state: tuple[int, ...]) -> str:
    """`state` tells one content from another."""
    del state
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
