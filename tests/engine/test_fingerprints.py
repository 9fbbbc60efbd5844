"""Fingerprints: whatever may change a pixel changes the word, and nothing else does."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxserve.catalogue import Size
from fluxserve.engine.device import Runtime
from fluxserve.engine.fingerprint import fingerprint, sources_hash, weights_hash

CPU = Runtime(device="cpu", dtype="float32", threads=1, token_budget=1)


def test_the_fingerprint_changes_with_whatever_may_change_a_pixel(dev_folder: Path, tmp_path: Path) -> None:
    file = "transformer/diffusion_pytorch_model.safetensors"
    other = tmp_path / "other"
    shutil.copytree(dev_folder, other)
    tensors = load_file(other / file)
    save_file(tensors | {"proj_out.bias": tensors["proj_out.bias"] + 0.5}, other / file)
    weights = weights_hash(dev_folder)
    words = [
        fingerprint(weights, CPU, {}),
        fingerprint(weights, replace(CPU, dtype="bfloat16"), {}),
        fingerprint(weights, replace(CPU, threads=2), {}),
        fingerprint(weights, replace(CPU, device="mps"), {}),
        fingerprint(weights, CPU, {Size(256, 256): 4}),
        fingerprint(weights_hash(other), CPU, {}),
    ]
    assert len(set(words)) == len(words)
    assert fingerprint(weights_hash(dev_folder), replace(CPU, token_budget=1), {Size(256, 256): 1}) == words[0]


def test_other_code_that_draws_is_another_word(tmp_path: Path) -> None:
    engine, catalogue = tmp_path / "engine", tmp_path / "catalogue"
    for folder in (engine / "networks", catalogue):
        folder.mkdir(parents=True)
        (folder / "some.py").write_text("1")

    def word() -> str:
        sources_hash.cache_clear()
        return sources_hash((engine, catalogue))

    words = [word()]
    (engine / "networks" / "notes.txt").write_text("no code")
    assert word() == words[0]
    for change in (engine / "networks" / "some.py", engine / "new.py", catalogue / "some.py"):
        change.write_text("2")
        words.append(word())
    (engine / "new.py").rename(engine / "other.py")
    words.append(word())
    assert len(set(words)) == len(words)
    sources_hash.cache_clear()


def test_the_code_that_draws_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = fingerprint("weights", CPU, {})
    monkeypatch.setattr("fluxserve.engine.fingerprint._SOURCES", (tmp_path,))
    assert fingerprint("weights", CPU, {}) != before


@pytest.mark.parametrize("variable", ["MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "NVIDIA_TF32_OVERRIDE"])
def test_what_makes_libraries_choose_other_kernels_is_part_of_the_fingerprint(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint("weights", CPU, {})
    monkeypatch.setenv(variable, "1")
    assert fingerprint("weights", CPU, {}) != before


def test_a_switch_of_torch_that_changes_its_kernels_is_part_of_the_fingerprint() -> None:
    before = fingerprint("weights", CPU, {})
    torch.backends.cuda.enable_flash_sdp(False)
    try:
        assert fingerprint("weights", CPU, {}) != before
    finally:
        torch.backends.cuda.enable_flash_sdp(True)
    assert fingerprint("weights", CPU, {}) == before


def test_a_small_file_of_the_checkpoint_counts_too(dev_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(dev_folder, copy)
    before = weights_hash(copy)
    (copy / "README.md").write_text("words")
    assert weights_hash(copy) == before
    (copy / "fluxserve.toml").write_text("cfg_scale = 2.0")
    assert weights_hash(copy) != before


def test_weights_in_the_hub_cache_are_known_by_the_name_of_their_blob(dev_folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "snapshots/abc", tmp_path / "blobs"
    shutil.copytree(dev_folder, snapshot)
    blobs.mkdir()
    weights = snapshot / "transformer/diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blobs / digest)
    weights.symlink_to(blobs / digest)
    assert weights_hash(snapshot) == weights_hash(dev_folder)
