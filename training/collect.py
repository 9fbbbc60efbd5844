"""Takes the results of training elsewhere home: `training/collect FOLDER` makes them a run that can be exported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from training import checkpoints, results, work


def command(
    folder: Annotated[Path, typer.Argument(help="What training/on_gpu left in --out.")],
    name: Annotated[str, typer.Option(help="The run to make of it, inside the work folder.")] = "gpu",
    vae: Annotated[bool, typer.Option(help="Also take its autoencoder, in place of the work folder's.")] = True,
) -> None:
    """Write the averaged weights as the run `name`, and the autoencoder."""
    facts = results.facts(folder)
    if facts.text != results.fingerprint(work.folder() / "text"):
        raise SystemExit(f"The weights in {folder} belong to other tokenizers than those of {work.folder() / 'text'}.")
    run = work.folder() / name
    run.mkdir(exist_ok=True)
    checkpoints.save_average(run, results.read(folder), results.facts(folder).done)
    print(f"{run}: {facts.done} pictures, preset {facts.preset}, finished: {facts.is_finished}")
    if vae and (folder / "vae").is_dir():
        shutil.copytree(folder / "vae", work.folder() / "vae", dirs_exist_ok=True)
        print(f"{work.folder() / 'vae'}: its autoencoder")


if __name__ == "__main__":
    typer.run(command)
