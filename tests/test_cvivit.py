"""C-ViViT: causal in time both ways and at every size, and a loss that padding does not enter."""

import copy

import pytest
import torch

from conftest import QUANTIZERS, state, tiny_cvivit, train
from phenaki_pytorch import presets
from phenaki_pytorch.attention import Block, checkpoint_activations
from phenaki_pytorch.checks import real_tokens

SIZES = {
    "square": {},
    "rectangular": {"image_size": (16, 24), "patch_size": (4, 8)},
    "pairs as lists": {"image_size": [24, 8], "patch_size": [8, 4], "temporal_depth": 2},
    "tubelets of 1": {"temporal_patch_size": 1, "spatial_depth": 2},
    "tubelets of 3": {"temporal_patch_size": 3, "channels": 1},
    "fsq": {"quantizer": "fsq", "quantizer_kwargs": QUANTIZERS["fsq"]},
}


def videos(model, steps, batch=2):
    """A batch of noise of so many time steps."""
    return torch.rand(batch, model.channels, model.num_frames(steps), *model.image_size)


def nearest_are_close(model, features):
    """Where rounding may decide which code is nearest, bool (b, t, h, w)."""
    ids = [model.quantizer.ids((features + noise).flatten(1, 3)) for noise in (0, 1e-4, -1e-4)]
    noisy = [model.quantizer.ids((features + 1e-4 * torch.randn_like(features)).flatten(1, 3)) for _ in range(8)]
    differ = torch.stack([each != ids[0] for each in (*ids, *noisy)]).any(dim=0)
    return differ.reshape(features.shape[:4])


@pytest.fixture(params=[(name, steps) for name in SIZES for steps in (0, 5)], ids=lambda p: f"{p[0]}, {p[1]} steps")
def model(request):
    """A tokenizer of each size, as it is built and after some training."""
    name, steps = request.param
    module = tiny_cvivit(**SIZES[name])
    clips = videos(module, 4)
    train(module, lambda: module(clips), steps)
    return module


# causality


@pytest.mark.parametrize("batch, steps", [(1, 4), (3, 3)])
def test_what_comes_later_changes_nothing_before(model, batch, steps):
    clips = videos(model, steps, batch)
    with torch.no_grad():
        features, ids = model.features(clips), model.encode(clips)
        sure = ~nearest_are_close(model, features)
        assert sure.float().mean() > 0.8
        decoded = model.decode(ids)
        assert decoded.shape == clips.shape
        for t in range(1, steps):
            prefix = clips[:, :, : model.num_frames(t)]
            torch.testing.assert_close(model.features(prefix), features[:, :t], atol=1e-5, rtol=0)
            assert torch.equal(model.encode(prefix)[sure[:, :t]], ids[:, :t][sure[:, :t]])
            start = decoded[:, :, : model.num_frames(t)]
            torch.testing.assert_close(model.decode(ids[:, :t]), start, atol=1e-5, rtol=0)


def test_images_are_first_frames(model):
    clips = videos(model, 3)
    images = clips[:, :, 0]
    torch.testing.assert_close(model.features(images), model.features(clips)[:, :1], atol=1e-5, rtol=0)
    sure = ~nearest_are_close(model, model.features(images))
    assert model.encode(images).shape[1] == 1
    assert torch.equal(model.encode(images)[sure], model.encode(clips)[:, :1][sure])
    assert torch.equal(model.encode(images), model.encode(images[:, :, None]))
    assert model.reconstruct(images).shape == images.shape
    assert model.reconstruct(clips).shape == clips.shape


def test_a_changed_frame_changes_its_time_step_and_what_follows(model):
    clips = videos(model, 4)
    pt = model.temporal_patch_size
    for frame in range(clips.shape[2]):
        other = clips.clone()
        other[:, :, frame] = torch.rand_like(other[:, :, frame])
        step = 0 if frame == 0 else 1 + (frame - 1) // pt
        with torch.no_grad():
            difference = (model.features(clips) - model.features(other)).abs().amax(dim=(0, 2, 3, 4))
        assert difference[:step].le(1e-5).all()
        assert difference[step:].gt(1e-4).all()


def test_a_changed_id_changes_its_frames_and_what_follows(model):
    ids = model.encode(videos(model, 4))
    for step in range(4):
        other = ids.clone()
        other[:, step] = (other[:, step] + 7) % model.codebook_size
        with torch.no_grad():
            difference = (model.decode(ids) - model.decode(other)).abs().amax(dim=(0, 1, 3, 4))
        first = 0 if step == 0 else model.num_frames(step)
        assert difference[:first].le(1e-5).all()
        assert difference[first:].gt(1e-5).all()


def test_other_sizes_than_the_one_it_was_built_for(model):
    ph, pw = model.patch_size
    for height, width in ((ph, pw), (3 * ph, 5 * pw)):
        clips = torch.rand(1, model.channels, model.num_frames(2), height, width)
        ids = model.encode(clips)
        assert tuple(ids.shape[1:]) == model.grid(clips.shape[2], height, width) == (2, height // ph, width // pw)
        assert model.decode(ids).shape == clips.shape
        assert torch.isfinite(model(clips))


def test_places_of_one_frame_see_each_other():
    model = tiny_cvivit(image_size=32)
    clip = torch.rand(1, 3, 3, 32, 32)
    other = clip.clone()
    other[..., :8, :8] = 0
    assert (model.features(clip) - model.features(other)).abs().amax(dim=(0, 4)).gt(1e-5).all()


# sizes


def test_grid_and_num_frames_are_inverse():
    model = tiny_cvivit(temporal_patch_size=3, image_size=(16, 32))
    assert model.grid(1) == (1, 2, 4)
    assert model.grid(10, 8, 24) == (4, 1, 3)
    assert [model.num_frames(t) for t in (1, 2, 5)] == [1, 4, 13]
    assert all(model.grid(model.num_frames(t))[0] == t for t in range(1, 9))


def test_eleven_frames_of_128_are_1536_ids():
    with torch.device("meta"):
        model = presets.cvivit()
        features = model.features(torch.rand(1, 3, 11, 128, 128))
    assert features.shape == (1, 6, 16, 16, 32)
    assert model.grid(11) == (6, 16, 16)


def test_the_baseline_of_single_frames_knows_of_one_frame_at_a_time():
    with torch.device("meta"):
        model = presets.vit_per_frame()
        assert model.features(torch.rand(1, 3, 10, 128, 128)).shape[1:4].numel() == 2560
    small = tiny_cvivit(temporal_patch_size=1, temporal_depth=0)
    clip = torch.rand(2, 3, 5, 16, 16)
    other = clip.clone()
    other[:, :, 2] = torch.rand(2, 3, 16, 16)
    changed = (small.features(clip) - small.features(other)).abs().amax(dim=(0, 2, 3, 4)) > 1e-6
    assert changed.tolist() == [False, False, True, False, False]
    ids = small.encode(clip)
    for frame in range(1, 5):  # all but the first have their embedding in common
        again = small.encode(torch.cat((clip[:, :, :1], clip[:, :, frame : frame + 1]), dim=2))
        assert torch.equal(again[:, 1], ids[:, frame])


# loss


def test_the_parts_of_the_loss_make_the_loss():
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    twin = copy.deepcopy(model)
    losses = model.losses(clip)
    assert losses.total.shape == ()
    torch.testing.assert_close(losses.total, losses.pixel + losses.quantizer)
    assert losses.quantizer > 0
    assert torch.equal(twin(clip), losses.total)
    model.eval()
    decoded = model.decode(model.encode(clip))
    torch.testing.assert_close(model.losses(clip).pixel, (decoded - clip).square().mean())
    assert torch.equal(model.reconstruct(clip), decoded.clamp(0, 1))


@pytest.mark.parametrize("padding", [torch.zeros_like, torch.rand_like])
def test_padding_changes_neither_loss_nor_gradients_nor_codebook(padding):
    clips = torch.rand(2, 3, 7, 16, 16)
    mask = torch.arange(7) < torch.tensor([[7], [3]])

    def outcome(clips):
        torch.manual_seed(0)
        model = tiny_cvivit()
        loss = model(clips, mask)
        loss.backward()
        return loss, {name: value.grad for name, value in model.named_parameters()}, state(model)

    other = clips.clone()
    other[1, :, 3:] = padding(other[1, :, 3:])
    (loss, gradients, states), (loss_2, gradients_2, states_2) = outcome(clips), outcome(other)
    torch.testing.assert_close(loss, loss_2)
    torch.testing.assert_close(gradients, gradients_2)
    torch.testing.assert_close(states, states_2)
    other = clips.clone()
    other[1, :, 2] = padding(other[1, :, 2])  # a real frame
    assert (outcome(other)[0] - loss).abs() > 1e-5


def test_a_padded_batch_has_the_loss_of_its_real_frames():
    model = tiny_cvivit().eval()  # commitment apart, which eval mode leaves out
    clips = torch.rand(2, 3, 7, 16, 16)
    mask = torch.arange(7) < torch.tensor([[7], [1]])
    long, image = model(clips[:1]), model(clips[1:, :, 0])
    torch.testing.assert_close(model(clips, mask), (7 * long + image) / 8)
    torch.testing.assert_close(model(clips, torch.ones_like(mask)), model(clips))


def test_real_tokens_are_those_of_real_frames():
    mask = torch.arange(7) < torch.tensor([[7], [3], [1]])
    tokens = real_tokens(mask, (3, 4, 2, 2), 2)
    assert tokens.shape == (3, 4, 2, 2)
    assert tokens[:, :, 0, 0].tolist() == [[True] * 4, [True, True, False, False], [True, False, False, False]]
    assert torch.equal(tokens, tokens[:, :, :1, :1].expand_as(tokens))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_it_learns_with_gradients_everywhere(quantizer):
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer])
    clips = torch.rand(2, 3, 1, 1, 1).expand(2, 3, 5, 16, 16) + 0.05 * torch.rand(2, 3, 5, 16, 16)
    model(clips).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    before = model.losses(clips).pixel.item()
    train(model, lambda: model(clips), 40)
    assert model.losses(clips).pixel < 0.5 * before


def test_its_state_is_its_own():
    parts = {name.split(".")[0] for name in tiny_cvivit().state_dict()}
    assert parts == {"encoder", "decoder", "quantizer", "longest_trained"}


# how it is run


def test_encoding_asks_for_no_gradient_and_changes_nothing():
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    before = state(model)
    ids = model.encode(clip.requires_grad_())
    assert ids.dtype == torch.int64 and not ids.requires_grad and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.features(clip).requires_grad  # the positive control
    assert not model.reconstruct(clip).requires_grad


def test_copies_agree_and_go_their_own_way():
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    twin = copy.deepcopy(model)
    assert torch.equal(model.encode(clip), twin.encode(clip))
    before = state(model)
    train(twin, lambda: twin(clip), 2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(model.features(clip), twin.features(clip))


def test_bfloat16_autocast_trains_and_stays_near():
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    exact = copy.deepcopy(model)(clip)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(clip)
        assert model.encode(clip).shape == (2, 3, 2, 2)
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0, rtol=0.1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_follows_a_cast(dtype):
    model, clip = tiny_cvivit().to(dtype), torch.rand(2, 3, 5, 16, 16)
    assert model.decode(model.encode(clip)).dtype == dtype
    model(clip.to(dtype)).backward()
    assert model.encoder.embed_first.weight.grad.dtype == dtype


def test_compiled_it_is_the_same():
    backend = "aot_eager"
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    twin = copy.deepcopy(model)
    ids, loss = model.encode(clip), model(clip)
    loss.backward()
    compiled = torch.compile(twin, backend=backend)(clip)
    compiled.backward()
    torch.testing.assert_close(compiled, loss)
    torch.testing.assert_close(
        {name: value.grad for name, value in twin.named_parameters()},
        {name: value.grad for name, value in model.named_parameters()},
    )
    twin = tiny_cvivit()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(torch.compile(model.encode, backend=backend)(clip), model.encode(clip))
    torch.testing.assert_close(torch.compile(model.decode, backend=backend)(ids), model.decode(ids))


def graph_breaks(call, given):
    torch._dynamo.reset()
    return torch._dynamo.explain(call)(given).graph_break_count


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_at_most_the_quantizer_breaks_the_compiled_graph(quantizer):
    model, clip = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer]), torch.rand(2, 3, 5, 16, 16)
    ids = model.encode(clip)
    assert all(graph_breaks(*call) <= 1 for call in ((model, clip), (model.encode, clip), (model.decode, ids)))


def test_encoder_and_decoder_compile_whole():
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    ids = model.encode(clip)
    assert graph_breaks(model.features, clip) == 0
    assert graph_breaks(model.decode_features, model.code_features(ids)) == 0


def test_checkpointed_layers_have_the_same_gradients_and_move_the_codebook_once(monkeypatch):
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    twin = copy.deepcopy(model)
    checkpoint_activations(twin)
    calls = []
    forward = Block.forward
    monkeypatch.setattr(Block, "forward", lambda block, *args, **kw: calls.append(block) or forward(block, *args, **kw))
    model(clip).backward()
    assert len(calls) == 4
    twin(clip).backward()
    assert len(calls) == 4 + 2 * 4
    torch.testing.assert_close(
        {name: value.grad for name, value in model.named_parameters()},
        {name: value.grad for name, value in twin.named_parameters()},
    )
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    checkpoint_activations(twin, on=False)
    twin(clip).backward()
    assert len(calls) == 4 + 2 * 4 + 4
