"""What the engine does where a picture cannot be drawn as usual: it draws it otherwise, says so, and stays sound."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine.base import Event, Failed, Finished, Pixels, Progressed
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.device import Runtime
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.engine.drawer import Drawer
from fluxserve.engine.forward import Company
from fluxserve.engine.means import USUAL, Means, Stage
from fluxserve.engine.networks import Network
from fluxserve.engine.trajectory import Conditioning, Inputs
from fluxserve.errors import BadPicture, OutOfMemory
from fluxserve.settings import Settings

Dtype = Literal["float32", "bfloat16", "float16"]
OpenDrawer = Callable[[Checkpoint, Runtime], Drawer]
APPLE = Generation(
    model="flux-dev", prompt="a red apple", size=Size(256, 256), seed=7, steps=3, guidance=3.5, output_format="png"
)
BAD = replace(APPLE, prompt="a bad apple")


class Failing:
    """A sound network, but for prompts with the word "bad": those go through `fails` at each stage.

    `fails` is given the stage, the means, and how many rows there are; it may raise, and says whether the numbers of
    that stage are to be none.
    """

    def __init__(self, network: Network, fails: Callable[[Stage, Means, int], bool]) -> None:
        self._network = network
        self._fails = fails
        #: Stages run beside each other, a thread each.
        self._used = threading.local()
        self._marked: list[Tensor] = []
        self._bad: list[Tensor] = []
        self.stages: list[tuple[Stage, Means]] = []
        #: Image tokens of the last pass.
        self.tokens = 0

    @contextmanager
    def using(self, stage: Stage, means: Means) -> Iterator[None]:
        self._used.now = (stage, means)
        with self._network.using(stage, means):
            yield

    @property
    def is_movable(self) -> bool:
        return self._network.is_movable

    def alone(self, stage: Stage) -> AbstractContextManager[None]:
        return self._network.alone(stage)

    def encode(self, prompt: str) -> Conditioning:
        if "bad" in prompt:
            self._fail(1)
        conditioning = self._network.encode(prompt)
        if "bad" in prompt:
            self._marked.append(conditioning.pooled)
        return conditioning

    def look(self, generation: Generation, pictures: Mapping[str, Pixels], size: Size, means: Means) -> Inputs:
        return self._network.look(generation, pictures, size, means)

    def noise(self, seed: int, size: Size) -> Tensor:
        return self._network.noise(seed, size)

    def predict(
        self, latents: Tensor, sigmas: Tensor, guidance: Tensor, conditioning: Conditioning, inputs: Inputs, size: Size
    ) -> Tensor:
        self.tokens = latents.shape[1]
        velocity = self._network.predict(latents, sigmas, guidance, conditioning, inputs, size)
        is_bad = any(marked.equal(row) for row in conditioning.pooled.split(1) for marked in self._marked)
        return torch.full_like(velocity, float("nan")) if is_bad and self._fail(len(latents)) else velocity

    def decode(self, latents: Tensor, size: Size) -> Pixels:
        if self._marked:
            self._fail(1)
        return self._network.decode(latents, size)

    def _fail(self, rows: int) -> bool:
        stage, means = self._used.now
        self.stages.append((stage, means))
        return self._fails(stage, means, rows)


class House:
    """An engine over a folder whose network fails as told, and that network."""

    def __init__(
        self,
        open_drawer: OpenDrawer,
        folder: Path,
        fails: Callable[[Stage, Means, int], bool],
        *,
        dtype: Dtype = "float32",
        most: int = 1,
        padded: bool = True,
    ) -> None:
        def open_failing(checkpoint: Checkpoint, runtime: Runtime) -> Drawer:
            drawer = open_drawer(checkpoint, runtime)
            self.network = Failing(drawer.network, fails)
            sizes = (APPLE.size, Size(256, 320)) if most > 1 else ()
            company = {size: Company(most=most, padded=padded) for size in sizes}
            return replace(drawer, network=self.network, company=company)

        models = dict.fromkeys(MODELS, str(folder))  # so that no other is opened
        settings = Settings(models=models, device="cpu", dtype=dtype, token_budget=1)
        self.engine = DiffusionEngine(settings, open_drawer=open_failing)
        self.engine.warm()

    def run(self, *wanted: Generation) -> list[Sequence[Event]]:
        """Everything that happened, step by step; refs are the places in `wanted`."""
        for number, generation in enumerate(wanted):
            self.engine.admit(str(number), generation)
        with self.engine._news:  # all of them take the first step
            assert self.engine._news.wait_for(lambda: len(self.engine._reading._done) == len(wanted), 60)
        steps = []
        while self.engine.active:
            steps.append(self.engine.step())
        return steps

    def outcomes(self, *wanted: Generation) -> list[Finished | Failed]:
        events = [event for step in self.run(*wanted) for event in step if not isinstance(event, Progressed)]
        return sorted(events, key=lambda event: event.ref)

    def draw(self, wanted: Generation) -> Finished:
        (finished,) = self.outcomes(wanted)
        assert isinstance(finished, Finished), finished
        return finished


MakeHouse = Callable[..., House]


@pytest.fixture
def make_house(open_once: OpenDrawer) -> MakeHouse:
    """`make_house(folder, fails)`, as `House`."""
    return partial(House, open_once)


def never(stage: Stage, means: Means, rows: int) -> bool:
    return False


def overflows(stage: Stage, means: Means, rows: int) -> bool:
    """Numbers run out of range where they are not float32."""
    return stage is Stage.PREDICT and not means.exact


def always_overflows(stage: Stage, means: Means, rows: int) -> bool:
    return stage is Stage.PREDICT


def difference(one: Finished, other: Finished) -> float:
    """The mean difference between two pictures, in steps of 1/255."""
    pairs = zip(one.pixels.data, other.pixels.data, strict=True)
    return sum(abs(a - b) for a, b in pairs) / len(one.pixels.data)


# Bad pictures


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_bad_picture_is_drawn_once_more_in_float32_and_says_so(
    make_house: MakeHouse, dev_folder: Path, dtype: Dtype
) -> None:
    house, exact = make_house(dev_folder, overflows, dtype=dtype), make_house(dev_folder, never)
    sound = house.draw(APPLE)
    drawn, beside = house.outcomes(BAD, APPLE)
    assert isinstance(drawn, Finished)
    assert drawn.facts["drawn_with"] == "float32"
    usual = house.engine.fingerprints["flux-dev"]
    assert drawn.facts["fingerprint"] not in (usual, exact.engine.fingerprints["flux-dev"])
    assert difference(drawn, exact.draw(BAD)) < 2  # the weights alone are rounded
    assert house.draw(BAD) == drawn
    assert beside == replace(sound, ref="1")
    assert house.draw(APPLE) == sound


def test_a_picture_that_is_bad_in_float32_too_fails_after_one_more_attempt(
    make_house: MakeHouse, dev_folder: Path
) -> None:
    house = make_house(dev_folder, always_overflows, dtype="bfloat16")
    sound = house.draw(APPLE)
    failed, beside = house.outcomes(BAD, APPLE)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, BadPicture)
    assert [means for stage, means in house.network.stages if stage is Stage.ENCODE] == [USUAL, Means(exact=True)]
    assert isinstance(beside, Finished)
    assert beside.pixels == sound.pixels


def test_a_bad_picture_of_an_engine_that_computes_in_float32_fails_at_once(
    make_house: MakeHouse, dev_folder: Path
) -> None:
    house = make_house(dev_folder, always_overflows)
    (failed,) = house.outcomes(BAD)
    assert isinstance(failed, Failed)
    assert [means for stage, means in house.network.stages if stage is Stage.ENCODE] == [USUAL]


def test_float32_leaves_the_weights_bit_by_bit_as_they_were(make_house: MakeHouse, dev_folder: Path) -> None:
    house = make_house(dev_folder, overflows, dtype="float16")
    parts = house.network._network._parts  # type: ignore[attr-defined]
    modules = (parts.transformer, parts.vae, parts.text_encoder, parts.text_encoder_2)

    def state() -> list[tuple[torch.dtype, tuple[int, ...], bytes]]:
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return [(one.dtype, one.stride(), one.contiguous().view(torch.uint8).numpy().tobytes()) for one in tensors]

    before = state()
    assert torch.float16 in {dtype for dtype, _, _ in before}
    house.draw(BAD)
    assert state() == before


def test_what_is_drawn_by_other_means_is_not_written_down_and_its_progress_begins_anew(
    make_house: MakeHouse, dev_folder: Path
) -> None:
    house = make_house(dev_folder, overflows, dtype="bfloat16")
    house.engine.admit("a", BAD)
    told, saved = [], []
    while house.engine.active:
        told += [event.step for event in house.engine.step() if isinstance(event, Progressed)]
        saved.append(house.engine.save("a"))
    assert told == [1, 2, 3, 1, 2, 3]
    assert set(saved) == {None}


# Out of memory


def cannot_decode(stage: Stage, means: Means, rows: int) -> bool:
    if stage is Stage.DECODE and not means.tiled:
        raise torch.OutOfMemoryError("an allocation of 7 GiB failed at 0xdeadbeef")
    return False


@pytest.mark.parametrize("name", ["dev", "mini"])
def test_a_picture_that_cannot_be_decoded_whole_is_decoded_in_tiles_and_says_so(
    make_house: MakeHouse, checkpoints: dict[str, Checkpoint], name: str
) -> None:
    large = replace(BAD, size=Size(1024, 768), steps=1)
    expected = make_house(checkpoints[name].path, never).draw(large)
    house = make_house(checkpoints[name].path, cannot_decode)
    drawn = house.draw(large)
    assert drawn.facts["drawn_with"] == "decoded in tiles"
    assert drawn.facts["fingerprint"] != expected.facts["fingerprint"]
    assert 0 < difference(drawn, expected) < 8
    assert house.draw(large) == drawn
    assert [stage for stage, _ in house.network.stages].count(Stage.PREDICT) == 2  # once for each


def needs_a_pass_alone(stage: Stage, means: Means, rows: int) -> bool:
    if stage is Stage.PREDICT and rows > 1:
        raise torch.OutOfMemoryError("two rows are too many")
    return False


def test_a_picture_that_cannot_be_drawn_in_filled_passes_is_drawn_from_its_start_as_if_there_were_none(
    make_house: MakeHouse,
    dev_folder: Path,
) -> None:
    house = make_house(dev_folder, needs_a_pass_alone, most=2)
    sound = house.draw(APPLE)
    drawn, beside = house.outcomes(BAD, APPLE)
    assert isinstance(drawn, Finished)
    assert drawn.facts["drawn_with"] == "one picture in a pass"
    assert drawn.pixels == make_house(dev_folder, never).draw(BAD).pixels
    assert isinstance(beside, Finished)
    assert (beside.pixels, beside.facts) == (sound.pixels, sound.facts)


@pytest.mark.parametrize("where", Stage)
@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("0xdeadbeef"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("could not create a primitive"),
])  # fmt: skip
def test_a_picture_that_never_fits_fails_alone_and_the_next_one_is_as_before(
    make_house: MakeHouse, dev_folder: Path, where: Stage, error: Exception
) -> None:
    def runs_out(stage: Stage, means: Means, rows: int) -> bool:
        if stage is where:
            raise error
        return False

    house = make_house(dev_folder, runs_out)
    sound = house.draw(APPLE)
    (failed,) = house.outcomes(BAD)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, OutOfMemory)
    assert failed.error.message == "The device ran out of memory."
    house.network._marked.clear()
    assert house.draw(APPLE) == sound
    assert house.engine.active == 0


# Out of memory in company


@pytest.mark.parametrize(("fits", "tried"), [(3, [4, 2, 2]), (2, [4, 2, 2]), (1, [4, 2, 1, 1, 1, 1])])
def test_what_does_not_fit_together_steps_in_smaller_companies_from_then_on_and_is_not_tried_again(
    make_house: MakeHouse, dev_folder: Path, fits: int, tried: list[int]
) -> None:
    """Each number that fails fails once, and no picture is told from one that was drawn alone."""
    passes: list[int] = []

    def too_many(stage: Stage, means: Means, rows: int) -> bool:
        if stage is Stage.PREDICT:
            passes.append(rows)
            if rows > fits:
                raise torch.OutOfMemoryError("0xdeadbeef")
        return False

    house = make_house(dev_folder, too_many, most=4, padded=False)
    four = [replace(BAD, seed=seed) for seed in range(4)]
    together = house.outcomes(*four)
    assert passes[: len(tried)] == tried
    assert max(passes[len(tried) :]) <= fits
    passes.clear()
    again = house.outcomes(*four)
    assert max(passes) == min(fits, 2)
    sound = make_house(dev_folder, never).outcomes(*four)
    assert together == again == sound


def test_pictures_of_another_size_stay_in_company_where_one_size_did_not_fit(
    make_house: MakeHouse, dev_folder: Path
) -> None:
    passes: list[tuple[int, int]] = []
    small, large = (replace(BAD, steps=2, size=size) for size in (Size(256, 256), Size(256, 320)))

    def too_large(stage: Stage, means: Means, rows: int) -> bool:
        if stage is Stage.PREDICT:
            passes.append((house.network.tokens, rows))
            if house.network.tokens > 16**2 and rows > 1:
                raise torch.OutOfMemoryError("0xdeadbeef")
        return False

    house = make_house(dev_folder, too_large, most=2, padded=False)
    assert all(isinstance(outcome, Finished) for outcome in house.outcomes(large, large, small, small))
    assert [tokens for tokens, rows in passes if rows == 2] == [320, 256, 256]


# Memory that the system really refuses

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")


def bytes_taken() -> int:
    """Of the address space, by this process."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def find_no_memory_for_a_kernel() -> None:
    """Make convolutions of new shapes while the system refuses this process any more memory, until it shows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pictures, filters = torch.ones(1, 512, 64, 64), torch.ones(8, 512, 3, 3)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_taken(), hard))
    try:
        for channels in range(17, 512):
            with suppress(MemoryError):
                torch.conv2d(pictures[:, :channels], filters[:, :channels])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def convolve_in_a_new_shape() -> None:
    torch.conv2d(torch.ones(1, 16, 61, 67), torch.ones(8, 16, 3, 3))


@linux
@pytest.mark.alone
def test_a_picture_that_finds_no_memory_for_a_kernel_is_drawn_by_other_means_in_a_thread_that_has_it(
    make_house: MakeHouse,
    dev_folder: Path,
) -> None:
    """The thread that found none makes none any more, though there is memory again."""

    def refused(stage: Stage, means: Means, rows: int) -> bool:
        if stage is Stage.DECODE and not means.tiled:
            find_no_memory_for_a_kernel()
        return False

    house = make_house(dev_folder, refused)
    sound = house.draw(APPLE)
    assert not house.engine.spent_on
    assert house.draw(BAD).facts["drawn_with"] == "decoded in tiles"
    assert house.engine.spent_on == {"0"}
    house.network._marked.clear()
    decoder = house.engine._decoding._threads
    assert decoder is not None
    with pytest.raises(RuntimeError, match="could not create a primitive"):
        decoder.submit(convolve_in_a_new_shape).result()
    new_shape = replace(APPLE, size=Size(352, 416))
    assert house.draw(APPLE) == sound
    assert house.draw(new_shape) == make_house(dev_folder, never).draw(new_shape)


@linux
@pytest.mark.alone
def test_a_picture_that_finds_no_memory_for_a_kernel_in_any_thread_fails_and_its_process_is_told_of(
    make_house: MakeHouse,
    dev_folder: Path,
) -> None:
    def refused(stage: Stage, means: Means, rows: int) -> bool:
        if stage is Stage.DECODE:
            find_no_memory_for_a_kernel()
        return False

    house = make_house(dev_folder, refused)
    sound = house.draw(APPLE)
    (failed,) = house.outcomes(BAD)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, OutOfMemory)
    assert [means for stage, means in house.network.stages if stage is Stage.DECODE] == [USUAL, Means(tiled=True)]
    assert house.engine.spent_on == {"0"}
    house.network._marked.clear()
    assert house.draw(APPLE) == sound  # of a shape that there are kernels for


SHORT_OF_MEMORY = """
import resource, sys
from dataclasses import replace
from fluxserve.catalogue import MODELS, Generation, Size
from fluxserve.engine.base import Failed
from fluxserve.engine.diffusion import DiffusionEngine
from fluxserve.settings import Settings

def draw(wanted):
    engine.admit("a", wanted)
    while engine.active:
        for last in engine.step():
            pass
    if isinstance(last, Failed):
        return type(last.error).__name__
    return last.facts.get("drawn_with", "as usual") + " " + last.facts["pixels_sha256"]

size = Size(256, 256)
small = Generation(model="flux-dev", prompt="x", size=size, seed=7, steps=1, guidance=3.5, output_format="png")
large = replace(small, size=Size(1024, 1024))
engine = DiffusionEngine(Settings(models={"flux-dev": sys.argv[1]}, device="cpu", threads=1, token_budget=1))
engine.warm()
print(draw(small))
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[2]) * 2**20, resource.RLIM_INFINITY))
print(draw(large))
print(draw(small))
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(draw(large))
print(draw(small))
"""


@linux
@pytest.mark.parametrize("megabytes", [5, pytest.param(60, marks=pytest.mark.long)])
def test_an_engine_that_really_runs_out_of_memory_draws_in_tiles_or_fails_and_then_as_before(
    make_house: MakeHouse, dev_folder: Path, megabytes: int
) -> None:
    """The system refuses the process its memory: nothing of this is played.

    How much the process has to spare inside is another matter each time. So which of the two comes out is as well, and
    whether a thread found none for a kernel; what comes after must not show it.
    """
    run = subprocess.run(
        [sys.executable, "-c", SHORT_OF_MEMORY, str(dev_folder), str(megabytes)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    before, short, beside, whole, after = run.stdout.splitlines()
    sound = make_house(dev_folder, never)
    small = replace(APPLE, prompt="x", steps=1)
    expected = [
        f"as usual {sound.draw(one).facts['pixels_sha256']}" for one in (small, replace(small, size=Size(1024, 1024)))
    ]
    assert short.startswith(("OutOfMemory", "decoded in tiles"))
    assert before == beside == after == expected[0]
    assert whole == expected[1]
