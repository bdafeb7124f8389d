"""Positions: rotary angles depend on relative positions only; learned tables have one row per coordinate of an axis."""

import pytest
import torch

from phenaki_pytorch.layers.positions import ConcatenatedPositions, LearnedPositions, rotary, rotate

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [(7,), (3, 4), (3, 2, 4)])
def test_angles_have_one_unit_vector_per_position_and_pair(grid):
    n = torch.Size(grid).numel()
    angles = rotary(grid, 16, CPU)
    assert angles.shape == (n, 8, 2) and angles.dtype == torch.float32
    torch.testing.assert_close(angles.norm(dim=-1), torch.ones(n, 8))


def test_each_pair_of_channels_is_rotated_by_its_angle():
    x, (cos, sin) = torch.randn(5, 1, 2), rotary((5,), 2, CPU).squeeze(1).unbind(-1)
    matrices = torch.stack((torch.stack((cos, -sin), dim=-1), torch.stack((sin, cos), dim=-1)), dim=-2)
    torch.testing.assert_close(rotate(x, rotary((5,), 2, CPU)), x @ matrices.mT)


def test_dot_products_depend_on_relative_positions_only():
    q, k = torch.randn(2, 16)
    q, k = (rotate(x.expand(4 * 5, 1, 16), rotary((4, 5), 16, CPU)).view(4, 5, 16) for x in (q, k))
    products = torch.einsum("y x d, v u d -> y x v u", q, k)
    for dy, dx in [(0, 0), (1, 0), (0, 2), (2, 3)]:
        same = torch.stack([products[y, x, y + dy, x + dx] for y in range(4 - dy) for x in range(5 - dx)])
        torch.testing.assert_close(same, same[:1].expand_as(same))
    assert (products[0, 0, 1, 0] - products[0, 0, 0, 0]).abs() > 1e-3
    assert (products[0, 0, 0, 1] - products[0, 0, 1, 0]).abs() > 1e-3
    assert (products[0, 0, 1, 1] - products[1, 1, 0, 0]).abs() > 1e-3  # the direction matters


def test_rotation_keeps_lengths_and_dtype():
    x = torch.randn(2, 12, 3, 16)
    rotated = rotate(x, rotary((3, 4), 16, CPU))
    torch.testing.assert_close(rotated.norm(dim=-1), x.norm(dim=-1))
    assert not torch.allclose(rotated[:, 1:], x[:, 1:])
    assert torch.equal(rotated[:, 0], x[:, 0])
    assert rotate(x.bfloat16(), rotary((3, 4), 16, CPU)).dtype == torch.bfloat16


def test_positions_are_in_raster_order():
    t, h, w = 2, 3, 4
    angles = rotary((t, h, w), 18, CPU)  # 3 pairs per axis
    for position in ((1, 0, 0), (0, 2, 0), (0, 0, 3), (1, 2, 3)):
        n = (position[0] * h + position[1]) * w + position[2]
        axes = [rotary((length,), 6, CPU)[i] for length, i in zip((t, h, w), position)]
        torch.testing.assert_close(angles[n], torch.cat(axes))


def test_pairs_that_are_left_over_are_not_rotated():
    cos, sin = rotary((2, 2, 2), 16, CPU).unbind(-1)  # 8 pairs for 3 axes: 2 each
    assert torch.equal(cos[:, 6:], torch.ones(8, 2))
    assert torch.equal(sin[:, 6:], torch.zeros(8, 2))


@pytest.mark.parametrize("dim_head, message", [(4, "at least 6, got 4"), (7, "even .* got 7")])
def test_heads_too_narrow_for_the_axes_are_refused(dim_head, message):
    with pytest.raises(ValueError, match=message):
        rotary((2, 2, 2), dim_head, CPU)


def test_learned_positions_are_sums_of_one_row_per_axis():
    positions = LearnedPositions(6, (2, 3, 4))
    assert [tuple(table.shape) for table in positions.parameters()] == [(2, 6), (3, 6), (4, 6)]
    table = positions((2, 3, 4)).unflatten(0, (2, 3, 4))
    t, h, w = positions.tables.parameters()
    for position in ((0, 0, 0), (1, 0, 0), (0, 2, 1), (1, 2, 3)):
        torch.testing.assert_close(table[position], t[position[0]] + h[position[1]] + w[position[2]])
    assert len({tuple(row.tolist()) for row in table.flatten(0, 2)}) == 24


def test_smaller_grids_use_the_same_rows():
    positions = LearnedPositions(6, (3, 4, 4))
    whole = positions((3, 4, 4)).unflatten(0, (3, 4, 4))
    part = positions((1, 2, 3)).unflatten(0, (1, 2, 3))
    assert torch.equal(part, whole[:1, :2, :3])


def test_learned_positions_get_gradients():
    positions = LearnedPositions(6, (3, 2, 2))
    positions((2, 2, 2)).sum().backward()
    first = next(positions.parameters())
    assert first.grad[:2].abs().min() > 0
    assert torch.equal(first.grad[2], torch.zeros(6))


@pytest.mark.parametrize("grid", [(4, 2, 2), (3, 2, 3), (3, 2)])
def test_grids_larger_than_the_tables_are_refused(grid):
    with pytest.raises(ValueError, match=r"\(3, 2, 2\), got \(" + ", ".join(map(str, grid))):
        LearnedPositions(6, (3, 2, 2))(grid)


def test_first_and_second_derivatives_of_the_rotation_are_right():
    x, angles = torch.randn(4, 1, 6, dtype=torch.float64, requires_grad=True), rotary((2, 2), 6, CPU)
    assert torch.autograd.gradcheck(lambda x: rotate(x, angles), x)
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, angles), x)
    # A rotation keeps the length, so the gradient of the squared length is 2 x.
    (gradient,) = torch.autograd.grad(rotate(x, angles).square().sum(), x)
    torch.testing.assert_close(gradient, 2 * x)


def test_the_backward_pass_keeps_angles_only():
    x, angles = torch.randn(2, 12, 3, 16, requires_grad=True), rotary((3, 4), 16, CPU)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        rotate(x, angles)
    assert kept and max(kept) * 2 <= angles.numel()


def test_rotation_in_bfloat16_rounds_once():
    x, angles = torch.randn(2, 12, 3, 16).bfloat16(), rotary((3, 4), 16, CPU)
    assert torch.equal(rotate(x, angles), rotate(x.float(), angles).bfloat16())


def test_the_compiled_rotation_is_the_same():
    x, angles = torch.randn(2, 12, 3, 16, requires_grad=True), rotary((3, 4), 16, CPU)
    compiled = torch.compile(rotate, fullgraph=True, backend="eager")(x, angles)
    torch.testing.assert_close(compiled, rotate(x, angles))


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("axes, widths", [((0, 1, 2), [3, 3, 5]), ((1, 2), [5, 6]), ((0,), [11])])
def test_concatenated_positions_have_a_share_of_the_channels_for_each_axis(axes, widths, learned):
    positions, grid = ConcatenatedPositions(11, (2, 3, 4), axes=axes, learned=learned), (2, 3, 4)
    table = positions(grid, CPU).unflatten(0, grid)
    assert positions.widths == widths and table.shape == (*grid, 11)
    for axis, part in zip(axes, table.split(widths, dim=-1)):
        others = [other for other in range(3) if other != axis]
        assert torch.equal(part, part.amin(dim=others, keepdim=True).expand_as(part))
        assert len(part.movedim(axis, 0).flatten(1).unique(dim=0)) == grid[axis]
    assert torch.equal(positions((1, 2, 3), CPU).unflatten(0, (1, 2, 3)), table[:1, :2, :3])
    shapes = [(grid[axis], width) for axis, width in zip(axes, widths)]
    assert [tuple(parameter.shape) for parameter in positions.parameters()] == (shapes if learned else [])


def test_concatenated_tables_start_small_and_get_gradients():
    positions = ConcatenatedPositions(300, (20, 20, 20))
    assert positions((20, 20, 20), CPU).std().item() == pytest.approx(0.01, rel=0.05)
    positions((3, 20, 20), CPU).sum().backward()
    first = next(positions.parameters())
    assert first.grad[:3].abs().min() > 0 and not first.grad[3:].any()


def test_the_tables_are_read_in_a_modules_own_call():
    for positions, call in (
        (ConcatenatedPositions(6, (2, 2, 2)), lambda module: module((2, 2, 2), CPU)),
        (LearnedPositions(6, (2, 2, 2)), lambda module: module((2, 2, 2))),
    ):
        called = []
        for part in positions.modules():
            if any(True for _ in part.parameters(recurse=False)):
                part.register_forward_hook(lambda *_: called.append(1))  # noqa: B023
        call(positions)
        assert called == [1]


def test_sines_have_no_largest_grid_and_begin_with_the_coordinate():
    positions = ConcatenatedPositions(8, (2, 1, 1), axes=(0,), learned=False)
    table = positions((40, 1, 1), CPU)
    torch.testing.assert_close(table[:, 0], torch.arange(40.0).sin())
    torch.testing.assert_close(table[:, 4], torch.arange(40.0).cos())
    with pytest.raises(ValueError, match=r"\(2, 1, 1\), got \(3, 1, 1\)"):
        ConcatenatedPositions(8, (2, 1, 1))((3, 1, 1), CPU)
    with pytest.raises(ValueError, match="3 axes need a width of at least 3, got 2"):
        ConcatenatedPositions(2, (2, 1, 1))
