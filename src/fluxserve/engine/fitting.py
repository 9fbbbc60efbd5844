"""Whether the parts of a folder, and of the single files that stand in for some, are made for each other.

What a file's tensors do not say is taken from the folder: rotations, noise schedule, scaling of latents, tokenizers.
What it does not know: tensors, where files and folders are found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fluxserve.engine import bfl, layout, single_file
from fluxserve.engine.families import Family
from fluxserve.engine.single_file import Piece, Widths
from fluxserve.errors import CheckpointRefused


def check(folder: Path, index: layout.Index, pieces: Mapping[str, Piece]) -> None:
    """Raise CheckpointRefused where a piece is not whole, or a part not made for the other parts of this folder."""
    for part, piece in pieces.items():
        if part not in index.family.in_files:
            raise CheckpointRefused(
                f"{piece.file} holds a {part}, which is taken from a folder of {index.family.title} only: leave it out."
            )
    if index.family.text_layers:
        _check_language_model(folder, index.family)
        _check_chat(folder)
    if "transformer" in pieces:
        _check_transformer(folder, index.family, pieces["transformer"])
    if "vae" in pieces:
        _check_autoencoder(folder, index, pieces["vae"])


def _check_language_model(folder: Path, family: Family) -> None:
    """Its layers that are read have to be there, and as wide as the transformer and the autoencoder expect."""
    reader = layout.read_json(folder / "text_encoder/config.json", layout.LanguageModel).of_texts
    transformer = layout.read_json(folder / "transformer/config.json", layout.Transformer)
    deepest = max(family.text_layers)
    if reader.num_hidden_layers < deepest:
        raise CheckpointRefused(
            f"{folder}: text_encoder has {reader.num_hidden_layers} layers, and {family.title} reads its {deepest}th. "
            "Take the text encoder that was published with the transformer."
        )
    for what, has, part, wanted in (
        ("texts", transformer.joint_attention_dim, "text_encoder", len(family.text_layers) * reader.hidden_size),
        ("latents", transformer.in_channels, "vae", layout.PATCH_AREA * _vae(folder).latent_channels),
    ):
        if has != wanted:
            raise CheckpointRefused(
                f"{folder}: transformer reads {what} {has} wide, and those of its {part} are {wanted}. "
                "Take parts that were published together."
            )


def _check_chat(folder: Path) -> None:
    """A language model is told a prompt in words of its own."""
    tokenizer = layout.read_json(folder / "tokenizer/tokenizer_config.json", layout.Tokenizer)
    if not bytes(tokenizer.chat_template) and not (folder / "tokenizer/chat_template.jinja").is_file():
        raise CheckpointRefused(
            f"{folder}: its tokenizer has no chat template. Add the tokenizer/chat_template.jinja of the original."
        )


def _check_transformer(folder: Path, family: Family, piece: Piece) -> None:
    if piece.names is not family.names:
        raise CheckpointRefused(
            f"{piece.file} is a transformer of {piece.names.title}, and {folder} holds {family.title}: "
            "name the folder of the weights that the file was made from as base."
        )
    widths = single_file.check_transformer(piece)
    config = layout.read_json(folder / "transformer/config.json", layout.Transformer)
    for what, has, other, wanted in (
        ("latents", widths.latents, "autoencoder", layout.PATCH_AREA * _vae(folder).latent_channels),
        *_texts(folder, family, widths),
        ("places", widths.head, "transformer/config.json", sum(config.axes_dims_rope)),
    ):
        if has != wanted:
            raise CheckpointRefused(
                f"{piece.file} does not fit {folder}: it reads {what} {has} wide, and those of the folder's {other} "
                f"are {wanted}. Name the folder of the weights that the file was made from as base."
            )
    has_guidance = family.guidance_embeds if config.guidance_embeds is None else config.guidance_embeds
    if widths.guidance_embeds != has_guidance:
        kinds = {True: "a guidance embedding, as [dev]", False: "no guidance embedding, as [schnell] and [klein]"}
        raise CheckpointRefused(
            f"{piece.file} has {kinds[widths.guidance_embeds]}, and {folder} {kinds[has_guidance]}, whose "
            "noise schedule is another. Name a folder of the same kind as base."
        )


def _texts(folder: Path, family: Family, widths: Widths) -> Sequence[tuple[str, int, str, int]]:
    """What a transformer reads of texts, how wide, and which reader gives it how wide."""
    config = folder / "text_encoder/config.json"
    if family.text_layers:
        width = layout.read_json(config, layout.LanguageModel).of_texts.hidden_size
        return (("texts", widths.tokens, "text_encoder", len(family.text_layers) * width),)
    t5 = layout.read_json(folder / "text_encoder_2/config.json", layout.T5).d_model
    clip = layout.read_json(config, layout.Clip).hidden_size
    return ("texts", widths.tokens, "T5", t5), ("texts", widths.pooled, "CLIP", clip)


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
