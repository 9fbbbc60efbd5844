"""The finished checkpoint: one folder in diffusers layout from what the training left in the work folder.

Matrices are written in 8 bits (float8_e4m3fn), everything else in float16; loaders widen both.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderTiny, FluxPipeline
from safetensors.torch import load_file, save_file
from torch import nn

from training import checkpoints, work
from training.preview import load_average
from training.sampling import scheduler
from training.tokenizers import load_tokenizers

#: Where the package has its model.
PIPELINE = Path(__file__).parent.parent / "src/fluxserve/mini/pipeline"
#: The file of each part's weights, and the name under which the transformer's tells the pictures it has seen.
SEEN = "pictures_seen"
FILES = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "text_encoder_2": "model.safetensors",
}
#: The largest number of float8_e4m3fn.
_LARGEST = 448.0


def assemble(name: str, preset: str) -> FluxPipeline:
    """The pipeline of the run `name`, float32."""
    network = load_average(name, preset)
    clip_tokenizer, t5_tokenizer = load_tokenizers(work.folder() / "text")
    return FluxPipeline(
        scheduler=scheduler(),
        vae=AutoencoderTiny.from_pretrained(work.folder() / "vae"),
        text_encoder=network.clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=network.t5,
        tokenizer_2=t5_tokenizer,
        transformer=network.transformer,
    )


def shrink(folder: Path, *, bits: int, seen: int) -> None:
    """Rewrite the folder's weights: matrices in `bits` (8 or 16), all else in float16; `seen` goes with them."""
    for part, file in FILES.items():
        path = folder / part / file
        matrix = torch.float8_e4m3fn if bits == 8 and part != "vae" else torch.float16
        tensors = {
            name: tensor.clamp(-_LARGEST, _LARGEST).to(matrix) if tensor.dim() == 2 else tensor.half()
            for name, tensor in load_file(path).items()
        }
        save_file(tensors, path, metadata={"format": "pt", SEEN: str(seen)})


def weights(module: nn.Module) -> int:
    """Parameters of a network."""
    return sum(parameter.numel() for parameter in module.parameters())


def command(
    name: Annotated[str, typer.Option(help="The run to export.")] = "flow",
    preset: Annotated[str, typer.Option(help="Its preset.")] = "cpu",
    bits: Annotated[int, typer.Option(help="8 or 16, for matrices.")] = 8,
    out: Annotated[Path, typer.Option(help="The folder to replace.")] = PIPELINE,
) -> None:
    """Write the pipeline folder; the card beside it (fluxserve.toml) is kept."""
    pipeline = assemble(name, preset)
    unfinished = out.with_name(f"{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    pipeline.save_pretrained(unfinished)
    shrink(unfinished, bits=bits, seen=checkpoints.load_average(work.folder() / name)[1])
    card = out / "fluxserve.toml"
    if card.is_file():
        shutil.copy(card, unfinished)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    parts = {part: weights(getattr(pipeline, part)) for part in FILES}
    print(f"{out}: {size / 1e6:.1f} MB, parameters {parts}")


if __name__ == "__main__":
    typer.run(command)
