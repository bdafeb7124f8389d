"""Gain and bias from a condition, at each step for its own tokens; shift, scale and gate of a branch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from phenaki_pytorch.layers.modulation import ConditionalLayerNorm, Modulation, ModulationTable, ToModulation


def test_without_a_condition_it_is_a_layer_norm():
    module, plain, x = ConditionalLayerNorm(6), nn.LayerNorm(6), torch.randn(2, 5, 6)
    nn.init.normal_(module.norm.weight), nn.init.normal_(module.norm.bias)
    plain.load_state_dict(module.norm.state_dict())
    assert torch.equal(module(x), plain(x))
    assert sum(parameter.numel() for parameter in module.parameters()) == 2 * 6


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_each_step_of_the_condition_shapes_its_own_tokens(steps):
    module, x, condition = ConditionalLayerNorm(4, 3), torch.randn(2, 6, 4), torch.randn(2, steps, 3)
    out = module(x, condition)
    gain, bias = (weight @ condition.mT for weight in module.to_gain_bias.weight.chunk(2))
    for token in range(6):
        step = token // (6 // steps)
        expected = F.layer_norm(x[:, token], (4,)) * (1 + gain[:, :, step]) + bias[:, :, step]
        torch.testing.assert_close(out[:, token], expected)
    assert sum(parameter.numel() for parameter in module.parameters()) == 2 * 4 * 3
    other = condition.clone()
    other[0, -1] += 1
    changed = (module(x, other) - out).abs().amax(dim=-1) > 0
    assert changed[0].tolist() == [token // (6 // steps) == steps - 1 for token in range(6)] and not changed[1].any()


def test_a_condition_of_zeros_leaves_the_norm_alone():
    x = torch.randn(2, 6, 4)
    torch.testing.assert_close(ConditionalLayerNorm(4, 3)(x, torch.zeros(2, 1, 3)), F.layer_norm(x, (4,)))


@pytest.mark.parametrize("dim_condition", [None, 3])
def test_constant_rows_have_finite_values_and_gradients(dim_condition):
    module, x = ConditionalLayerNorm(4, dim_condition), torch.full((1, 2, 4), 7.0, requires_grad=True)
    out = module(x, None if dim_condition is None else torch.randn(1, 1, 3))
    out.square().sum().backward()
    assert out.isfinite().all() and x.grad.isfinite().all()
    if dim_condition is None:
        assert not out.any()


def test_each_vector_is_linear_in_the_silu_of_the_condition():
    module, condition = ToModulation(4, 3), torch.randn(2, 5, 4)
    out = module(condition)
    assert out.shape == (2, 5, 3, 4)
    for k in range(3):
        rows = slice(4 * k, 4 * k + 4)
        expected = F.linear(F.silu(condition), module.linear.weight[rows], module.linear.bias[rows])
        torch.testing.assert_close(out[:, :, k], expected)


@pytest.mark.parametrize("vectors", [3, 1])
def test_a_table_adds_its_vectors_which_start_at_0(vectors):
    module, shared = ModulationTable(4, 3), torch.randn(2, 5, vectors, 4)
    assert torch.equal(module(shared), shared.expand(2, 5, 3, 4))
    nn.init.normal_(module.table)
    torch.testing.assert_close(module(shared) - shared, module.table.expand(2, 5, 3, 4))
    module(shared).sum().backward()
    assert torch.equal(module.table.grad, torch.full((3, 4), 10.0))


def test_modulation_by_zeros_is_the_identity():
    x, change, zeros = torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.zeros(2, 1, 4)
    modulation = Modulation(zeros, zeros, zeros)
    assert torch.equal(modulation.modulate(x), x)
    assert torch.equal(modulation.add(x, change), x)


def test_a_branch_without_modulation_reads_the_norm_and_is_added():
    x, change = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    assert torch.equal(Modulation().modulate(x), x)
    assert torch.equal(Modulation().add(x, change), x + change)


def test_shift_scale_and_gate_act_as_in_the_equation():
    x, change = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    shift, scale, gate = torch.randn(3, 2, 1, 4).unbind()
    modulation = Modulation(shift, scale, gate)
    torch.testing.assert_close(modulation.modulate(x), shift + (1 + scale) * x)
    torch.testing.assert_close(modulation.add(x, change), x + gate * change)
