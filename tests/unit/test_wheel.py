"""The wheel: small enough to install anywhere, with everything that draws and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_BYTES = 35_000_000


def test_the_wheel_holds_the_package_with_its_weights_in_at_most_35_megabytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.stat().st_size <= MOST_BYTES
    assert "fluxserve/mini/pipeline/transformer/diffusion_pytorch_model.safetensors" in names
    assert "fluxserve/mini/NOTICE" in names
    assert all(name.startswith(("fluxserve/", "fluxserve-")) for name in names)
