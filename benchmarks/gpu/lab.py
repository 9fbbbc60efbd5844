"""What the scripts of this folder share: networks of the published sizes with random numbers, a clock, a results file.

Speed does not depend on the values of weights, so they are drawn on the device from a normal distribution (never zeros,
which a GPU multiplies faster). Each script is one command that ends within nine minutes, whatever it is at then; it
answers 75 where something is left for lack of time. What was measured is not measured again, so it is run until it
answers 0. Before it times anything it holds it against a float32 reference; what fails is written down, and tried again
by another commit or with `--again`. After each measurement the device is empty again. With `--device cpu --tiny` all of
it runs anywhere, at sizes that prove the path and measure nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import Linear, Module

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "src"), str(ROOT / "tests" / "engine")]

import flux2_folders
import tiny

from fluxserve.engine import eight_bits, published
from fluxserve.engine.faster import prepare, switch_of
from fluxserve.engine.faster.switch import Learning
from fluxserve.engine.speed import Speed

RESULTS = Path(__file__).with_name("results.jsonl")
#: Tokens of a text: as many as the engine gives each of these weights.
WORDS = {"FLUX.1-dev": 512, "FLUX.1-schnell": 256}
ROUNDS = 5
#: No more rounds are begun once those of a measurement have taken so long.
_LONG_S = 40.0
#: What has begun may end so long after the time that was given; then it is ended.
_OVER_S = 40.0
#: How often a script is told that it has to end: code that must not be interrupted may not hear it at once.
_AGAIN_S = 5.0
#: What a script answers that has to be run again (`EX_TEMPFAIL`).
UNFINISHED = 75
_LONGEST_LINE = 200


class TimeIsUp(BaseException):
    """In the midst of whatever a script is at when it has to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where things are measured, for how long at most, and where results go. `tiny`: the path only, not its speed."""

    device: torch.device
    tiny: bool
    out: Path
    again: bool
    ends: float
    model: str = "FLUX.1-dev"
    tried: set[tuple[str, str]] = field(default_factory=set)
    left: list[str] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        """Of everything that is measured."""
        return torch.bfloat16

    def has_time(self, takes: float = 0.0) -> bool:
        """Whether another measurement may begin that takes about so many seconds."""
        now = time.monotonic()
        return now < self.ends and now + takes < self.ends + _OVER_S

    @property
    def answer(self) -> int:
        """Of the script: 0 where nothing is left to be measured."""
        return UNFINISHED if self.left else 0

    @property
    def machine(self) -> str:
        """What measures."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu, tiny"

    def seconds(self, work: Callable[[], object], rounds: int = ROUNDS, *, is_warm: bool = False) -> float:
        """The median of some rounds, fewer where they take long, after one to warm up unless all is warm."""
        if not is_warm:
            work()
        times: list[float] = []
        while len(times) < (1 if self.tiny else rounds) and sum(times) < _LONG_S:
            self.settle()
            began = time.perf_counter()
            work()
            self.settle()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def found(self, stage: str, what: str) -> dict[str, float] | None:
        """What was measured before, here and for this model; None: nothing was, or it failed."""
        row = self._row(stage, what)
        return None if row is None or "failed" in row else {k: v for k, v in row.items() if isinstance(v, float)}

    def has_failed(self, stage: str, what: str) -> bool:
        """Whether it failed, by this very commit."""
        row = self._row(stage, what)
        return row is not None and "failed" in row and row["commit"] == _commit()

    def is_done(self, stage: str, what: str) -> bool:
        """Whether it needs no trying: it was measured, or failed by this very commit."""
        return self.found(stage, what) is not None or self.has_failed(stage, what)

    def measure(
        self,
        stage: str,
        what: str,
        act: Callable[[], Mapping[str, float | str]],
        takes: float = 0.0,
        *,
        anew: bool = False,
    ) -> Mapping[str, float | str] | None:
        """What `act` measures, unless that is known; None where it fails, or there is no time for what it `takes`.

        `anew`: also where it is known, because others need what it makes.
        """
        if not anew and self.is_done(stage, what):
            return self.found(stage, what)
        if not self.has_time(takes):
            self.left.append(f"{stage}: {what}")
            print(f"{stage}: no time left for {what}; run the command again")
            return None
        free()
        try:
            figures = act()
        except Exception as error:  # noqa: BLE001 - whatever fails is a result; others are measured all the same
            words = (str(error).splitlines() or [""])[0][:_LONGEST_LINE]
            self._write(stage, what, {"failed": f"{type(error).__name__}: {words}"})
            print(f"{stage}: {what} fails here: {type(error).__name__}: {words}", flush=True)
            del error
            self._check_device()
            return None
        finally:
            free()
        self._write(stage, what, figures)
        print(f"{stage}: {what}: " + ", ".join(f"{name} {_told(value)}" for name, value in figures.items()), flush=True)
        return figures

    def _row(self, stage: str, what: str) -> dict[str, object] | None:
        """The last one."""
        if not self.again or (stage, what) in self.tried:
            for row in _rows(self.out):
                if (row["stage"], row["what"], row["model"], row["machine"]) == (stage, what, self.model, self.machine):
                    return row
        return None

    def _write(self, stage: str, what: str, figures: Mapping[str, float | str]) -> None:
        self.tried.add((stage, what))
        row = {"stage": stage, "what": what, "model": self.model, "machine": self.machine, "commit": _commit()}
        with self.out.open("a") as file:
            file.write(json.dumps({**row, **figures}) + "\n")

    def _check_device(self) -> None:
        """After some failures a GPU answers nothing more in this process."""
        try:
            self.settle()
        except RuntimeError:
            sys.exit("The device does not answer any more: run the command again for the rest.")


def free() -> None:
    """Give the device back what nothing needs any more: prepared layers know each other, so they go by collection."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def begin(description: str, arguments: Sequence[str] | None, models: Sequence[str] = ()) -> Bench:
    """Read the command line and set torch up as the engine does."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="prove the path at sizes that measure nothing")
    parser.add_argument("--again", action="store_true", help="measure what was measured before, too")
    parser.add_argument("--minutes", type=float, default=8.0, help="begin nothing after this long")
    parser.add_argument("--out", type=Path, default=RESULTS)
    if models:
        parser.add_argument("--model", choices=models, default=models[0])
    options = parser.parse_args(arguments)
    torch.backends.cudnn.deterministic = True
    ends = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGALRM, _tell_that_time_is_up)
    signal.setitimer(signal.ITIMER_REAL, 60 * options.minutes + _OVER_S, _AGAIN_S)
    return Bench(
        device=torch.device(options.device),
        tiny=options.tiny,
        out=options.out,
        again=options.again,
        ends=ends,
        model=options.model if models else "",
    )


def run(main: Callable[[], int]) -> NoReturn:
    """Run a script and end the process with its answer, also where threads are still at work."""
    try:
        answer = main()
    except TimeIsUp:
        print("Time is up: run the command again for the rest.")
        answer = UNFINISHED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(answer)


def _tell_that_time_is_up(*_: object) -> NoReturn:
    raise TimeIsUp


def shape_of(model: str) -> str:
    """The word for what was published under this name."""
    return next(word for word, shape in published.SHAPES.items() if shape.title == model)


def transformer(bench: Bench, *, thin: bool = False, dtype: torch.dtype | None = None) -> Module:
    """The published one, or with two blocks of each kind; equal numbers each time, whatever the format."""
    torch.manual_seed(7)
    with bench.device:
        if bench.tiny:
            is_flux1 = bench.model.startswith("FLUX.1")
            made = tiny.tiny_networks()[0] if is_flux1 else flux2_folders.tiny_transformer(guidance_embeds=True)
        else:
            torch.set_default_dtype(dtype or bench.dtype)
            made = published.made(shape_of(bench.model), "transformer")
            torch.set_default_dtype(torch.float32)
    if thin:
        made.transformer_blocks, made.single_transformer_blocks = (
            made.transformer_blocks[:2],
            made.single_transformer_blocks[:2],
        )
    draw(made)
    return Module.to(made, dtype or bench.dtype).eval().requires_grad_(requires_grad=False)


def draw(network: Module) -> None:
    """Normal numbers: matrices keep the length of what they multiply, all else is near what its class begins with."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.02)


def hold_in_8_bits(network: Module) -> None:
    """As a plan with float8 holds the matrices of a transformer's blocks."""
    for lists in ("transformer_blocks", "single_transformer_blocks"):
        for layer in network.get_submodule(lists).modules():
            if isinstance(layer, Linear):
                eight_bits.hold(layer, layer.weight.data, "float8")


def inputs(
    bench: Bench, network: Module, size: int, rows: int = 1, dtype: torch.dtype | None = None
) -> dict[str, object]:
    """What a pass reads for pictures of `size` x `size` pixels.

    Noise level and guidance are numbers that 16 bits hold as they are: else the reference would read others.
    """
    dtype, device = dtype or bench.dtype, bench.device
    side = 4 if bench.tiny else size // 16
    words = 8 if bench.tiny else WORDS.get(bench.model, 512)
    is_flux1 = bench.model.startswith("FLUX.1")
    axes, dice = (3 if is_flux1 else 4), torch.Generator(device).manual_seed(rows)
    places, texts = torch.zeros(side**2, axes, device=device), torch.zeros(words, axes, device=device)
    places[:, 1] = torch.arange(side, device=device).repeat_interleave(side)
    places[:, 2] = torch.arange(side, device=device).repeat(side)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice, device=device).to(dtype)

    config = network.config
    guided = (is_flux1 and bool(config.guidance_embeds)) or not is_flux1
    return {
        "hidden_states": drawn(rows, side**2, config.in_channels),
        "encoder_hidden_states": drawn(rows, words, config.joint_attention_dim),
        "timestep": torch.full((rows,), 0.5, device=device),
        "guidance": torch.full((rows,), 4.0, device=device) if guided else None,
        "img_ids": places,
        "txt_ids": texts,
        "return_dict": False,
        **({"pooled_projections": drawn(rows, config.pooled_projection_dim)} if is_flux1 else {}),
    }


def made_fast(bench: Bench, speed: Speed, *, thin: bool = False) -> Module:
    """A transformer that is prepared so; in 8 bits where that is asked for."""
    network = transformer(bench, thin=thin)
    if speed.float8:
        hold_in_8_bits(network)
    prepare(network, speed)
    return network


def passed(network: Module, given: dict[str, object]) -> Tensor:
    """One forward pass."""
    with torch.inference_mode():
        found: Tensor = network(**given)[0]
    return found


def warm(network: Module, given: dict[str, object]) -> None:
    """Let it learn the shape of a pass."""
    with switch_of(network).learning(Learning.COMPANY), switch_of(network).learning(Learning.ALONE):
        passed(network, given)


def off_by(bench: Bench, speed: Speed, size: int) -> float:
    """How far a pass of two blocks of each kind is from float32's, in lengths of that. Leaves the device empty."""
    exact = _exact(bench, size)
    free()
    found = _fast(bench, speed, size)
    free()
    return float((found - exact).norm() / exact.norm())


def _exact(bench: Bench, size: int) -> Tensor:
    reference = made_float32(bench)
    return passed(reference, inputs(bench, reference, size, dtype=torch.float32))


def _fast(bench: Bench, speed: Speed, size: int) -> Tensor:
    network = made_fast(bench, speed, thin=True)
    given = inputs(bench, network, size)
    warm(network, given)
    return passed(network, given).float()


def made_float32(bench: Bench) -> Module:
    """Two blocks of each kind with the numbers that 16 bits have, in float32."""
    network = Module.to(transformer(bench, thin=True), torch.float32)
    prepare(network, Speed())
    return network


def teraflop(bench: Bench, size: int, rows: int = 1) -> float:
    """Of one pass: counted by torch while a pass is made without numbers."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = transformer(_nowhere(bench))
    given = {
        name: one.to("meta") if isinstance(one, Tensor) else one
        for name, one in inputs(bench, network, size, rows).items()
    }
    with FlopCounterMode(display=False) as counted:
        passed(network, given)
    return counted.get_total_flops() / 1e12


def _nowhere(bench: Bench) -> Bench:
    from dataclasses import replace

    return replace(bench, device=torch.device("meta"))


def _told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def ceiling(bench: Bench, what: str) -> float | None:
    """TFLOP/s of a large product as `ceilings.py` measured it here; None: it was not."""
    for row in _rows(bench.out):
        if (row["stage"], row["what"], row["machine"]) == ("ceilings", what, bench.machine):
            return float(row["tflops"])
    return None


def _rows(file: Path) -> list[dict[str, object]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in reversed(lines)]


def _commit() -> str:
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip()
