"""The transformer: who sees whom, what rotary angles change, that dropout drops."""

import pytest
import torch
from torch import nn

from phenaki_pytorch.attention import Attention, CrossAttention, Transformer, checkpoint_activations, init_weights
from phenaki_pytorch.position import rotary

CPU = torch.device("cpu")
SIZES = {"heads": 2, "dim_head": 8}


def changed_tokens(module, x, places, **options):
    """Which tokens of the result, bool (n,), change when the tokens at `places` do."""
    other = x.clone()
    other[:, places] = torch.randn_like(other[:, places])
    with torch.no_grad():
        return (module(x, **options) - module(other, **options)).abs().amax(dim=(0, 2)) > 1e-6


@pytest.mark.parametrize("k", [0, 3, 6])
def test_causal_tokens_see_themselves_and_what_came_before(k):
    module = Transformer(16, 2, causal=True, **SIZES)
    angles = rotary((7,), 8, CPU)
    assert changed_tokens(module, torch.randn(2, 7, 16), [k], rotary=angles).tolist() == [i >= k for i in range(7)]


def test_without_causality_all_tokens_see_all():
    module = Transformer(16, 1, **SIZES)
    assert changed_tokens(module, torch.randn(2, 7, 16), [6]).all()


def test_masked_tokens_are_not_seen():
    module = Transformer(16, 2, **SIZES)
    x, mask = torch.randn(2, 6, 16), torch.tensor([True, True, False, True, True, False]).repeat(2, 1)
    hidden = [2, 5]
    assert changed_tokens(module, x, hidden, mask=mask).tolist() == [i in hidden for i in range(6)]
    assert changed_tokens(module, x, hidden, mask=torch.ones_like(mask)).all()


def test_masked_tokens_might_as_well_be_absent():
    module = Transformer(16, 2, **SIZES).eval()
    x, mask = torch.randn(1, 6, 16), torch.arange(6)[None] < 4
    torch.testing.assert_close(module(x, mask=mask)[:, :4], module(x[:, :4]))


def test_masked_context_is_not_seen():
    module = Transformer(16, 2, dim_context=5, **SIZES)
    x, context, mask = torch.randn(2, 6, 16), torch.randn(2, 4, 5), torch.tensor([[True, False, True, True]] * 2)
    other = context.clone()
    other[:, 1] = torch.randn(2, 5)

    def out(context, mask):
        return module(x, keys_values=module.keys_values(context), context_mask=mask)

    assert torch.equal(out(context, mask), out(other, mask))
    assert (out(context, None) - out(other, None)).abs().max() > 1e-4


def softmax_attention(q, k, v, heads):
    """The textbook's: (b, n, h e), (b, m, h e) -> (b, n, h e)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def per_head(norm, x):
    return norm(x.unflatten(-1, (2, 8))).flatten(-2)


def test_self_attention_is_the_textbooks_with_normalised_queries_and_keys():
    module, x = Attention(16, **SIZES), torch.randn(2, 5, 16)
    q, k, v = module.to_qkv(x).chunk(3, dim=-1)
    expected = softmax_attention(per_head(module.q_norm, q), per_head(module.k_norm, k), v, heads=2)
    torch.testing.assert_close(module(x), module.to_out(expected))


def test_cross_attention_is_the_textbooks_with_normalised_queries_and_keys():
    module = CrossAttention(16, dim_context=5, **SIZES)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 3, 5)
    k, v = module.to_kv(context).chunk(2, dim=-1)
    expected = softmax_attention(per_head(module.q_norm, module.to_q(x)), per_head(module.k_norm, k), v, heads=2)
    torch.testing.assert_close(module(x, module.keys_values(context)), module.to_out(expected))


def test_keys_and_values_serve_any_number_of_calls():
    module = Transformer(16, 2, dim_context=5, **SIZES)
    context = torch.randn(2, 3, 5)
    once = module.keys_values(context)
    assert len(once) == 2
    assert all(part.shape == (2, 2, 3, 8) for keys_values in once for part in keys_values)
    for x in torch.randn(2, 2, 5, 16):
        assert torch.equal(module(x, keys_values=once), module(x, keys_values=module.keys_values(context)))


@pytest.mark.parametrize("depth", [1, 3])
def test_only_the_places_that_are_wanted_come_back(depth):
    module, x = Transformer(16, depth, dim_context=5, **SIZES), torch.randn(2, 9, 16)
    mask, places = torch.arange(9) < torch.tensor([[9], [6]]), torch.tensor([[8, 0, 3], [5, 5, 1]])
    keys_values = module.keys_values(torch.randn(2, 4, 5))
    options = {"rotary": rotary((3, 3), 8, CPU), "mask": mask, "keys_values": keys_values}
    expected = module(x, **options)[[[0], [1]], places]
    wanted = module(x, places=places, **options)
    torch.testing.assert_close(wanted, expected)
    weights = list(module.parameters())
    one, other = (torch.autograd.grad(out.square().sum(), weights, retain_graph=True) for out in (expected, wanted))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("depth", [1, 3])
def test_several_contexts_of_the_same_tokens_are_several_passes(depth):
    module, x, places = Transformer(16, depth, dim_context=5, **SIZES), torch.randn(2, 9, 16), torch.randint(9, (2, 4))
    contexts, seen = torch.randn(3, 2, 4, 5), torch.rand(3, 2, 4) < 0.7
    seen[:, :, 0] = True
    options = {"rotary": rotary((3, 3), 8, CPU), "keys_values": module.keys_values(contexts.flatten(0, 1))}
    for chosen in (None, places):
        together = module(x, context_mask=seen.flatten(0, 1), places=chosen, **options)
        for one, context, mask in zip(together.chunk(3), contexts, seen, strict=True):
            alone = options | {"keys_values": module.keys_values(context)}
            torch.testing.assert_close(one, module(x, context_mask=mask, places=chosen, **alone))


def test_attention_sees_differences_of_places_only():
    module, x = Transformer(16, 2, causal=True, **SIZES), torch.randn(2, 4, 16)
    angles = rotary((40,), 8, CPU)
    near, far = (module(x, rotary=angles[i : i + 4]) for i in (0, 33))
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
    spread = module(x, rotary=angles[::10])
    assert (near - spread).abs().max() > 1e-3


def test_without_positions_the_order_of_tokens_is_unknown():
    module, x = Transformer(16, 1, **SIZES), torch.randn(2, 6, 16)
    angles = rotary((6,), 8, CPU)
    torch.testing.assert_close(module(x).flip(1), module(x.flip(1)))
    assert (module(x, rotary=angles).flip(1) - module(x.flip(1), rotary=angles)).abs().max() > 1e-3


@pytest.mark.parametrize("dropout", ["attn_dropout", "ff_dropout"])
def test_dropout_drops_in_training_only(dropout):
    module = Transformer(16, 1, dim_context=5, **SIZES, **{dropout: 0.5})
    x = torch.randn(2, 6, 16)
    keys_values = module.keys_values(torch.randn(2, 3, 5))
    assert (module(x, keys_values=keys_values) - module(x, keys_values=keys_values)).abs().max() > 1e-3
    module.eval()
    assert torch.equal(module(x, keys_values=keys_values), module(x, keys_values=keys_values))


def test_attention_dropout_drops_in_self_and_cross_attention():
    x, context = torch.randn(2, 6, 16), torch.randn(2, 3, 5)
    attention = Attention(16, dropout=0.5, **SIZES)
    cross = CrossAttention(16, dim_context=5, dropout=0.5, **SIZES)
    for call in (lambda: attention(x), lambda: cross(x, cross.keys_values(context))):
        assert not torch.equal(call(), call())


def test_depth_0_is_the_identity():
    module, x = Transformer(16, 0, **SIZES), torch.randn(2, 6, 16)
    assert module(x) is x
    assert not list(module.parameters())


def test_initialisation_is_xavier_without_bias():
    module = Transformer(64, 1, **SIZES)
    nn.init.ones_(module.blocks[0].ff[0].bias)
    init_weights(module)
    weight, bias = module.blocks[0].ff[0].weight, module.blocks[0].ff[0].bias
    bound = (6 / (64 + 256)) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound
    assert not bias.any()
    assert all(parameter.abs().sum() > 0 for name, parameter in module.named_parameters() if "weight" in name)


def test_where_there_is_no_transformer_there_is_nothing_to_checkpoint():
    with pytest.raises(ValueError, match="no transformer whose activations to checkpoint in Linear"):
        checkpoint_activations(nn.Linear(2, 2))


def test_causal_attention_takes_no_mask():
    with pytest.raises(ValueError, match="causal"):
        Attention(16, causal=True, **SIZES)(torch.randn(1, 3, 16), mask=torch.ones(1, 3, dtype=torch.bool))


def test_bfloat16_autocast_stays_near():
    module = Transformer(16, 2, dim_context=5, causal=False, **SIZES).eval()
    x, context, mask = torch.randn(2, 6, 16), torch.randn(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    options = {"rotary": rotary((6,), 8, CPU), "context_mask": mask}
    exact = module(x, keys_values=module.keys_values(context), **options)
    with torch.autocast("cpu", torch.bfloat16):
        near = module(x, keys_values=module.keys_values(context), **options)
    assert 0 < (exact - near).abs().max() < 0.1


def test_under_autocast_what_adds_up_is_coarse_only_where_nothing_is_learnt():
    model, seen = Transformer(32, 2, heads=2, dim_head=16), []
    model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    x = torch.randn(2, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
        with torch.no_grad():
            model(x)
    with torch.no_grad():
        model(x)
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
