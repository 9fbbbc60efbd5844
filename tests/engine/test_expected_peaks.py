"""What a picture takes beside the weights, as it is expected, against the published networks run without numbers."""

import pytest
import torch
from peaks import Peak
from torch import Tensor

from fluxserve.catalogue import Size
from fluxserve.engine.means import Stage
from fluxserve.engine.needs import _PIXEL_COPIES, _TOKEN_COPIES
from fluxserve.engine.published import networks

TOKENS, WORDS = 4096, 512
SIZE = Size(1024, 1024)


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


@pytest.mark.parametrize(("name", "axes"), [("flux-dev", 3), ("flux-2-dev", 4), ("klein-4b", 4)])
def test_a_step_and_a_decoded_picture_take_a_little_less_than_is_expected(name: str, axes: int) -> None:
    made = networks(name)
    transformer, vae = (made[part].to(torch.bfloat16) for part in ("transformer", "vae"))
    config = transformer.config
    inputs = {
        "hidden_states": empty(1, TOKENS, config.in_channels),
        "encoder_hidden_states": empty(1, WORDS, config.joint_attention_dim),
        "timestep": empty(1),
        "guidance": empty(1) if config.guidance_embeds else None,
        "img_ids": empty(TOKENS, axes).float(),
        "txt_ids": empty(WORDS, axes).float(),
    }
    if axes == 3:
        inputs["pooled_projections"] = empty(1, 768)
    measured = {}
    with torch.inference_mode(), Peak() as peak:
        transformer(**inputs, return_dict=False)
    measured[Stage.PREDICT] = peak.most
    with torch.inference_mode(), Peak() as peak:
        vae.decode(empty(1, config.in_channels // 4, SIZE.height // 8, SIZE.width // 8), return_dict=False)
    measured[Stage.DECODE] = peak.most
    inner = config.num_attention_heads * config.attention_head_dim
    expected = {
        Stage.PREDICT: _TOKEN_COPIES * (TOKENS + WORDS) * inner * 2,
        Stage.DECODE: _PIXEL_COPIES * SIZE.area * vae.config.block_out_channels[1] * 2,
    }
    for stage, bytes_measured in measured.items():
        assert 0.7 < bytes_measured / expected[stage] < 0.95
