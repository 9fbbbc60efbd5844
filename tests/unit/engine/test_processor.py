"""How networks are computed on a CPU, by what it can do: descriptions of processors stand in for them."""

import pytest

from fluxserve.doctor import examine
from fluxserve.engine import device
from fluxserve.engine.device import TINY_WEIGHTS, Runtime
from fluxserve.engine.processor import Processor, here, read
from fluxserve.settings import Settings

LARGE = TINY_WEIGHTS + 1
CPU = Settings(device="cpu")


def resolve(flags: str, weights: int, settings: Settings = CPU) -> Runtime:
    return device.resolve(settings, weights, Processor(name="some", flags=frozenset(flags.split())))


@pytest.mark.parametrize("flag", ["avx512_bf16", "amx_bf16", "bf16"])
def test_large_networks_are_computed_in_bfloat16_where_the_processor_multiplies_it(flag: str) -> None:
    runtime = resolve(f"avx2 fma {flag}", LARGE)
    assert (runtime.dtype, runtime.number_bytes) == ("bfloat16", 2)
    assert flag in runtime.why


@pytest.mark.parametrize(
    ("flags", "weights"),
    [("avx2 avx512f fma", LARGE), ("", LARGE), ("avx512_bf16", TINY_WEIGHTS), ("avx512_bf16_of_another", LARGE)],
)
def test_all_else_is_computed_in_float32(flags: str, weights: int) -> None:
    assert resolve(flags, weights).dtype == "float32"


def test_a_setting_has_the_last_word() -> None:
    chosen = resolve("avx512_bf16", LARGE, Settings(device="cpu", dtype="float32", threads=3))
    assert (chosen.dtype, chosen.threads) == ("float32", 3)
    assert "by setting" in chosen.why
    assert resolve("", TINY_WEIGHTS, Settings(device="cpu", dtype="bfloat16")).dtype == "bfloat16"


def test_tiny_networks_take_one_thread_and_large_ones_every_core() -> None:
    assert resolve("", TINY_WEIGHTS).threads == 1
    assert resolve("", LARGE).threads == device._cores()


def test_why_is_no_part_of_what_a_runtime_is() -> None:
    assert resolve("", TINY_WEIGHTS) == resolve("avx512_bf16", TINY_WEIGHTS)
    assert resolve("", LARGE) != resolve("avx512_bf16", LARGE)


def test_linux_describes_processors_of_two_kinds_and_other_systems_none() -> None:
    intel = read("processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu amx_bf16 avx512_bf16\n")
    assert (intel.name, intel.multiplies_bfloat16) == ("Some Xeon", "amx_bf16")
    assert read("processor\t: 0\nFeatures\t: fp asimd i8mm bf16\n").multiplies_bfloat16 == "bf16"
    unknown = read("")
    assert unknown.name
    assert not unknown.flags


def test_the_doctor_says_what_was_chosen_and_why() -> None:
    told = next(finding.text for finding in examine(CPU) if finding.subject == "engine")
    runtime = device.resolve(CPU, 0)
    assert "cpu in float32, 1 thread(s)" in told
    assert runtime.why in told
    assert here().name
