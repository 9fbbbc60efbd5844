"""What a GPU run hands over: averaged weights small enough to be carried away and back, with what it takes to go on.

Matrices are 8-bit integers with a scale for each row, so that the largest of a row is 127: an error of under 1 %, a
third of what the export to float8 adds later. All else is float16. Files hold at most 15 MB each.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

#: The folder's part with the weights.
WEIGHTS = "weights"
_MOST_BYTES = 14_900_000
_SCALE = ".scale"


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Where the run was: pictures seen, minutes trained, and pictures a second as if all were of the small canvas.

    `text` is the fingerprint of the tokenizers that the weights belong to.
    """

    preset: str
    text: str
    done: int = 0
    minutes: float = 0.0
    speed: float = 0.0
    is_finished: bool = False


def write(folder: Path, weights: Mapping[str, Tensor], facts: Facts) -> None:
    """Put the weights into `folder`, whole or not at all, in place of those before."""
    there = folder / WEIGHTS
    unfinished = there.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    said = {"facts": msgspec.json.encode(facts).decode()}
    for number, shard in enumerate(_shards(weights)):
        save_file(shard, unfinished / f"{number}.safetensors", metadata=said)
    shutil.rmtree(there, ignore_errors=True)
    unfinished.rename(there)


def facts(folder: Path) -> Facts:
    """What `write` was told."""
    files = _files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} holds no results of a run: there is no {WEIGHTS}/*.safetensors")
    with safe_open(files[0], "pt") as file:
        return msgspec.json.decode(file.metadata()["facts"], type=Facts)


def read(folder: Path) -> dict[str, Tensor]:
    """The weights by name, float32."""
    stored: dict[str, Tensor] = {}
    for path in _files(folder):
        with safe_open(path, "pt") as file:
            stored |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    return {
        name: tensor * stored[name + _SCALE] if tensor.dtype == torch.int8 else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith(_SCALE)
    }


def fingerprint(text: Path) -> str:
    """Of both tokenizers in the folder `text`: weights belong to the words they were trained with."""
    digest = hashlib.sha256()
    for part in ("tokenizer", "tokenizer_2"):
        digest.update((text / part / "tokenizer.json").read_bytes())
    return digest.hexdigest()


def are_in(folder: Path) -> bool:
    """Whether `folder` has results."""
    return bool(_files(folder))


def _files(folder: Path) -> list[Path]:
    return sorted((folder / WEIGHTS).glob("*.safetensors"))


def _shards(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights.items():
        stored = _stored(name, tensor)
        added = sum(part.numel() * part.element_size() for part in stored.values())
        if shard and size + added > _MOST_BYTES:
            yield shard
            shard, size = {}, 0
        shard |= stored
        size += added
    yield shard


def _stored(name: str, tensor: Tensor) -> dict[str, Tensor]:
    tensor = tensor.detach().cpu()
    if tensor.dim() != 2:
        return {name: tensor.half()}
    scale = tensor.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return {name: (tensor / scale).round().to(torch.int8), name + _SCALE: scale}
