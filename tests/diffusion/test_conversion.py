"""Converted weights compute what diffusers' models compute, output for output."""

import pytest
import torch
from einops import rearrange

from phenaki_pytorch.diffusion.blocks import SpatialBlock, Widths
from phenaki_pytorch.diffusion.conversion import from_diffusers, from_dit
from phenaki_pytorch.diffusion.latte_transformer import LatteTransformer

SIZES = {"patch_size": 2, "num_attention_heads": 3, "attention_head_dim": 8, "attention_bias": True}
SIZES |= {"in_channels": 4, "out_channels": 8, "sample_size": 8, "norm_eps": 1e-6, "num_layers": 2}
SIZES |= {"norm_elementwise_affine": False, "activation_fn": "gelu-approximate"}
OURS = {"code_dim": 4, "grid": (4, 8, 8), "dim": 24, "heads": 3}


def randomised(module):
    """Nothing is 0, so that no part of the module can be left out; float64, so that rounding hides nothing."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def diffusers_latte():
    from diffusers import LatteTransformer3DModel

    texts = {"caption_channels": 16, "cross_attention_dim": 24}
    kind = {"norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "video_length": 4}
    return randomised(LatteTransformer3DModel(**SIZES, **texts, **kind))


def diffusers_dit():
    """With DiT's own frequencies of the time, where diffusers has others."""
    from diffusers import DiTTransformer2DModel

    model = randomised(DiTTransformer2DModel(**SIZES, norm_type="ada_norm_zero", num_embeds_ada_norm=5))
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


def dit_names(weights):
    """Weights of diffusers' DiT under the names of DiT's own code."""
    plain = {
        "x_embedder.proj": "pos_embed.proj",
        "t_embedder.mlp.0": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2",
        "final_layer.adaLN_modulation.1": "proj_out_1",
        "final_layer.linear": "proj_out_2",
    }
    block = {"attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}
    block["adaLN_modulation.1"] = "norm1.linear"
    plain |= {f"blocks.{i}.{ours}": f"transformer_blocks.{i}.{name}" for i in range(2) for ours, name in block.items()}
    named = {f"{ours}.{kind}": weights[f"{name}.{kind}"] for ours, name in plain.items() for kind in ("weight", "bias")}
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [weights[f"transformer_blocks.{i}.attn1.to_{part}.{kind}"] for part in "qkv"]
            named[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    table = weights["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    return named | {"y_embedder.embedding_table.weight": table, "pos_embed": torch.randn(1, 16, 24)}


def assert_close(got, expected):
    """Positions and frequencies are float32."""
    assert expected.std() > 0.5
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("frames", [4, 1])
@torch.no_grad()
def test_converted_text_weights_compute_what_diffusers_model_computes(frames):
    theirs, null = diffusers_latte(), double(16)
    ours = LatteTransformer(**OURS, depth=4, dim_context=16).double().eval()
    ours.load_state_dict(from_diffusers(theirs.state_dict(), null))
    latents, time, text = double(2, frames, 8, 8, 4), torch.tensor([3, 977]), double(2, 5, 16)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    bias = rearrange((~mask).double() * -10_000, "b m -> b 1 m").repeat_interleave(frames, dim=0)

    def expected(text, **masked):
        out = theirs(rearrange(latents, "b t h w e -> b e t h w"), time, encoder_hidden_states=text, **masked).sample
        return rearrange(out, "b e t h w -> b t h w e")

    assert_close(ours(latents, time, context=text), expected(text))
    assert_close(ours(latents, time, context=text, context_mask=mask), expected(text, encoder_attention_mask=bias))
    dropped = ours(latents, time, context=text, context_mask=mask, dropped=torch.tensor([True, True]))
    assert_close(dropped, expected(null.expand(2, 1, 16)))


@torch.no_grad()
def test_the_stream_of_a_model_without_text_is_that_of_diffusers_model_whose_text_adds_nothing():
    theirs = diffusers_latte()
    for block in theirs.transformer_blocks:
        for parameter in block.attn2.to_out[0].parameters():
            parameter.zero_()
    moved = from_diffusers(theirs.state_dict(), double(16))
    ours = LatteTransformer(**OURS, depth=4).double().eval()
    ours.load_state_dict({name: moved.get(name, value) for name, value in ours.state_dict().items()})
    for i, block in enumerate(ours.transformer.blocks):
        table = moved[f"transformer.blocks.{i}.to_modulation.table"].flatten()
        block.to_modulation.linear.weight.copy_(moved["shared_modulation.linear.weight"])
        block.to_modulation.linear.bias.copy_(moved["shared_modulation.linear.bias"] + table)
    latents, time, streams = double(2, 4, 8, 8, 4), torch.tensor([3, 977]), []
    for last in (ours.final, theirs.norm_out):
        last.register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    ours(latents, time)
    theirs(rearrange(latents, "b t h w e -> b e t h w"), time, encoder_hidden_states=double(2, 5, 16))
    assert_close(streams[0], rearrange(streams[1], "(b t) n d -> b t n d", b=2))


@pytest.mark.parametrize("names", [dict, dit_names], ids=["diffusers", "dit"])
@torch.no_grad()
def test_if_all_blocks_were_spatial_each_frame_would_be_what_the_model_of_images_computes(names):
    theirs = diffusers_dit()
    ours = LatteTransformer(**OURS, depth=2, num_classes=5).double().eval()
    ours.load_state_dict(from_dit(names(theirs.state_dict()), num_classes=5))
    spatial = SpatialBlock(Widths(dim=24, heads=3, modulation="own", reads_text=False)).double()
    spatial.load_state_dict(ours.transformer.blocks[1].state_dict())
    ours.transformer.blocks[1] = spatial
    latents, time, classes = double(2, 3, 8, 8, 4), torch.tensor([3, 977]), torch.tensor([4, 0])
    for dropped in ([False, False], [True, False]):
        got = ours(latents, time, classes, dropped=torch.tensor(dropped))
        given = classes.masked_fill(torch.tensor(dropped), 5)  # the null class
        for frame in range(3):
            expected = theirs(rearrange(latents[:, frame], "b h w e -> b e h w"), time, given).sample
            assert_close(got[:, frame], rearrange(expected, "b e h w -> b h w e"))


def test_a_table_of_classes_that_does_not_fit_is_left_out():
    weights = diffusers_dit().state_dict()
    for num_classes, kept in ((5, True), (4, False), (None, False)):
        moved = from_dit(weights, num_classes=num_classes)
        assert ("conditioning.classes.weight" in moved) is kept
        model = LatteTransformer(**OURS, depth=2, num_classes=num_classes)
        missing, unexpected = model.load_state_dict(moved, strict=False)
        assert unexpected == [] and missing == ([] if kept or num_classes is None else ["conditioning.classes.weight"])


def test_weights_that_lack_something_or_hold_more_are_refused():
    weights = diffusers_latte().state_dict()
    missing = {name: value for name, value in weights.items() if name != "transformer_blocks.1.attn2.to_v.bias"}
    with pytest.raises(ValueError, match=r"hold transformer_blocks\.1\.attn2\.to_v\.bias, got none"):
        from_diffusers(missing, torch.zeros(16))
    with pytest.raises(ValueError, match="got extra too"):
        from_diffusers(weights | {"extra": torch.zeros(1)}, torch.zeros(16))
    with pytest.raises(ValueError, match=r"hold pos_embed\.proj\.weight"):
        from_dit({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="got y_embedder"):
        from_dit(diffusers_dit().state_dict() | {"y_embedder": torch.zeros(1)})
