"""The network families: one file each, found by the pipeline class that a checkpoint names.

What it does not know: checkpoints on disk, trajectories, batches.
"""

from __future__ import annotations

#: `_class_name` in model_index.json -> "module:Class", imported when used.
FAMILIES: dict[str, str] = {
    "FluxPipeline": "fluxserve.engine.networks.flux1:Flux1",
}
