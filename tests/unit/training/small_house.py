"""A work folder as rendering, training/text and training/latents leave it, made small: for the tests of trainers."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from sprite_house import house_records, house_sprites
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

from training.flow import PRESETS, Plan
from training.latents import fit
from training.lexicon import lexicon
from training.looks import measure
from training.network import Illustrator, Texts, build_transformer
from training.painter import Painter
from training.records import Record
from training.render import Stamp, files
from training.scenes import SceneSampler
from training.stream import GENERATOR_SETS
from training.text import build_text
from training.tokenizers import save_tokenizers, train_clip, train_t5

WIDTH = 32  # of the text encoders


def furnish(folder: Path) -> None:
    """Write sprites, text side and latents' code into `folder`, which the environment must name as the work folder."""
    _write_sprites()
    tokenizers = small_tokenizers()
    torch.manual_seed(0)
    clip, t5 = small_encoders(tokenizers)
    save_tokenizers(folder / "text", *tokenizers)
    clip.save_pretrained(folder / "text" / "text_encoder")
    t5.save_pretrained(folder / "text" / "text_encoder_2")
    fit(painted(60)).save(folder / "latents.safetensors")


def painted(count: int) -> Tensor:
    """(count, 3, 128, 128): scenes of the house's things."""
    records = house_records()
    sprites = house_sprites(len(records))
    sampler = SceneSampler(records, stage=3, seed=5, looks=measure(sprites))
    return Painter(sprites).paint([sampler.scene(index, (512, 512)) for index in range(count)], 128, 128).clamp(-1, 1)


def small_tokenizers() -> tuple[CLIPTokenizer, PreTrainedTokenizerFast]:
    """They know the house's words."""
    counts = lexicon(house_records(), ["a red background, on water at night"], []).counts
    return train_clip(counts, 700), train_t5(counts, 200)


def small_encoders(
    tokenizers: tuple[CLIPTokenizer, PreTrainedTokenizerFast],
) -> tuple[CLIPTextModel, T5EncoderModel]:
    """One layer each, of random weights."""
    return build_text(*tokenizers, clip_width=WIDTH, clip_layers=1, t5_width=WIDTH, t5_layers=1)


def awake(transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """The transformer with random weights everywhere, where a fresh one is the identity."""
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
        else:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    return transformer


def small_network() -> Illustrator:
    """Of the shape `tiny`, awake, on texts of the house."""
    clip, t5 = small_encoders(small_tokenizers())
    return Illustrator(clip.eval(), t5.eval(), awake(build_transformer(PRESETS["tiny"].shape, WIDTH, WIDTH)))


def small_texts(count: int) -> Texts:
    """Captions of several lengths."""
    from training.bank import read

    captions = ["a cat", "a red apple on a blue background", "", "two dogs beside an owl at night on water"]
    return read(small_tokenizers(), [captions[index % len(captions)] for index in range(count)])


def small_plan(folder: Path) -> Plan:
    """A run of the preset `tiny`."""
    return Plan(
        preset=PRESETS["tiny"],
        minutes=1,
        rate=2e-3,
        device="cpu",
        compiled=False,
        seed=0,
        folder=folder,
    )


def _write_sprites() -> None:
    records = house_records()
    sprites = house_sprites(len(records))
    for name in GENERATOR_SETS:
        chosen = [index for index, record in enumerate(records) if record.set == name]
        there = files(name)
        there.array.parent.mkdir(parents=True, exist_ok=True)
        np.save(there.array, sprites[chosen])
        there.records.write_bytes(_lines([records[index] for index in chosen]))
        there.stamp.write_bytes(msgspec.json.encode(Stamp(fingerprint="", kept=(True,) * len(chosen))))


def _lines(records: list[Record]) -> bytes:
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)
