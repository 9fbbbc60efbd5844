"""The file of a waypoint: what was written is read, safetensors reads it too, and nothing else is taken for one."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from builders import generation
from fluxserve.engine.waypoint import MAX_BYTES, Waypoint, decode, encode
from fluxserve.errors import WaypointRefused

WANTED = generation(prompt="a red apple 🍎 \ud800", seed=2**64 - 1)
VALUES = (0.5, -1.0, 1e-40, -0.0, 3.75, 2.0**126)
REACHED = Waypoint(
    fingerprint="f1",
    step=2,
    sigmas=(1.0, 0.9, 1 / 3, 0.1, 0.0),
    shape=(1, 3, 2),
    latents=struct.pack("<6f", *VALUES),
)
FILE = encode(REACHED, WANTED)
BODY = len(REACHED.latents)


def header_of(file: bytes) -> dict[str, object]:
    (length,) = struct.unpack_from("<Q", file)
    header: dict[str, object] = json.loads(file[8 : 8 + length])
    return header


def with_header(header: object, body: bytes = REACHED.latents) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_what_was_written_is_read_bit_by_bit() -> None:
    assert decode(FILE, WANTED, "f1") == REACHED
    assert encode(decode(FILE, WANTED, "f1"), WANTED) == FILE


def test_safetensors_reads_the_latents() -> None:
    (name, latents), *others = load(FILE).items()
    assert (name, others, str(latents.dtype), tuple(latents.shape)) == ("latents", [], "torch.float32", (1, 3, 2))
    assert latents.numpy().tobytes() == REACHED.latents


def test_the_file_says_what_it_is_of_without_the_words_of_the_prompt() -> None:
    facts = header_of(FILE)["__metadata__"]
    assert isinstance(facts, dict)
    assert (facts["seed"], facts["step"], facts["guidance"]) == (str(2**64 - 1), "2", "3.5")
    assert json.loads(facts["sigmas"]) == list(REACHED.sigmas)
    assert b"apple" not in FILE


def test_the_same_tensor_in_another_file_of_safetensors_is_no_waypoint() -> None:
    facts = header_of(FILE)["__metadata__"]
    assert isinstance(facts, dict)
    with pytest.raises(WaypointRefused):
        decode(save({"latents": load(FILE)["latents"], "more": load(FILE)["latents"]}, metadata=facts), WANTED, "f1")


@pytest.mark.parametrize(
    "wrong",
    [
        replace(REACHED, step=0),
        replace(REACHED, step=4),
        replace(REACHED, step=-1),
        replace(REACHED, sigmas=(1.0,)),
        replace(REACHED, sigmas=()),
        replace(REACHED, sigmas=(1.0, 0.9, 0.9, 0.1, 0.0)),
        replace(REACHED, sigmas=(0.0, 0.9, 0.5, 0.1, 1.0)),
        replace(REACHED, sigmas=tuple(1 - step / 2000 for step in range(2001))),
        replace(REACHED, shape=(1, 3, 1)),
        replace(REACHED, shape=(1, -3, -2)),
        replace(REACHED, shape=(2**40, 2**40, 2**40)),
        replace(REACHED, shape=(1, 0, 2), latents=b""),
        replace(REACHED, latents=REACHED.latents[:-1]),
        *(
            replace(REACHED, latents=REACHED.latents[:-4] + struct.pack("<f", number))
            for number in (math.nan, -math.nan, math.inf, -math.inf, 2.0**127, -(2.0**127))
        ),
    ],
)
def test_an_unsound_waypoint_is_refused_however_well_it_is_written(wrong: Waypoint) -> None:
    assert not wrong.is_sound
    with pytest.raises(WaypointRefused):
        decode(encode(wrong, WANTED), WANTED, "f1")


@pytest.mark.parametrize(
    "other",
    [
        replace(WANTED, seed=1),
        replace(WANTED, prompt="a red apple"),
        replace(WANTED, guidance=3.0),
        replace(WANTED, steps=5),
        replace(WANTED, model="flux-pro"),
    ],
)
def test_a_waypoint_is_of_one_picture(other: object) -> None:
    with pytest.raises(WaypointRefused, match="another picture"):
        decode(FILE, other, "f1")  # type: ignore[arg-type]


def test_a_waypoint_is_of_one_fingerprint() -> None:
    with pytest.raises(WaypointRefused, match="other weights"):
        decode(FILE, WANTED, "f2")


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 100,
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 2**63) + FILE[8:],
        b"\0" * (MAX_BYTES + 1),
        with_header({}),
        with_header([1]),
        with_header(header_of(FILE)),  # JSON with spaces
        with_header(header_of(FILE) | {"more": 1}),
        with_header(header_of(FILE) | {"latents": {"dtype": "F64", "shape": [1, 3, 2], "data_offsets": [0, BODY]}}),
        with_header(header_of(FILE) | {"latents": {"dtype": "F32", "shape": [6], "data_offsets": [0, BODY]}}),
        with_header(header_of(FILE) | {"latents": {"dtype": "F32", "shape": [1, 3, 2], "data_offsets": [-9, BODY]}}),
        with_header(header_of(FILE) | {"latents": {"dtype": "F32", "shape": [1, 3, "2"], "data_offsets": [0, BODY]}}),
    ],
)
def test_what_is_no_waypoint_is_refused(file: bytes) -> None:
    with pytest.raises(WaypointRefused):
        decode(file, WANTED, "f1")


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_a_file_with_one_changed_byte_is_refused(place: int, change: int) -> None:
    changed = bytearray(FILE)
    changed[place] ^= change
    with pytest.raises(WaypointRefused):
        decode(bytes(changed), WANTED, "f1")


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WaypointRefused):
        decode(data, WANTED, "f1")
    with pytest.raises(WaypointRefused):
        decode(FILE[: len(data)] + data, WANTED, "f1")
