"""Where and how the networks run: device, number format, threads, and how much steps together.

What it does not know: checkpoints, pictures.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fluxserve.engine.means import Stage
from fluxserve.engine.plans import RESIDENT, Plan
from fluxserve.engine.processor import Processor, here
from fluxserve.engine.speed import PLAIN, Speed, Surroundings, choose
from fluxserve.errors import ConfigurationError
from fluxserve.settings import CHECKPOINT, PlanChoice, Settings

if TYPE_CHECKING:
    import torch

#: Weights up to this many bytes are a tiny network: more threads than one only slow it down.
TINY_WEIGHTS = 256 * 2**20
#: What a worker with tiny networks takes: more of them than fit into half of the memory are too many.
_TINY_WORKER_BYTES = 2**30
_MOST_WORKERS = 16
#: Share of a machine's memory for weights that wait in it for their turn on a GPU.
_WAITING = 0.4
#: Where drivers of GPUs show, without asking torch, which takes seconds to load.
_GPU_FILES = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
_GPU_FILE = re.compile(r"nvidia\d+")
#: A compute capability that no NVIDIA GPU is beyond, where it is not known yet.
_NEWEST = (99, 0)
#: Memory that is not planned with: the driver's own and what allocators leave unused; on a CPU the whole system's.
_RESERVE, _CPU_RESERVE = 2**30, 2 * 2**30
#: Of a small memory no more than this share.
_RESERVED_SHARE = 4


Numbers = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The settings with every `auto` resolved on this machine.

    `token_budget` 0: to be measured. `prompt_cache` and `finetune_cache`: bytes for each checkpoint. `finetunes`: the
    folder of LoRA files. `kept_in`: the folder for what was measured, None where nothing is to be kept. `memory`: bytes
    that may be planned with by the `memory_plan` of this name, and `plan` what came of it for one checkpoint. `why`:
    how its number format and threads were chosen, for people.
    """

    device: str
    dtype: Numbers
    threads: int
    token_budget: int
    prompt_cache: int = 0
    finetunes: Path | None = None
    finetune_cache: int = 0
    kept_in: Path | None = None
    memory: int = 0
    memory_plan: PlanChoice = "resident"
    plan: Plan = RESIDENT
    why: str = field(default="", compare=False)
    speed: Speed = PLAIN
    #: Language models that read prompts answer too.
    writes: bool = False

    @property
    def kind(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def number_bytes(self) -> int:
        """Of a number as it is computed in."""
        return 4 if self.dtype == "float32" else 2

    @property
    def has_room_beside_steps(self) -> bool:
        """Whether other threads can work while a step runs: not where steps take every core, nor on Apple's GPUs."""
        return self.device.startswith("cuda") or (self.device == "cpu" and self.threads == 1)

    @property
    def torch_device(self) -> torch.device:
        """As torch names it."""
        import torch

        return torch.device(self.device)

    def home_of(self, stage: Stage) -> torch.device:
        """Where the weights of a stage are kept."""
        import torch

        return torch.device("cpu") if stage in self.plan.at_home else self.torch_device

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch names it."""
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Bytes for checkpoints: on the device, and in the machine's memory for weights that wait beside a GPU."""

    device: int
    host: int


def room(settings: Settings, runtime: Runtime) -> Room:
    """What the settings mean here; local workers of one machine share its memory."""
    workers = settings.workers or 1
    if runtime.kind != "cuda":
        return Room(device=runtime.memory // workers, host=0)
    return Room(device=runtime.memory, host=(settings.host_weights or int(_WAITING * _memory())) // workers)


def resolve(settings: Settings, weight_bytes: int, processor: Processor | None = None) -> Runtime:
    """What the settings mean here, for networks of `weight_bytes` in all. Raises ConfigurationError.

    `processor`: another than this machine's.
    """
    device = _device() if settings.device == "auto" else settings.device
    if not _is_there(device):
        raise ConfigurationError(f"device = {device}: torch finds no such device here. Use auto or cpu.")
    is_tiny = weight_bytes <= TINY_WEIGHTS
    auto_dtype, why = _numbers(device, processor or here(), is_tiny=is_tiny)
    dtype = auto_dtype if settings.dtype == "auto" else settings.dtype
    return Runtime(
        device=device,
        dtype=dtype,
        threads=settings.threads or (1 if is_tiny else _cores()),
        why=_reasons(settings, why, is_tiny=is_tiny),
        token_budget=settings.token_budget,
        prompt_cache=settings.prompt_cache,
        finetunes=settings.finetunes,
        finetune_cache=settings.finetune_cache,
        kept_in=settings.data_dir / "measured",
        memory=settings.memory_budget or _whole_memory(device),
        memory_plan=settings.memory_plan,
        writes=settings.prompt_upsampler == CHECKPOINT,
        speed=choose(settings, _around(device, dtype, tiny=weight_bytes <= TINY_WEIGHTS)),
    )


def check_speed(settings: Settings) -> None:
    """Raise ConfigurationError for what is asked for speed and no device here can do; at once, and without torch.

    What only the device itself can tell, a worker refuses in its first seconds (`resolve`).
    """
    refused: list[ConfigurationError] = []
    devices = _possible_devices(settings)
    for device in devices:
        numbers = settings.dtype if settings.dtype != "auto" else "bfloat16" if device != "cpu" else "float32"
        around = replace(_surely(device, numbers), capability=_NEWEST if device.startswith("cuda") else (0, 0))
        try:
            choose(settings, around)
        except ConfigurationError as error:
            refused.append(error)
    if len(refused) == len(devices):
        raise refused[0]


def _possible_devices(settings: Settings) -> Sequence[str]:
    """What `auto` may turn out to be."""
    if settings.device != "auto":
        return (settings.device,)
    if not _may_have_gpu():
        return ("cpu",)
    return ("mps", "cpu") if platform.system() == "Darwin" else ("cuda", "cpu")


def _numbers(device: str, processor: Processor, *, is_tiny: bool) -> tuple[Numbers, str]:
    """The number format that is fastest there, and why. Tiny networks take their time in other things than products."""
    if device != "cpu":
        return "bfloat16", "bfloat16 on a GPU"
    if is_tiny:
        return "float32", "float32 for tiny networks on a CPU"
    if flag := processor.multiplies_bfloat16:
        return "bfloat16", f"bfloat16 because the processor multiplies it ({flag})"
    return "float32", "float32 because the processor does not multiply bfloat16"


def _reasons(settings: Settings, numbers: str, *, is_tiny: bool) -> str:
    dtype = numbers if settings.dtype == "auto" else f"{settings.dtype} by setting"
    if settings.threads:
        return f"{dtype}, threads by setting"
    return f"{dtype}, {'one thread for each worker because networks are tiny' if is_tiny else 'every core as a thread'}"


def sensible_workers(settings: Settings, weight_bytes: int) -> int:
    """How many local workers make the best of this machine with networks of `weight_bytes` in all; without torch.

    A tiny network is drawn with one thread, so a CPU gets a worker for each core; a large one takes all cores, and
    each GPU one process.
    """
    on_cpu = settings.device == "cpu" or (settings.device == "auto" and not _may_have_gpu())
    if not on_cpu:
        return max(1, len(gpus(settings)))
    if weight_bytes > TINY_WEIGHTS or settings.threads > 1:
        return 1
    return max(1, min(_cores(), _MOST_WORKERS, _memory() // (2 * _TINY_WORKER_BYTES)))


def gpus(settings: Settings, environ: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> Sequence[str]:
    """NVIDIA's GPUs to be shared by local workers, as CUDA_VISIBLE_DEVICES names them; none where a device is named.

    Without torch, which takes seconds to load.
    """
    if settings.device != "auto":
        return ()
    if "CUDA_VISIBLE_DEVICES" in environ:
        names = [name.strip() for name in environ["CUDA_VISIBLE_DEVICES"].split(",")]
        return tuple(itertools.takewhile(lambda name: name not in ("", "-1"), names))
    count = sum(_GPU_FILE.fullmatch(file.name) is not None for file in devices.glob("nvidia*"))
    return tuple(map(str, range(count)))


def apply(runtime: Runtime) -> None:
    """Make torch run this way in the whole process and in this thread, with repeatable kernels."""
    import torch

    torch.set_num_threads(runtime.threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def surroundings(runtime: Runtime) -> Callable[[], AbstractContextManager[None]]:
    """What work beside the steps is to be done in: no gradients and, on a GPU, a queue of its own.

    The work is finished on the device when it is left, so that what it made can be used anywhere.
    """
    import torch

    queue = torch.cuda.Stream(runtime.torch_device) if runtime.torch_device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def enter() -> Iterator[None]:
        with torch.inference_mode(), torch.cuda.stream(queue) if queue else contextlib.nullcontext():
            yield
            finish(runtime)

    return enter


def finish(runtime: Runtime) -> None:
    """Wait until the device has done what this thread asked of it."""
    import torch

    if runtime.torch_device.type == "cuda":
        torch.cuda.current_stream(runtime.torch_device).synchronize()
    elif runtime.torch_device.type == "mps":
        torch.mps.synchronize()


def release_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc).

    Each size of picture leaves holes of other lengths: after 29 sizes decoded on a CPU a process held 1.0 GB without
    this and 0.56 GB with it. Takes some milliseconds.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _around(device: str, dtype: str, *, tiny: bool) -> Surroundings:
    """What the device can do, and what is installed beside it."""
    around = replace(_surely(device, dtype), tiny=tiny)
    if around.kind != "cuda":
        return around
    import torch

    return replace(around, capability=torch.cuda.get_device_capability(device))


def _surely(device: str, dtype: str) -> Surroundings:
    """The same, but for what has to be asked of the device."""
    kind = device.partition(":")[0]
    compiler = any(map(shutil.which, (os.environ.get("CXX") or "g++", "c++", "clang++", "gcc", "cc")))
    return Surroundings(
        kind=kind,
        dtype=dtype,
        compiles=compiler and (kind != "cuda" or importlib.util.find_spec("triton") is not None),
        flash3=importlib.util.find_spec("flash_attn_interface") is not None,
    )


def _whole_memory(device: str) -> int:
    """Bytes of the device that may be planned with."""
    if not device.startswith("cuda"):
        return _less(_memory(), _CPU_RESERVE)
    import torch

    return _less(torch.cuda.get_device_properties(device).total_memory, _RESERVE)


def _less(memory: int, reserve: int) -> int:
    return memory - min(reserve, memory // _RESERVED_SHARE)


def _device() -> str:
    if not _may_have_gpu():
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _is_there(device: str) -> bool:
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return True
    import torch

    if kind == "cuda":
        return int(index or 0) < torch.cuda.device_count()
    return torch.backends.mps.is_available()


def _may_have_gpu() -> bool:
    """Whether torch may find a GPU; Macs with their own processors have one."""
    return any(Path(file).exists() for file in _GPU_FILES) or (
        platform.system() == "Darwin" and platform.machine() == "arm64"
    )


def _memory() -> int:
    """Bytes of memory in the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cores() -> int:
    """Cores this process may use; a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
