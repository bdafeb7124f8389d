"""The blocks of Latte's variants: their formulas, and what attention over space and over time sees."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from phenaki_pytorch.diffusion.blocks import (
    FinalLayer,
    Given,
    ParallelBlock,
    SequentialBlock,
    SpatialBlock,
    TemporalBlock,
    Widths,
)
from phenaki_pytorch.layers.attention import Context
from phenaki_pytorch.layers.positions import rotary

BLOCKS = [SpatialBlock, TemporalBlock, SequentialBlock, ParallelBlock]
MODULATIONS = ["own", "shared", None]
T, N, D = 3, 4, 16  # time steps, tokens, width
every_block = pytest.mark.parametrize("kind", BLOCKS, ids=lambda kind: kind.__name__)
every_modulation = pytest.mark.parametrize("modulation", MODULATIONS)


def build(kind, modulation="own", *arguments, reads_text=False, **changes):
    """Nothing is 0."""
    widths = Widths(**{"dim": D, "heads": 4, "modulation": modulation, "reads_text": reads_text, **changes})
    block = kind(widths, *arguments)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def given(modulation="own", b=2, s=1, **changes):
    condition = {"own": torch.randn(b, s, D), "shared": torch.randn(b, s, 6, D), None: None}[modulation]
    return Given(**{"time_steps": T, "condition": condition, **changes})


def attended(attention, x):
    """Self-attention of sequences (n, d), one by one and head by head."""
    outs = []
    for tokens in x:
        q, k, v = (part.unflatten(-1, (attention.heads, -1)) for part in attention.to_qkv(tokens).chunk(3, dim=-1))
        weights = torch.einsum("nhe,mhe->hnm", q, k).div(q.shape[-1] ** 0.5).softmax(dim=-1)
        outs.append(attention.to_out(torch.einsum("hnm,mhe->nhe", weights, v).flatten(1)))
    return torch.stack(outs)


def over_space(attention, x):
    return torch.stack([attended(attention, sample) for sample in x])


def over_time(attention, x):
    return over_space(attention, x.transpose(1, 2)).transpose(1, 2)


def formula(block, x, condition):
    """The docstring of blocks.py, with six vectors from a SiLU and a linear layer, in DiT's order."""
    layer = block.to_modulation.linear
    vectors = F.linear(F.silu(condition), layer.weight, layer.bias)[:, :, None].chunk(6, dim=-1)
    shift, scale, gate, ff_shift, ff_scale, ff_gate = vectors

    def normed(x, shift=shift, scale=scale):
        return F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift

    if isinstance(block, SpatialBlock):
        x = x + gate * over_space(block.attention, normed(x))
    elif isinstance(block, TemporalBlock):
        x = x + gate * over_time(block.attention, normed(x))
    elif isinstance(block, SequentialBlock):
        x = x + gate * over_space(block.attention, normed(x))
        x = x + gate * over_time(block.temporal_attention, normed(x))
    else:
        x = x + gate * (over_space(block.attention, normed(x)) + over_time(block.temporal_attention, normed(x)))
    first, last = block.ff[0], block.ff[3]
    return x + ff_gate * last(F.gelu(first(normed(x, ff_shift, ff_scale)), approximate="tanh"))


@every_block
def test_a_block_is_its_formula(kind):
    block, x, told = build(kind), torch.randn(2, T, N, D), given()
    torch.testing.assert_close(block(x, given=told), formula(block, x, told.condition), atol=1e-4, rtol=1e-4)


@every_block
def test_a_table_plus_shared_vectors_modulates_as_a_layer_that_gives_their_sum(kind):
    own, shared = build(kind), build(kind, "shared")
    table = shared.to_modulation.table
    shared.load_state_dict({name: value for name, value in own.state_dict().items() if "modulation" not in name} | {
        "to_modulation.table": table
    })  # fmt: skip
    told = given("shared")
    nn.init.zeros_(own.to_modulation.linear.weight)
    own.to_modulation.linear.bias.data = (told.condition[0, 0] + table).flatten().detach()
    x = torch.randn(1, T, N, D)
    told = told._replace(condition=told.condition[:1])
    torch.testing.assert_close(shared(x, given=told), own(x, given=given(b=1)), atol=1e-4, rtol=1e-4)


@every_block
def test_without_modulation_a_block_has_norms_of_its_own_and_no_gates(kind):
    block = build(kind, None)
    norms = [part for part in block.modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == (3 if kind is SequentialBlock else 2)
    assert all(norm.weight.shape == norm.bias.shape == (D,) and norm.eps == 1e-6 for norm in norms)
    x = torch.randn(2, T, N, D)
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(block(x, given=given(None)), x)


@every_block
@every_modulation
def test_attention_sees_its_own_axis(kind, modulation):
    block, told, x = build(kind, modulation), given(modulation), torch.randn(2, T, N, D)
    other = x.clone()
    other[0, 1, 2] += torch.randn(D)  # a norm does not see a shift of all channels
    changed = (block(other, given=told) - block(x, given=told)).abs().amax(dim=-1) > 1e-6
    place, step = torch.arange(N) == 2, torch.arange(T) == 1
    expected = {
        SpatialBlock: step[:, None].expand(T, N),
        TemporalBlock: place.expand(T, N),
        SequentialBlock: torch.ones(T, N).bool(),
        ParallelBlock: step[:, None] | place,
    }[kind]
    assert torch.equal(changed[0], expected) and not changed[1].any()


@every_block
@every_modulation
def test_images_leave_the_video_alone_and_do_not_see_it(kind, modulation):
    block, x = build(kind, modulation, reads_text=True), torch.randn(2, T + 2, N, D)
    texts = Context(torch.randn(2, 5, D), None), Context(torch.randn(4, 5, D), None)
    angles = rotary((T,), 8 if kind is ParallelBlock else 4, x.device)
    positions = torch.randn(T, 1, D)
    told = given(modulation, s=3, text=texts[0], image_text=texts[1], rotary=angles, time_positions=positions)
    out = block(x, given=told)
    alone = told if modulation is None else told._replace(condition=told.condition[:, :1])
    torch.testing.assert_close(out[:, :T], block(x[:, :T], given=alone), atol=1e-5, rtol=1e-5)
    for i in range(2):
        other = x.clone()
        other[:, T + i] += torch.randn(D)
        changed = (block(other, given=told) - out).abs().amax(dim=(0, 2, 3)) > 0
        assert changed.tolist() == [step == T + i for step in range(T + 2)]
    assert (kind is TemporalBlock) == torch.equal(out[:, T:], x[:, T:])


@pytest.mark.parametrize("kind", [SpatialBlock, SequentialBlock, ParallelBlock])
def test_each_image_reads_its_own_text_and_condition(kind):
    block, x = build(kind, reads_text=True), torch.randn(1, T + 2, N, D)
    video, images = torch.randn(1, 5, D), torch.randn(2, 5, D)
    told = given(b=1, s=3, text=Context(video, None), image_text=Context(images, None))
    out = block(x, given=told)

    def changed(told):
        return ((block(x, given=told) - out).abs().amax(dim=(0, 2, 3)) > 1e-6).tolist()

    other_images, other_condition, video_steps = images.clone(), told.condition.clone(), [True] * T
    other_images[1] += torch.randn(5, D)
    other_condition[:, 1] += 1
    assert changed(told._replace(image_text=Context(other_images, None))) == [False] * T + [False, True]
    assert changed(told._replace(condition=other_condition)) == [False] * T + [True, False]
    assert changed(told._replace(text=Context(torch.randn(1, 5, D), None))) == [*video_steps, False, False]


def test_the_text_is_read_without_norm_and_gate_after_self_attention():
    block, plain = build(SpatialBlock, reads_text=True), build(SpatialBlock)
    plain.load_state_dict({name: value for name, value in block.state_dict().items() if "text" not in name})
    told = given(text=Context(torch.randn(2, 5, D), None))
    for each in (block, plain):  # without the MLP
        nn.init.zeros_(each.ff[3].weight), nn.init.zeros_(each.ff[3].bias)
    x = torch.randn(2, T, N, D)
    after = plain(x, given=told)
    expected = after + block.text_attention.attention(after.flatten(1, 2), told.text).unflatten(1, (T, N))
    torch.testing.assert_close(block(x, given=told), expected)


def test_the_attentions_of_variant_4_have_half_of_the_heads_twice_as_wide():
    parallel, sequential = build(ParallelBlock), build(SequentialBlock)
    assert parallel.attention.heads == parallel.temporal_attention.heads == 2
    assert sequential.attention.heads == 4
    counts = [sum(parameter.numel() for parameter in block.parameters()) for block in (parallel, sequential)]
    assert counts == [22 * D**2 + 19 * D] * 2
    assert sum(parameter.numel() for parameter in build(SpatialBlock).parameters()) == 18 * D**2 + 15 * D


@every_modulation
def test_masked_tokens_are_not_seen_within_a_time_step(modulation):
    block, told, x = build(SpatialBlock, modulation), given(modulation), torch.randn(2, T, N, D)
    mask = torch.ones(2, T, N).bool()
    mask[0, 1, 3] = False
    other = x.clone()
    other[0, 1, 3] += torch.randn(D)
    outs = [block(each, given=told._replace(mask=mask)) for each in (x, other)]
    changed = (outs[0] - outs[1]).abs().amax(dim=-1) > 0
    assert changed.nonzero().tolist() == [[0, 1, 3]]
    assert (block(other, given=told) - block(x, given=told))[0, 1, 0].abs().max() > 1e-4


def test_the_last_layer_is_modulated_without_a_gate():
    x, condition = torch.randn(2, T, N, D), torch.randn(2, 1, D)
    own, shared, plain = (build(FinalLayer, modulation, 5) for modulation in MODULATIONS)
    vectors = F.linear(F.silu(condition), own.to_modulation.linear.weight, own.to_modulation.linear.bias)
    shift, scale = vectors[:, :, None].chunk(2, dim=-1)
    normed = F.layer_norm(x, (D,), eps=1e-6)
    torch.testing.assert_close(own(x, condition, T), own.linear(normed * (1 + scale) + shift))
    shift, scale = (condition[:, :, None] + row for row in shared.to_modulation.table)
    torch.testing.assert_close(shared(x, condition[:, :, None], T), shared.linear(normed * (1 + scale) + shift))
    torch.testing.assert_close(plain(x, None, T), plain.linear(plain.norm(x)))
