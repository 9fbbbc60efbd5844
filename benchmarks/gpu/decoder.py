"""The autoencoder's decoder: as it is, with its channels last, and compiled.

    .venv/bin/python benchmarks/gpu/decoder.py --model FLUX.1-dev

Each is held against the decoder in float32 and against the eager one before it is timed. Predicted: 0.8 of the time
with channels last, 0.8 of that compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import Module

import lab
from fluxserve.engine import published
from fluxserve.engine.faster import prepare_decoder
from fluxserve.engine.faster.switch import Learning
from fluxserve.engine.speed import PLAIN, Speed

MODELS = ("FLUX.1-dev", "FLUX.2-klein-4B")
_LAST = Speed(channels_last=True)
VARIANTS = {
    "as it is": (PLAIN, "as it is", 1.0),
    "channels last": (_LAST, "as it is", 0.8),
    "channels last, compiled": (replace(_LAST, compiled=True), "channels last", 0.8),
}
SIZE = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each variant."""
    bench = lab.begin("The decoder.", arguments, MODELS)
    for what in VARIANTS:
        bench.measure("decoder", what, lambda w=what: _of(bench, w))  # type: ignore[misc]
    return bench.answer


def _of(bench: lab.Bench, what: str) -> dict[str, float]:
    speed, beside, predicted = VARIANTS[what]
    speed = replace(speed, backend="aot_eager") if bench.tiny else speed
    vae = _autoencoder(bench)
    side = 8 if bench.tiny else SIZE // 8
    latents = torch.randn(1, vae.config.latent_channels, side, side, device=bench.device)
    with torch.inference_mode():
        exact = vae.float().decode(latents, return_dict=False)[0]
        vae.to(bench.dtype)
        given = latents.to(bench.dtype)
        eager = vae.decode(given, return_dict=False)[0].float()
        with prepare_decoder(vae, speed).learning(Learning.ALONE):
            found = vae.decode(given, return_dict=False)[0].float()
        off, from_eager = (float((found - one).norm() / one.norm()) for one in (exact, eager))
        assert max(off, from_eager) < 0.05, (off, from_eager)
        seconds = bench.seconds(lambda: vae.decode(given, return_dict=False)[0])
    known = bench.found("decoder", beside)
    measured = {"measured": seconds / known["seconds"]} if known else {}
    return {"seconds": seconds, "off_by": off, "off_eager_by": from_eager, "predicted": predicted, **measured}


def _autoencoder(bench: lab.Bench) -> Module:
    torch.manual_seed(7)
    is_flux1 = bench.model.startswith("FLUX.1")
    with bench.device:
        if bench.tiny:
            vae: Module = lab.tiny.tiny_networks()[1] if is_flux1 else lab.flux2_folders.tiny_autoencoder()
        else:
            vae = published.made(lab.shape_of(bench.model), "vae")
    lab.draw(vae)
    return vae.eval().requires_grad_(requires_grad=False).to(bench.dtype)


if __name__ == "__main__":
    lab.run(main)
