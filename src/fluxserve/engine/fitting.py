"""Whether the parts in single files fit the folder that has the rest: all have to be made for each other.

What the tensors alone do not say is taken from the folder: rotations, noise schedule, scaling of latents, tokenizers.
What it does not know: tensors, where files and folders are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fluxserve.engine import bfl, layout, single_file
from fluxserve.engine.single_file import Piece
from fluxserve.errors import CheckpointRefused


def check(folder: Path, index: layout.Index, pieces: Mapping[str, Piece]) -> None:
    """Raise CheckpointRefused where a piece is not whole, or not made for the other parts of this folder."""
    if "transformer" in pieces:
        _check_transformer(folder, pieces["transformer"])
    if "vae" in pieces:
        _check_autoencoder(folder, index, pieces["vae"])


def _check_transformer(folder: Path, piece: Piece) -> None:
    widths = single_file.check_transformer(piece)
    config = layout.read_json(folder / "transformer/config.json", layout.Transformer)
    for what, has, other, wanted in (
        ("latents", widths.latents, "autoencoder", layout.PATCH_AREA * _vae(folder).latent_channels),
        ("texts", widths.tokens, "T5", layout.read_json(folder / "text_encoder_2/config.json", layout.T5).d_model),
        (
            "texts",
            widths.pooled,
            "CLIP",
            layout.read_json(folder / "text_encoder/config.json", layout.Clip).hidden_size,
        ),
        ("places", widths.head, "transformer/config.json", sum(config.axes_dims_rope)),
    ):
        if has != wanted:
            raise CheckpointRefused(
                f"{piece.file} does not fit {folder}: it reads {what} {has} wide, and those of the folder's {other} "
                f"are {wanted}. Name the folder of the weights that the file was made from as base."
            )
    if widths.guidance_embeds != config.guidance_embeds:
        kinds = {True: "a guidance embedding, as FLUX.1-dev", False: "no guidance embedding, as FLUX.1-schnell"}
        raise CheckpointRefused(
            f"{piece.file} has {kinds[widths.guidance_embeds]}, and {folder} {kinds[config.guidance_embeds]}, whose "
            "noise schedule is another. Name a folder of the same kind as base."
        )


def _check_autoencoder(folder: Path, index: layout.Index, piece: Piece) -> None:
    if index.class_of("vae") != "AutoencoderKL":
        raise CheckpointRefused(
            f"{piece.file} holds an AutoencoderKL, and {folder} is made for an {index.class_of('vae')}: "
            "name a folder with the same autoencoder as base."
        )
    levels, wanted = bfl.count_levels(piece.tensors), len(_vae(folder).block_out_channels)
    if levels != wanted:
        raise CheckpointRefused(
            f"{piece.file} has an autoencoder of {levels} levels, and {folder}/vae/config.json tells of {wanted}: "
            "name the autoencoder that belongs to the base, such as FLUX.1's ae.safetensors."
        )


def _vae(folder: Path) -> layout.Vae:
    return layout.read_json(folder / "vae/config.json", layout.Vae)
