"""Axial attention: each token sees the three lines through it, as in plain attention along each."""

import pytest
import torch

from phenaki_pytorch.layers.axial_attention import AxialAttention

DIM, HEADS = 8, 2


@pytest.fixture
def layer():
    module = AxialAttention(DIM, heads=HEADS)
    for attention in module.children():
        torch.nn.init.normal_(attention.to_out.bias)
    return module


def plain(attention, line):
    """Attention by its formula over one line of tokens, (n, d) -> (n, d)."""
    width = DIM // HEADS
    q, k, v = (line @ attention.to_qkv.weight.T).split(DIM, dim=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        weights = (q[:, part] @ k[:, part].T / width**0.5).softmax(dim=-1)
        heads.append(weights @ v[:, part])
    return torch.cat(heads, dim=-1) @ attention.to_out.weight.T + attention.to_out.bias


def test_it_is_the_sum_of_plain_attention_along_the_three_lines_of_each_token(layer):
    x = torch.randn(2, 2, 3, 4, DIM)
    got = layer(x)
    for b, t, h, w in torch.cartesian_prod(*map(torch.arange, (2, 2, 3, 4))).tolist():
        time = plain(layer.along_time, x[b, :, h, w])[t]
        height = plain(layer.along_height, x[b, t, :, w])[h]
        width = plain(layer.along_width, x[b, t, h, :])[w]
        torch.testing.assert_close(got[b, t, h, w], time + height + width, atol=1e-5, rtol=1e-5)


def test_on_one_line_it_is_full_attention_and_two_maps_of_each_token(layer):
    x = torch.randn(1, 1, 1, 7, DIM)
    line = x[0, 0, 0]

    def alone(attention):
        """A token that sees itself only gets its own value."""
        values = line @ attention.to_qkv.weight[2 * DIM :].T
        return values @ attention.to_out.weight.T + attention.to_out.bias

    expected = plain(layer.along_width, line) + alone(layer.along_time) + alone(layer.along_height)
    torch.testing.assert_close(layer(x)[0, 0, 0], expected, atol=1e-5, rtol=1e-5)
    assert (plain(layer.along_width, line) - alone(layer.along_width)).abs().max() > 0.01


def test_a_change_moves_its_three_lines_only(layer):
    x = torch.randn(1, 3, 4, 5, DIM)
    other = x.clone()
    other[0, 1, 2, 3] += torch.randn(DIM)
    moved = (layer(x) - layer(other)).abs().amax(dim=-1)[0]
    lines = torch.zeros(3, 4, 5, dtype=torch.bool)
    lines[:, 2, 3] = lines[1, :, 3] = lines[1, 2, :] = True
    assert moved[lines].min() > 1e-4
    assert moved[~lines].max() == 0


def test_its_parameters_are_three_attentions_with_biases_at_the_output_only():
    with torch.device("meta"):
        layer = AxialAttention(240, heads=2)
    assert sum(part.numel() for part in layer.parameters()) == 3 * (4 * 240 * 240 + 240)


def test_the_initial_weights_have_the_width_of_the_released_code():
    layer = AxialAttention(64, heads=2)
    for attention in layer.children():
        for part in (attention.to_qkv, attention.to_out):
            assert abs(part.weight.std() * 64**0.5 - 1) < 0.05
        assert attention.to_out.bias.abs().max() == 0


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads must divide dim, got 3 heads and dim 8"):
        AxialAttention(8, heads=3)
