"""Frames as a condition: the paper's sizes, one vector per frame or one token per position, each sample on its own."""

from itertools import pairwise

import pytest
import torch
from einops import rearrange
from torch import nn

from conftest import modes, same_state, state, train
from phenaki_pytorch.conditions.frames import FrameEncoder, FrameMapEncoder

TINY = {"dims": (4, 6, 8, 6), "depths": (1, 2, 1, 1)}


def tiny_vectors(**changes):
    return FrameEncoder(**{**TINY, **changes})


def tiny_map(**changes):
    return FrameMapEncoder(**{**TINY, "image_size": 16, **changes})


BUILDERS = pytest.mark.parametrize("build", [tiny_vectors, tiny_map])


def clip(b=3, f=1, size=16):
    return torch.rand(b, 3, f, size, size)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_vectors_network_has_the_parameters_of_resnet34_without_its_classifier():
    with torch.device("meta"):
        encoder = FrameEncoder()
    assert count(encoder) == 21_797_672 - 1_000 * 513 == 21_284_672
    assert encoder.dim == 512


def test_the_map_network_has_the_blocks_of_resnet34_in_3d():
    with torch.device("meta"):
        encoder = FrameMapEncoder(image_size=64)
    dims, depths = (64, 128, 256, 240), (3, 4, 6, 3)
    expected = 27 * 3 * 64 + 2 * 64
    for dim, depth in zip(dims, depths):
        expected += (2 * depth - 1) * 27 * dim**2 + 2 * depth * 2 * dim
    for before, dim in pairwise((64, *dims)):
        expected += 27 * before * dim + (0 if before == dim else before * dim + 2 * dim)
    expected += 80 * (1 + 16 + 16)  # positions
    assert count(encoder) == expected
    assert encoder.dim == 240 and encoder.grid == (1, 16, 16)


@pytest.mark.parametrize("size", [64, 17, 1])
def test_a_frame_becomes_a_vector_whatever_its_size(size):
    encoder = tiny_vectors().eval()
    assert encoder(torch.rand(2, 3, size, size)).shape == (2, encoder.dim) == (2, 6)


@pytest.mark.parametrize(("height", "width", "grid"), [(16, 16, (4, 4)), (15, 9, (4, 3)), (1, 1, (1, 1))])
def test_the_map_has_a_token_for_every_4_pixels_of_a_side(height, width, grid):
    encoder = tiny_map(num_frames=2)
    assert encoder.grid == (2, 4, 4)
    assert encoder(torch.rand(2, 3, 2, height, width)).shape == (2, 2 * grid[0] * grid[1], encoder.dim)


@BUILDERS
def test_an_image_is_a_clip_of_one_frame(build):
    encoder, frames = build().eval(), clip()
    assert torch.equal(encoder(frames), encoder(frames[:, :, 0]))


@BUILDERS
@pytest.mark.parametrize("num_frames", [1, 2])
def test_gradients_reach_every_parameter_and_the_frames(build, num_frames):
    encoder, frames = build(num_frames=num_frames), clip(f=num_frames).requires_grad_()
    encoder(frames).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert frames.grad.abs().sum(dim=(1, 3, 4)).min() > 0


@BUILDERS
def test_a_sample_does_not_depend_on_the_others_in_eval_mode(build):
    encoder, frames = build(), clip()
    encoder(frames)  # moves the averages of batch norm
    encoder.eval()
    together = encoder(frames)
    torch.testing.assert_close(together, torch.cat([encoder(frame[None]) for frame in frames]), rtol=1e-4, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3


@BUILDERS
def test_eval_mode_moves_no_buffer(build):
    encoder = build().eval()
    before = state(encoder)
    encoder(clip())
    assert same_state(before, state(encoder))


def test_batch_norm_follows_the_frames_in_training_mode_only():
    encoder, frames = tiny_vectors(), clip()
    before = state(encoder)
    alone, together = encoder(frames[:2])[0], encoder(frames)[0]
    assert not same_state(before, state(encoder))
    assert (alone - together).abs().max() > 1e-4


def test_vectors_of_several_frames_are_concatenated_in_order():
    encoder, single = tiny_vectors(num_frames=3).eval(), tiny_vectors().eval()
    single.load_state_dict(encoder.state_dict())
    frames = clip(f=3)
    assert encoder.dim == 18
    expected = torch.cat([single(frames[:, :, f]) for f in range(3)], dim=-1)
    torch.testing.assert_close(encoder(frames), expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_the_map_are_in_raster_order():
    encoder = tiny_map(image_size=(8, 16), num_frames=8, dims=(6,), depths=(1,)).eval()
    frames = torch.rand(1, 3, 8, 8, 16)
    changed = frames.clone()
    changed[:, :, 6, 1, 12] = 1 - changed[:, :, 6, 1, 12]  # reaches 3 positions to each side, by 3 convolutions
    difference = (encoder(changed) - encoder(frames)).abs().sum(dim=-1)
    reached = rearrange(difference, "1 (t h w) -> t h w", t=8, h=8, w=16).nonzero()
    assert reached.amin(dim=0).tolist() == [3, 0, 9] and reached.amax(dim=0).tolist() == [7, 4, 15]


def test_the_positions_tell_the_tokens_of_a_plain_frame_apart():
    encoder, frames = tiny_map(image_size=64).eval(), torch.full((1, 3, 64, 64), 0.3)
    inner = rearrange(encoder(frames)[0], "(h w) d -> h w d", h=16, w=16)
    assert (inner[8, 8] - inner[8, 9]).abs().max() > 1e-3
    for table in encoder.positions.parameters():
        nn.init.zeros_(table)
    inner = rearrange(encoder(frames)[0], "(h w) d -> h w d", h=16, w=16)
    torch.testing.assert_close(inner[8, 8], inner[8, 9], rtol=1e-4, atol=1e-5)


@BUILDERS
def test_it_learns_to_tell_frames_apart(build):
    encoder, frames, wanted = build(), clip(b=4), torch.randn(4, 6)

    def loss():
        output = encoder(frames)
        return (output.flatten(1, -2).mean(dim=1) if output.ndim == 3 else output).sub(wanted).square().mean()

    with torch.no_grad():
        first = loss().item()
    assert train(encoder, loss, 120, lr=1e-2)[-1] < 0.5 * first


@BUILDERS
def test_saved_and_loaded_it_is_the_same(build, tmp_path):
    encoder = build()
    encoder(clip())
    encoder.eval().save_pretrained(tmp_path)
    loaded = type(encoder).from_pretrained(tmp_path).eval()
    assert same_state(state(encoder), state(loaded))
    frames = clip()
    assert torch.equal(encoder(frames), loaded(frames))
    assert loaded.config == encoder.config and loaded.dim == encoder.dim


@BUILDERS
def test_frames_may_have_another_dtype_than_the_weights(build):
    encoder, frames = build().eval(), clip()
    torch.testing.assert_close(encoder(frames.double()), encoder(frames))
    half = encoder.bfloat16()
    assert half(frames).dtype == torch.bfloat16


@BUILDERS
def test_it_works_under_autocast(build):
    encoder, frames = build().eval(), clip()
    expected = encoder(frames)
    with torch.autocast("cpu", torch.bfloat16):
        got = encoder(frames)
    torch.testing.assert_close(got.float(), expected, rtol=0.1, atol=0.05 * expected.abs().max().item())


@BUILDERS
def test_calls_do_not_change_modes(build):
    encoder = build()
    before = modes(encoder)
    encoder(clip())
    assert modes(encoder) == before


@BUILDERS
@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 2, 16, 16), (2, 3, 1, 0, 16), (0, 3, 16, 16), (2, 3, 1, 1, 16, 16)]
)
def test_other_shapes_are_refused(build, shape):
    with pytest.raises(ValueError, match=r"\(b, 3, 1, h, w\).*images") as error:
        build()(torch.rand(shape))
    assert str(shape) in str(error.value)


@BUILDERS
def test_an_image_is_refused_where_several_frames_are_expected(build):
    with pytest.raises(ValueError, match=r"\(b, 3, 2, h, w\), none empty, got \(3, 3, 16, 16\)"):
        build(num_frames=2)(torch.rand(3, 3, 16, 16))


@BUILDERS
def test_pixels_of_another_range_or_kind_are_refused(build):
    encoder, frames = build(), clip()
    with pytest.raises(ValueError, match=r"frames must be finite and in \[0, 1\], got values from"):
        encoder(255 * frames)
    frames[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"frames must be finite"):
        encoder(frames)
    with pytest.raises(TypeError, match=r"floating point in \[0, 1\], got torch\.uint8"):
        encoder(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_frames_larger_than_the_positions_are_refused():
    with pytest.raises(ValueError, match=r"at most \(16, 16\), got \(16, 17\)"):
        tiny_map()(torch.rand(1, 3, 16, 17))


def test_a_single_small_frame_is_refused_in_training_mode():
    encoder = tiny_vectors()
    with pytest.raises(ValueError, match="more than one frame of 32 pixels or fewer, got one"):
        encoder(clip(b=1, size=32))
    for frames in (clip(b=2, size=32), clip(b=1, size=33)):
        assert encoder(frames).isfinite().all()
    assert encoder.eval()(clip(b=1, size=32)).isfinite().all()


@BUILDERS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": (4, 6)}, r"one number per group, got \[4, 6\] and \[1, 2, 1, 1\]"),
        ({"dims": (), "depths": ()}, r"one number per group, got \[\] and \[\]"),
        ({"depths": (1, 0, 1, 1)}, "depths must be at least 1, got 0"),
        ({"dims": (4, -6, 8, 6)}, "dims must be at least 1, got -6"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)


def test_kinds_and_sizes_of_images_are_refused():
    with pytest.raises(TypeError, match=r"dims.*4\.5"):
        tiny_vectors(dims=(4, 4.5, 8, 6))
    with pytest.raises(ValueError, match="image_size must be at least 1, got 0"):
        tiny_map(image_size=0)


@BUILDERS
def test_it_compiles_in_one_graph(build):
    torch.compiler.reset()
    encoder, frames = build(dims=(4, 6), depths=(1, 1)).eval(), clip()
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(frames), encoder(frames))
