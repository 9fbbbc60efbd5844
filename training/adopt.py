"""Go on from the model in the package: `training/adopt` puts its parts where training left them.

Takes the place of `training/text`, `training/latents`, `training/flow` and `training/autoencoder` up to where the
weights were exported; the sprites are those of `training/render`. The latents' code is kept in `training/code`: it was
fitted to the pictures of its day, and one fitted anew may turn a component round, which the decoder would not
understand.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from safetensors import safe_open
from transformers import CLIPTextModel, T5EncoderModel

from training import latents, results, work
from training.export import FILES, PIPELINE, SEEN
from training.results import Facts

#: The latents' code that the package's weights were trained with.
CODE = Path(__file__).parent / "code" / "latents.safetensors"
_SEEN_UNSAID = 1_780_000  # of the weights that were exported before exports said it


def pictures_seen(pipeline: Path) -> int:
    """How many pictures the transformer was trained on, as its export said."""
    with safe_open(pipeline / "transformer" / FILES["transformer"], "pt") as file:
        return int((file.metadata() or {}).get(SEEN, _SEEN_UNSAID))


def adopt(pipeline: Path, code: Path, name: str, preset: str, done: int) -> None:
    """Write the work folder's `text`, `vae`, its latents' code and the results of the run `name`."""
    shutil.copyfile(code, latents.path())
    text, unfinished = work.folder() / "text", work.folder() / "text.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(pipeline / part, unfinished / part)
    clip = CLIPTextModel.from_pretrained(pipeline / "text_encoder", dtype=torch.float32)
    t5 = T5EncoderModel.from_pretrained(pipeline / "text_encoder_2", dtype=torch.float32)
    clip.save_pretrained(unfinished / "text_encoder")
    t5.save_pretrained(unfinished / "text_encoder_2")
    shutil.rmtree(text, ignore_errors=True)
    unfinished.rename(text)
    AutoencoderTiny.from_pretrained(pipeline / "vae", torch_dtype=torch.float32).save_pretrained(work.folder() / "vae")
    transformer = FluxTransformer2DModel.from_pretrained(pipeline / "transformer", torch_dtype=torch.float32)
    weights = {
        f"{part}.{key}": value
        for part, network in (("clip", clip), ("t5", t5), ("transformer", transformer))
        for key, value in network.named_parameters()
    }
    facts = Facts(preset=preset, text=results.fingerprint(text), done=done)
    results.write(work.folder() / name, weights, facts)


def command(
    name: Annotated[str, typer.Option(help="The run to start; it must not be there yet.")] = "flow",
    preset: Annotated[str, typer.Option(help="Its preset.")] = "cpu",
    done: Annotated[int | None, typer.Option(help="Pictures seen so far; by default as the weights say.")] = None,
) -> None:
    """Start a run, its text side and the autoencoder from the model in the package."""
    if (work.folder() / name / "flow.state").is_file():
        raise SystemExit(f"The run {name} has begun already; give another --name, or remove {work.folder() / name}.")
    seen = pictures_seen(PIPELINE) if done is None else done
    adopt(PIPELINE, CODE, name, preset, seen)
    print(f"{name}: goes on from {PIPELINE}, {seen} pictures seen")


if __name__ == "__main__":
    typer.run(command)
