"""The layers of the VQGAN: the learned frame, skips, blocks, levels and the batch norm; what depends on what."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vqgan_models import clips, tiny_vqgan

from conftest import same_state, state
from phenaki_pytorch.tokenizers.vqgan_layers import BatchNorm, DepthwiseConv3d, LearnedFrame, ResidualBlock


@pytest.fixture
def model():
    """In eval mode."""
    return tiny_vqgan().eval()


def test_the_last_layers_of_the_blocks_start_smaller_with_depth():
    model, first = tiny_vqgan(depth=7, dim=64), 64 * 4  # inputs of the last layer
    bound = first**-0.5  # of a uniform distribution
    for half, blocks in ((model.encoder, 9), (model.decoder, 15)):
        for block in half.bottleneck:
            weight, bias = block.branch[-1].weight, block.branch[-1].bias
            assert 0.95 * bound < weight.abs().max() * blocks**0.5 <= bound
            assert bias.abs().max() > 0.8 * bound
    learned = model.encoder.first_frame.frame
    assert 0.9 < learned.std() * 64**0.5 < 1.1


def test_the_learned_frame_is_resized_over_the_patches_of_the_stem():
    frame = LearnedFrame(3, 16, 16, std=1.0)
    assert frame(16, 16) is frame.frame
    assert frame(24, 8).shape == (3, 1, 24, 8)
    smooth = frame(32, 32)
    assert smooth.std() < 0.9  # interpolated between patches of noise
    frame.frame.data = torch.randn(3, 1, 4, 4).repeat(1, 1, 4, 4)  # the same patch everywhere
    for height, width in ((8, 8), (24, 40)):
        torch.testing.assert_close(frame(height, width), frame.frame[..., :4, :4].repeat(1, 1, height // 4, width // 4))


@torch.no_grad()
def test_the_learned_frame_shares_the_first_time_step_with_the_first_frame(model):
    steps = []
    model.encoder.stem.register_forward_hook(lambda *args: steps.append(args[-1]))
    video, later, first = (clips(1, 3) for _ in range(3))
    later[:, :, 0], first[:, :, 1:] = video[:, :, 0], video[:, :, 1:]
    for clip in (video, later, first):
        model.features(clip)
    model.encoder.first_frame.frame.data.normal_()
    model.features(video)
    assert steps[0].shape == (1, 4, 2, 4, 4)
    changed = [[(each - steps[0])[:, :, t].abs().max() > 0 for t in (0, 1)] for each in steps[1:]]
    assert changed == [[False, True], [True, False], [True, False]]


@pytest.mark.parametrize("size", [(1, 1, 1), (3, 4, 2)])
def test_the_convolution_for_training_is_the_plain_one(size):
    convolution = DepthwiseConv3d(6).double()
    plain = nn.Conv3d(6, 6, 3, padding=1, padding_mode="replicate", groups=6).double()
    plain.load_state_dict(convolution.state_dict())
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    results = []
    for layer in (convolution, plain):
        out = layer(x)
        results.append([out, *torch.autograd.grad(out.sin().sum(), (x, *layer.parameters()))])
    torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.testing.assert_close(convolution(x), results[1][0])


@torch.no_grad()
def test_it_is_not_causal_later_frames_change_the_first_time_step(model):
    assert not model.causal
    video = clips(1, 5)
    other = video.clone()
    other[:, :, 3:] = torch.rand_like(other[:, :, 3:])
    features = model.features(video)
    torch.testing.assert_close(model.features(video.clone()), features)  # no noise of its own
    assert (model.features(other) - features)[:, 0].abs().max() > 1e-5
    assert (model.features(video[:, :, :3]) - features[:, :2]).abs().max() > 1e-5
    decoded = model.decode_features(features)
    later = features.clone()
    later[:, 2] = torch.randn_like(later[:, 2])
    assert (model.decode_features(later) - decoded)[:, :, 0].abs().max() > 1e-6


def called_with(half, call):
    """The blocks of a half in their order, each with what it was called with."""
    calls, hooks = [], []
    for part in half.modules():
        if isinstance(part, ResidualBlock):
            hooks.append(part.register_forward_pre_hook(lambda _, inputs: calls.append(inputs)))
    call()
    for hook in hooks:
        hook.remove()
    return calls


def nearest(x, factors):
    """Nearest neighbours, by indices."""
    for axis, factor in zip((2, 3, 4), factors):
        size = int(x.shape[axis] * factor)
        x = x.index_select(axis, (torch.arange(size) / factor).long())
    return x


@torch.no_grad()
def test_the_skip_of_an_encoder_block_is_the_input_of_the_block_before(model):
    calls = called_with(model.encoder, lambda: model.features(clips()))
    assert [len(inputs) for inputs in calls] == [1, 2, 1]  # bottlenecks have none
    (first,), (x, skip), _ = calls
    assert torch.equal(skip, nearest(first, (1, 0.5, 0.5)))
    shuffled = F.pixel_unshuffle(model.encoder.fine(first).transpose(1, 2), 2).transpose(1, 2)
    assert torch.equal(x, shuffled)
    assert not torch.equal(skip, nearest(model.encoder.fine(first), (1, 0.5, 0.5)))  # not its output


@torch.no_grad()
def test_the_skip_of_a_decoder_block_is_the_input_of_the_block_before(model):
    calls = called_with(model.decoder, lambda: model.decode_features(torch.randn(1, 3, 2, 2, 8)))
    assert [len(inputs) for inputs in calls] == [1, *[2] * 8]  # the bottleneck has none
    blocks = calls[1:]
    assert blocks[0][1] is None
    for i in range(1, 8):
        before, skip = blocks[i - 1][0], blocks[i][1]
        if i == 2:
            before = nearest(before, (2, 2, 2))[:, :, 1:]
        elif i in (4, 6):
            before = nearest(before, (1, 2, 2))
        assert torch.equal(skip, before), i
        assert skip.shape[2:] == blocks[i][0].shape[2:]


@torch.no_grad()
def test_frames_are_the_sigmoid_of_the_summed_pixels_of_all_levels(model):
    features, pixels = torch.randn(1, 2, 2, 2, 8), []
    for level in model.decoder.levels:
        level.to_pixels.register_forward_hook(lambda *args: pixels.append(args[-1]))
    decoded = model.decode_features(features)
    assert [tuple(each.shape[2:]) for each in pixels] == [(3, 4, 4), (3, 8, 8), (3, 16, 16), (3, 16, 16)]
    whole = sum(nearest(each, (1, 16 / each.shape[3], 16 / each.shape[3])) for each in pixels)
    torch.testing.assert_close(decoded, whole.sigmoid())
    assert decoded.min() > 0 and decoded.max() < 1
    for level in model.decoder.levels:
        level.to_pixels.weight.data.zero_()
        level.to_pixels.bias.data.fill_(0.25)
    torch.testing.assert_close(model.decode_features(features), torch.ones(1, 3, 3, 16, 16).sigmoid())


@torch.no_grad()
def test_a_level_that_convolves_before_upsampling_is_the_same_as_after_it(model):
    level, x = model.decoder.levels[0], torch.randn(1, 16, 2, 2, 2)
    after, skip, _ = level(x, None)
    between = level.first(x)
    expected = level.to_next(nearest(level.second(between, x), (2, 2, 2)))[:, :, 1:]
    torch.testing.assert_close(after, expected)
    assert torch.equal(skip, nearest(between, (2, 2, 2))[:, :, 1:])


@torch.no_grad()
def test_blocks_see_their_neighbours_and_repeat_the_border():
    block = ResidualBlock(4, scale=1.0)
    constant = torch.randn(1, 4, 1, 1, 1).expand(1, 4, 3, 4, 4)
    out = block(constant)
    torch.testing.assert_close(out, out[:, :, :1, :1, :1].expand_as(out))
    x = torch.randn(1, 4, 5, 5, 5)
    other = x.clone()
    other[:, :, 2, 2, 2] += 1
    changed = (block(other) - block(x)).abs().amax(dim=(0, 1)) > 1e-7
    expected = torch.zeros(5, 5, 5, dtype=torch.bool)
    expected[1:4, 1:4, 1:4] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("training", [True, False])
def test_with_gradients_the_norm_is_pytorchs(training):
    ours, theirs = BatchNorm(4).train(training), nn.BatchNorm3d(4).train(training)
    for _ in range(2):
        x = 3 * torch.randn(2, 4, 3, 2, 2) + 1
        assert torch.equal(ours(x), theirs(x))
    assert same_state(state(ours), state(theirs))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs.eval()(x))


@pytest.mark.usefixtures("einops_as_operations")
def test_encoder_and_decoder_compile_without_a_graph_break():
    """In a training step, so that the batch norm's statistics are those of the batch."""
    model, video, graphs = tiny_vqgan(depth=0), clips(1, 3), []
    twin = copy.deepcopy(model)

    def keep(graph, inputs):  # runs without a C++ compiler
        graphs.append(graph)
        return graph.forward

    def whole(video):
        return twin.decode_features(twin.features(video))

    torch._dynamo.reset()
    expected = model.decode_features(model.features(video))
    decoded = torch.compile(whole, backend=keep, fullgraph=True)(video)
    torch.testing.assert_close(decoded, expected)
    decoded.square().sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    assert len(graphs) == 1
    assert same_state(state(twin), state(model))
