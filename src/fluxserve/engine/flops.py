"""How many floating point operations work takes, counted exactly, layer by layer: two for each weight that a token
passes, as many for each pair of tokens that attention compares.

The counter is torch's own. The catalogue's predictions are these counts without what a transformer does once for a
picture; a test holds the two together, and both to what is published.
What it does not know: seconds, devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fluxserve.catalogue import Size
from fluxserve.engine import weights
from fluxserve.engine.checkpoints import Checkpoint
from fluxserve.engine.layout import read_index

if TYPE_CHECKING:
    from torch import Tensor


def counted(act: Callable[[], object]) -> int:
    """Those that torch's kernels do in `act`, which is called once. Kernels that are not torch's own are not seen."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    # The counter knows the kernels of GPUs only.
    on_a_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={on_a_cpu: attention}) as counter:
        act()
    return int(counter.get_total_flops())


def of_step(checkpoint: Checkpoint, size: Size, reference_tokens: int = 0) -> int:
    """Of one picture's step at a drawn size, beside so many reference tokens.

    Counted on the published class without numbers, however it is computed here: compiled, fused, in fewer bits.
    """
    import torch

    piece = checkpoint.pieces.get("transformer")
    transformer: Any = weights.blank(checkpoint.path, read_index(checkpoint.path), "transformer", piece).eval()
    config, words = transformer.config, checkpoint.text_length
    image_tokens = size.area // checkpoint.token_side**2 + reference_tokens

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    inputs = {
        "hidden_states": empty(1, image_tokens, config.in_channels),
        "encoder_hidden_states": empty(1, words, config.joint_attention_dim),
        "timestep": empty(1),
        "guidance": empty(1) if checkpoint.guidance_embeds else None,
        "img_ids": empty(image_tokens, len(config.axes_dims_rope)),
        "txt_ids": empty(words, len(config.axes_dims_rope)),
    }
    if "pooled_projection_dim" in config:
        inputs["pooled_projections"] = empty(1, config.pooled_projection_dim)
    with torch.inference_mode():
        return checkpoint.rows_per_picture * counted(lambda: transformer(**inputs, return_dict=False))
