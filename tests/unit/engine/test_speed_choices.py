"""What is chosen for speed follows from the settings and from what the device can do."""

from dataclasses import replace

import pytest

from fluxserve.engine.speed import PLAIN, Speed, Surroundings, choose
from fluxserve.errors import ConfigurationError
from fluxserve.settings import Settings

CPU = Surroundings(kind="cpu", dtype="float32", compiles=True)
H200 = Surroundings(kind="cuda", dtype="bfloat16", capability=(9, 0), compiles=True)
AMPERE = replace(H200, capability=(8, 0))


@pytest.mark.parametrize(
    ("around", "expected"),
    [
        (CPU, PLAIN),
        (replace(CPU, kind="mps"), PLAIN),
        (H200, Speed(compiled=True, fused=True, graphs=True, channels_last=True, attention="cudnn")),
        (AMPERE, Speed(compiled=True, fused=True, graphs=True, channels_last=True)),
        (replace(H200, compiles=False), Speed(fused=True, graphs=True, channels_last=True, attention="cudnn")),
        (replace(H200, tiny=True), Speed(graphs=True)),
        (replace(H200, dtype="float32"), Speed(compiled=True, fused=True, graphs=True, channels_last=True)),
    ],
)
def test_auto_is_what_suits_the_device(around: Surroundings, expected: Speed) -> None:
    assert choose(Settings(), around) == expected


def test_nothing_that_changes_pixels_much_is_chosen_by_itself() -> None:
    speed = choose(Settings(), replace(H200, flash3=True))
    assert not any((speed.float8, speed.throughput))
    assert speed.step_cache == "off"


def test_words_add_to_auto_and_plain_is_none() -> None:
    assert choose(Settings(speed=("auto", "float8-dynamic")), H200) == replace(choose(Settings(), H200), float8=True)
    assert choose(Settings(speed=("plain",), attention="torch"), H200) == PLAIN
    assert choose(Settings(speed=("compiled", "fused")), CPU) == Speed(compiled=True, fused=True)


def test_settings_from_the_environment_are_words_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_SPEED", "auto, float8-dynamic")
    assert Settings().speed == ("auto", "float8-dynamic")
    monkeypatch.setenv("FLUXSERVE_SPEED", "fast")
    with pytest.raises(ValueError, match="speed"):
        Settings()


@pytest.mark.parametrize(
    ("settings", "around"),
    [
        (Settings(speed=("plain", "fused")), H200),
        (Settings(speed=("compiled",)), replace(H200, compiles=False)),
        (Settings(speed=("graphs",)), CPU),
        (Settings(speed=("float8-dynamic",)), AMPERE),
        (Settings(speed=("float8-dynamic",)), replace(H200, dtype="float16")),
        (Settings(attention="flash3"), H200),
        (Settings(attention="cudnn"), CPU),
        (Settings(attention="efficient"), CPU),
        (Settings(attention="flash"), replace(H200, dtype="float32")),
    ],
)
def test_what_is_not_there_is_refused_with_what_to_do(settings: Settings, around: Surroundings) -> None:
    with pytest.raises(ConfigurationError, match=r"\.$"):
        choose(settings, around)


def test_each_thing_that_may_change_a_bit_has_a_word() -> None:
    all_of_it = Speed(
        compiled=True,
        fused=True,
        graphs=True,
        channels_last=True,
        float8=True,
        attention="flash3",
        throughput=True,
        step_cache="taylor",
    )
    assert len(all_of_it.words) == len(Speed.__slots__) - 1  # the compiler's name is a word of `compiled`
    assert replace(all_of_it, backend="aot_eager").words != all_of_it.words
    assert PLAIN.words == ()


def test_weights_that_come_and_go_are_neither_recorded_nor_compiled_for() -> None:
    speed = Speed(compiled=True, graphs=True, fused=True, attention="cudnn")
    assert speed.for_weights(move=True, stream=True) == Speed(fused=True, attention="cudnn")
    assert speed.for_weights(move=True, stream=False) == replace(speed, graphs=False)
    assert speed.for_weights(move=False, stream=False) == speed
    assert replace(speed, step_cache="taylor", throughput=True).plainly == Speed(step_cache="taylor", throughput=True)
