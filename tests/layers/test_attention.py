"""Attention and the transformer: which tokens see which, caches, contexts, dropout, initialisation, precision."""

import pytest
import torch
from torch import nn

from phenaki_pytorch.core.modules import checkpoint_activations
from phenaki_pytorch.layers.attention import (
    Attention,
    Context,
    CrossAttention,
    KeyValueCache,
    PreallocatedCache,
    causal_mask,
)
from phenaki_pytorch.layers.positions import rotary
from phenaki_pytorch.layers.transformer import Transformer, init_weights

CPU = torch.device("cpu")
SIZES = {"heads": 2, "dim_head": 8}


def changed_tokens(module, x, positions, **options):
    """Which tokens of the output, bool (n,), change when the tokens at `positions` of the input do."""
    other = x.clone()
    other[:, positions] = torch.randn_like(other[:, positions])
    with torch.no_grad():
        return (module(x, **options) - module(other, **options)).abs().amax(dim=(0, 2)) > 1e-6


def key_mask(mask):
    """Bool (b, m), True for keys that every query may see, in the shape that attention takes."""
    return mask[:, None, None, :]


# which tokens see which


@pytest.mark.parametrize("k", [0, 3, 6])
def test_causal_tokens_see_themselves_and_earlier_tokens(k):
    module = Transformer(16, 2, causal=True, **SIZES)
    angles = rotary((7,), 8, CPU)
    assert changed_tokens(module, torch.randn(2, 7, 16), [k], rotary=angles).tolist() == [i >= k for i in range(7)]


def test_without_causality_all_tokens_see_all():
    module = Transformer(16, 1, **SIZES)
    assert changed_tokens(module, torch.randn(2, 7, 16), [6]).all()


def test_masked_keys_are_not_seen():
    module = Transformer(16, 2, **SIZES)
    x, mask = torch.randn(2, 6, 16), torch.tensor([True, True, False, True, True, False]).repeat(2, 1)
    masked = [2, 5]
    assert changed_tokens(module, x, masked, mask=key_mask(mask)).tolist() == [i in masked for i in range(6)]
    assert changed_tokens(module, x, masked, mask=key_mask(torch.ones_like(mask))).all()


def test_masked_keys_change_no_more_than_absent_ones():
    module = Transformer(16, 2, **SIZES).eval()
    x, mask = torch.randn(1, 6, 16), torch.arange(6)[None] < 4
    torch.testing.assert_close(module(x, mask=key_mask(mask))[:, :4], module(x[:, :4]))


def test_a_mask_replaces_the_causal_mask():
    x, seen = torch.randn(2, 5, 16), causal_mask(5, past=0, window=5, device=CPU)
    module = Attention(16, causal=True, **SIZES)
    torch.testing.assert_close(module(x, mask=seen), module(x))
    assert changed_tokens(module, x, [4], mask=torch.ones_like(seen)).all()


def test_the_causal_mask_is_a_band_below_the_diagonal():
    one, zero = True, False
    expected = [[zero, one, one, zero], [zero, zero, one, one]]
    assert causal_mask(2, past=2, window=2, device=CPU).tolist() == expected
    assert torch.equal(causal_mask(4, past=0, window=4, device=CPU), torch.ones(4, 4).tril().bool())


@pytest.mark.parametrize("window", [2, None])
def test_with_a_cache_pieces_give_what_the_whole_sequence_gives(window):
    module, x, angles = Attention(16, causal=True, **SIZES), torch.randn(2, 9, 16), rotary((9,), 8, CPU)
    whole = module(x, rotary=angles, mask=causal_mask(9, past=0, window=window or 9, device=CPU))
    cache = KeyValueCache(None if window is None else window - 1)
    pieces = []
    for piece in x.split([1, 3, 5], dim=1):
        past, n = len(cache), piece.shape[1]
        mask = causal_mask(n, past=past, window=window or 9, device=CPU)
        pieces.append(module(piece, rotary=angles[: past + n], mask=mask, cache=cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    assert len(cache) == (9 if window is None else window - 1)


@pytest.mark.parametrize("first", [1, 3, 9])
@torch.no_grad()
def test_with_a_cache_of_known_length_single_tokens_give_what_the_whole_sequence_gives(first):
    module, x = Attention(16, causal=True, qk_norm=False, **SIZES), torch.randn(2, 9, 16)
    cache = PreallocatedCache(9)
    pieces = [module(piece, cache=cache) for piece in x.split([first] + [1] * (9 - first), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), module(x))
    assert len(cache) == 9
    keys = cache.kept[0]
    assert keys.shape == (2, 9, 2, 8) and torch.equal(keys, module.to_qkv(x).chunk(3, dim=-1)[1].unflatten(-1, (2, 8)))


def test_masked_context_is_not_seen():
    module = Transformer(16, 2, dim_context=5, **SIZES)
    x, embeddings, mask = torch.randn(2, 6, 16), torch.randn(2, 4, 5), torch.tensor([[True, False, True, True]] * 2)
    other = embeddings.clone()
    other[:, 1] = torch.randn(2, 5)

    def output(embeddings, mask):
        return module(x, context=Context(embeddings, mask))

    assert torch.equal(output(embeddings, mask), output(other, mask))
    assert (output(embeddings, None) - output(other, None)).abs().max() > 1e-4


# equal to the formula


def softmax_attention(q, k, v, heads):
    """softmax(q kᵀ / √e) v: (b, n, h · e), (b, m, h · e) -> (b, n, h · e)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def per_head(norm, x):
    return norm(x.unflatten(-1, (2, 8))).flatten(-2)


def test_self_attention_is_softmax_attention_of_normalised_queries_and_keys():
    module, x = Attention(16, **SIZES), torch.randn(2, 5, 16)
    q, k, v = module.to_qkv(x).chunk(3, dim=-1)
    expected = softmax_attention(per_head(module.q_norm, q), per_head(module.k_norm, k), v, heads=2)
    torch.testing.assert_close(module(x), module.to_out(expected))


def test_cross_attention_is_softmax_attention_of_normalised_queries_and_keys():
    module = CrossAttention(16, dim_context=5, **SIZES)
    x, embeddings = torch.randn(2, 5, 16), torch.randn(2, 3, 5)
    k, v = module.to_kv(embeddings).chunk(2, dim=-1)
    expected = softmax_attention(per_head(module.q_norm, module.to_q(x)), per_head(module.k_norm, k), v, heads=2)
    torch.testing.assert_close(module(x, Context(embeddings, None)), module.to_out(expected))


def test_without_norms_of_queries_and_keys_it_is_plain_attention_with_values_of_any_width():
    x, embeddings = torch.randn(2, 5, 16), torch.randn(2, 3, 5)
    module = Attention(16, qk_norm=False, **SIZES)
    torch.testing.assert_close(module(x), module.to_out(softmax_attention(*module.to_qkv(x).chunk(3, dim=-1), heads=2)))
    cross = CrossAttention(16, dim_context=5, dim_value=3, qk_norm=False, **SIZES)
    k, v = cross.to_kv(embeddings).split([16, 6], dim=-1)
    expected = cross.to_out(softmax_attention(cross.to_q(x), k, v, heads=2))
    torch.testing.assert_close(cross(x, Context(embeddings, None)), expected)


# contexts


def count_calls(module):
    """A list that grows by one with every call of the module."""
    calls = []
    module.register_forward_hook(lambda *_: calls.append(module))
    return calls


def test_without_gradients_keys_and_values_of_a_context_are_computed_once():
    module, context = Transformer(16, 2, dim_context=5, **SIZES), Context(torch.randn(2, 3, 5), None)
    calls = [count_calls(block.cross_attention.to_kv) for block in module.blocks]
    with torch.no_grad():
        for x in torch.randn(2, 2, 5, 16):
            assert torch.equal(module(x, context=context), module(x, context=Context(context.embeddings, None)))
    assert [len(each) for each in calls] == [3, 3]  # once for the context kept, and once for each of the new ones


def test_with_gradients_keys_and_values_of_a_context_are_computed_in_each_call():
    module, context = Transformer(16, 1, dim_context=5, **SIZES), Context(torch.randn(2, 3, 5), None)
    to_kv, x = module.blocks[0].cross_attention.to_kv, torch.randn(2, 5, 16)
    with torch.no_grad():
        module(x, context=context)
    for _ in range(2):  # a second backward pass through kept values would fail
        to_kv.weight.grad = None
        module(x, context=context).square().sum().backward()
        assert to_kv.weight.grad.abs().sum() > 0


# positions


@pytest.mark.parametrize("depth", [1, 3])
def test_with_positions_only_their_outputs_are_computed(depth):
    module, x = Transformer(16, depth, dim_context=5, **SIZES), torch.randn(2, 9, 16)
    mask, positions = torch.arange(9) < torch.tensor([[9], [6]]), torch.tensor([[8, 0, 3], [5, 5, 1]])
    context = Context(torch.randn(2, 4, 5), torch.tensor([[True] * 4, [True, False, True, False]]))
    options = {"rotary": rotary((3, 3), 8, CPU), "mask": key_mask(mask), "context": context}
    sizes = []
    module.blocks[-1].ff.register_forward_hook(lambda _, args, __: sizes.append(args[0].shape[1]))
    expected = module(x, **options)[[[0], [1]], positions]
    some = module(x, positions=positions, **options)
    assert sizes == [9, 3]
    torch.testing.assert_close(some, expected)
    parameters = list(module.parameters())
    gradients = [torch.autograd.grad(out.square().sum(), parameters, retain_graph=True) for out in (expected, some)]
    torch.testing.assert_close(*gradients)


def test_attention_depends_on_relative_positions_only():
    module, x = Transformer(16, 2, causal=True, **SIZES), torch.randn(2, 4, 16)
    angles = rotary((40,), 8, CPU)
    near, far = (module(x, rotary=angles[i : i + 4]) for i in (0, 33))
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
    spread = module(x, rotary=angles[::10])
    assert (near - spread).abs().max() > 1e-3


def test_without_rotary_positions_the_order_of_tokens_does_not_matter():
    module, x = Transformer(16, 1, **SIZES), torch.randn(2, 6, 16)
    angles = rotary((6,), 8, CPU)
    torch.testing.assert_close(module(x).flip(1), module(x.flip(1)))
    assert (module(x, rotary=angles).flip(1) - module(x.flip(1), rotary=angles)).abs().max() > 1e-3


# dropout, initialisation, depth


@pytest.mark.parametrize("dropout", ["attn_dropout", "ff_dropout"])
def test_dropout_acts_in_training_only(dropout):
    module = Transformer(16, 1, dim_context=5, **SIZES, **{dropout: 0.5})
    x, context = torch.randn(2, 6, 16), Context(torch.randn(2, 3, 5), None)
    assert (module(x, context=context) - module(x, context=context)).abs().max() > 1e-3
    module.eval()
    assert torch.equal(module(x, context=context), module(x, context=context))


def test_attention_dropout_acts_in_self_attention_and_cross_attention():
    x, context = torch.randn(2, 6, 16), Context(torch.randn(2, 3, 5), None)
    attention = Attention(16, dropout=0.5, **SIZES)
    cross = CrossAttention(16, dim_context=5, dropout=0.5, **SIZES)
    for call in (lambda: attention(x), lambda: cross(x, context)):
        assert not torch.equal(call(), call())


def test_depth_0_is_the_identity():
    module, x = Transformer(16, 0, **SIZES), torch.randn(2, 6, 16)
    assert module(x) is x
    assert not list(module.parameters())


def test_initialisation_is_xavier_with_zero_biases():
    module = Transformer(64, 1, **SIZES)
    nn.init.ones_(module.blocks[0].ff[0].bias)
    init_weights(module)
    weight, bias = module.blocks[0].ff[0].weight, module.blocks[0].ff[0].bias
    bound = (6 / (64 + 256)) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound
    assert not bias.any()
    assert all(parameter.abs().sum() > 0 for name, parameter in module.named_parameters() if "weight" in name)


def test_the_last_layer_of_each_branch_starts_at_a_fifth():
    module = Transformer(64, 1, dim_context=64, heads=4, dim_head=16)
    init_weights(module)
    block = module.blocks[0]
    for layer in (block.attention.to_out, block.cross_attention.to_out, block.ff[-1]):
        bound = 0.2 * (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max() <= bound


def test_only_modules_with_a_transformer_can_be_checkpointed():
    with pytest.raises(ValueError, match="Linear has no blocks whose activations could be checkpointed"):
        checkpoint_activations(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="not instance of"):
        checkpoint_activations(None)


# precision


def test_the_output_under_bfloat16_autocast_stays_near():
    module = Transformer(16, 2, dim_context=5, **SIZES).eval()
    x, mask = torch.randn(2, 6, 16), torch.ones(2, 3, dtype=torch.bool)
    options = {"rotary": rotary((6,), 8, CPU), "context": Context(torch.randn(2, 3, 5), mask)}
    exact = module(x, **options)
    with torch.autocast("cpu", torch.bfloat16):
        near = module(x, **options)
    assert 0 < (exact - near).abs().max() < 0.1


def test_under_autocast_the_residual_stream_is_bfloat16_only_without_gradients():
    model, dtypes = Transformer(32, 2, heads=2, dim_head=16), []
    model.blocks[1].register_forward_pre_hook(lambda _, args: dtypes.append(args[0].dtype))
    x = torch.randn(2, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        with torch.no_grad():
            model(x)
    with torch.no_grad():
        model(x)
    assert dtypes == [torch.float32, torch.bfloat16, torch.float32]
