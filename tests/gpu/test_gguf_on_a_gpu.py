"""Numbers of GGUF files worked out on the GPU: those of the CPU to the bit, and how many of them a second."""

from __future__ import annotations

import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from fluxserve.engine import gguf_file

pytestmark = pytest.mark.gpu
#: As many as the largest matrix of FLUX.1 has.
SHAPE = (21504, 3072)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q3_K", "Q2_K", "IQ4_NL"])
def test_the_device_works_out_the_bits_of_the_cpu(tmp_path: Path, name: str) -> None:
    kind = gguf.GGMLQuantizationType[name]
    numbers, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(1).integers(0, 256, (SHAPE[0], SHAPE[1] // numbers * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "flux")
    writer.add_tensor("a", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with gguf_file.opened(tmp_path / "a.gguf", "cpu") as content:
        expected = content.get_tensor("a")
    with gguf_file.opened(tmp_path / "a.gguf", "cuda") as content:
        content.get_tensor("a")
        torch.cuda.synchronize()
        started = time.perf_counter()
        found = content.get_tensor("a")
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    print(f"{name}: {SHAPE[0] * SHAPE[1] / seconds / 1e9:.2f} thousand million numbers a second")
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)
