from fluxserve.engine import bfl
from fluxserve.engine.bfl import Destination


def test_a_transformer_has_the_tensors_of_its_blocks_and_those_around_them() -> None:
    whole = bfl.transformer(19, 38, guidance=True)
    assert len(whole) == 12 + 8 + 19 * (2 * 10 + 4) + 38 * (2 * 3 + 2)
    assert len(whole) == 780  # as in flux1-dev.safetensors
    assert len(bfl.transformer(19, 38, guidance=False)) == 776  # as in flux1-schnell.safetensors
    assert bfl.count_blocks(whole, "double_blocks") == 19
    assert bfl.count_blocks(whole, "single_blocks") == 38


def test_no_two_tensors_go_to_one_place() -> None:
    places = [name for place in bfl.transformer(3, 2, guidance=True).values() for name in place.names]
    assert len(places) == len(set(places))


def test_queries_keys_and_values_are_cut_apart_and_in_single_blocks_the_mlp_too() -> None:
    whole = bfl.transformer(1, 2, guidance=True)
    assert whole["double_blocks.0.txt_attn.qkv.bias"] == Destination(
        tuple(f"transformer_blocks.0.attn.add_{name}_proj.bias" for name in "qkv")
    )
    assert whole["single_blocks.1.linear1.weight"] == Destination(
        (
            *(f"single_transformer_blocks.1.attn.to_{name}.weight" for name in "qkv"),
            "single_transformer_blocks.1.proj_mlp.weight",
        )
    )


def test_only_the_last_modulation_is_swapped() -> None:
    swapped = {name for name, place in bfl.transformer(2, 2, guidance=True).items() if place.swapped}
    assert swapped == {"final_layer.adaLN_modulation.1.weight", "final_layer.adaLN_modulation.1.bias"}


def test_the_scales_of_norms_are_weights() -> None:
    whole = bfl.transformer(1, 1, guidance=False)
    assert whole["double_blocks.0.txt_attn.norm.key_norm.scale"].names == (
        "transformer_blocks.0.attn.norm_added_k.weight",
    )
    assert whole["single_blocks.0.norm.query_norm.scale"].names == ("single_transformer_blocks.0.attn.norm_q.weight",)
    assert not any("guidance" in name for name in whole)


def test_an_autoencoders_levels_are_numbered_from_the_other_end_in_its_decoder() -> None:
    names = {
        "encoder.down.3.block.1.norm1.weight": "encoder.down_blocks.3.resnets.1.norm1.weight",
        "encoder.down.0.downsample.conv.bias": "encoder.down_blocks.0.downsamplers.0.conv.bias",
        "decoder.up.0.block.0.nin_shortcut.weight": "decoder.up_blocks.3.resnets.0.conv_shortcut.weight",
        "decoder.up.3.upsample.conv.weight": "decoder.up_blocks.0.upsamplers.0.conv.weight",
        "decoder.mid.block_2.conv1.bias": "decoder.mid_block.resnets.1.conv1.bias",
        "encoder.mid.attn_1.q.weight": "encoder.mid_block.attentions.0.to_q.weight",
        "encoder.mid.attn_1.proj_out.bias": "encoder.mid_block.attentions.0.to_out.0.bias",
        "encoder.mid.attn_1.norm.bias": "encoder.mid_block.attentions.0.group_norm.bias",
        "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
        "decoder.conv_in.weight": "decoder.conv_in.weight",
    }
    assert bfl.count_levels(names) == 4
    assert {name: place.names for name, place in bfl.autoencoder(names).items()} == {
        name: (ours,) for name, ours in names.items()
    }
