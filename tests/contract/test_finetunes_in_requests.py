"""Fine-tunes over HTTP: named by the files of a folder, told apart by what these hold, refused where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from facts import EVERY, NEEDED, PREFIXES
from inprocess import Server

Serve = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "loras" / "studio").mkdir(parents=True)
    (tmp_path / "loras" / "studio" / "ink.safetensors").write_bytes(b"one")
    return tmp_path / "loras"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_fine_tune_is_drawn_with_as_its_file_is_when_it_is_asked_for(serve: Serve, folder: Path, prefix: str) -> None:
    server = serve(finetunes=folder)
    wish = {"finetune_id": "studio/ink", "finetune_strength": 0.5, "seed": 1}
    first = server.record(server.submit(wish, f"{prefix}/flux-dev")).generation.finetune
    assert first is not None
    assert (first.name, first.strength) == ("studio/ink", 0.5)
    (folder / "studio" / "ink.safetensors").write_bytes(b"three")
    second = server.record(server.submit(wish, f"{prefix}/flux-dev")).generation.finetune
    assert second is not None
    assert second.sha256 != first.sha256
    without = server.record(server.submit({"finetune_strength": 0.5}, f"{prefix}/flux-dev"))
    assert without.generation.finetune is None


@pytest.mark.parametrize("model", [model for model in EVERY if NEEDED[model].startswith('"prompt"')])
def test_every_model_takes_one(serve: Serve, folder: Path, model: str) -> None:
    server = serve(finetunes=folder)
    finetune = server.record(server.submit({"finetune_id": "studio/ink"}, f"/v1/{model}")).generation.finetune
    assert finetune is not None
    assert finetune.strength == 1


@pytest.mark.parametrize("name", ["ink", "../loras/studio/ink", "studio/none", "x" * 256])
def test_one_that_is_not_there_is_refused_and_those_there_are_are_named(serve: Serve, folder: Path, name: str) -> None:
    server = serve(finetunes=folder)
    refused = server.post("/v1/flux-dev", {"prompt": "an owl", "finetune_id": name})
    assert refused.status_code == 400
    assert refused.json()["detail"] == "Finetune not found or not ready. There are: studio/ink."


def test_without_a_folder_the_answer_names_the_setting(server: Server) -> None:
    refused = server.post("/v1/flux-dev", {"prompt": "an owl", "finetune_id": "ink"})
    assert refused.status_code == 400
    assert "`finetunes`" in refused.json()["detail"]
