"""C-ViViT: causal in time in both directions and at every size; its loss, state and precision."""

import copy

import pytest
import torch
from torch import nn

from conftest import QUANTIZERS, same_state, state, tiny_cvivit, train
from phenaki_pytorch import checkpoint_activations, presets
from phenaki_pytorch.layers.transformer import Block

SIZES = {
    "square": {},
    "rectangular": {"image_size": (16, 24), "patch_size": (4, 8)},
    "pairs as lists": {"image_size": [24, 8], "patch_size": [8, 4], "temporal_depth": 2},
    "tubelets of 1": {"temporal_patch_size": 1, "spatial_depth": 2},
    "tubelets of 3": {"temporal_patch_size": 3, "channels": 1},
    "fsq": {"quantizer": "fsq", "quantizer_kwargs": QUANTIZERS["fsq"]},
    "a window": {"temporal_window": 2},
    "learned positions": {"image_size": (24, 40), "positions": "learned", "max_time_steps": 4},
}


def videos(model, steps, batch=2):
    """A batch of noise with this many time steps."""
    return torch.rand(batch, model.channels, model.num_frames(steps), *model.image_size)


def unsure(model, features):
    """Where rounding could change the nearest code, bool (b, t, h, w)."""
    b, t, h, w, e = features.shape
    noise = [torch.zeros(e), torch.full((e,), 1e-4), torch.full((e,), -1e-4)]
    noise += [1e-4 * torch.randn_like(features) for _ in range(8)]
    ids = torch.stack([model.quantizer.ids((features + each).reshape(b, t * h * w, e)) for each in noise])
    return (ids != ids[0]).any(dim=0).reshape(b, t, h, w)


@pytest.fixture(scope="module", params=[(name, steps) for name in SIZES for steps in (0, 5)], ids=str)
def trained(request):
    """A tokenizer of each size, without training and after some training steps."""
    torch.manual_seed(0)
    name, steps = request.param
    module = tiny_cvivit(**SIZES[name])
    clips = videos(module, 4)
    train(module, lambda: module(clips), steps)
    return module


@pytest.fixture
def model(trained):
    return copy.deepcopy(trained)


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


# causality


@torch.no_grad()
def test_later_frames_and_ids_change_nothing_before_them(model):
    clips = videos(model, 4)
    features, ids = model.features(clips), model.encode(clips)
    sure = ~unsure(model, features)
    assert sure.float().mean() > 0.8
    decoded = model.decode(ids)
    assert decoded.shape == clips.shape
    for t in range(1, 4):
        prefix = clips[:, :, : model.num_frames(t)]
        torch.testing.assert_close(model.features(prefix), features[:, :t], atol=1e-5, rtol=0)
        assert torch.equal(model.encode(prefix)[sure[:, :t]], ids[:, :t][sure[:, :t]])
        start = decoded[:, :, : model.num_frames(t)]
        torch.testing.assert_close(model.decode(ids[:, :t]), start, atol=1e-5, rtol=0)


@torch.no_grad()
def test_images_are_first_frames(model):
    clips = videos(model, 3)
    images = clips[:, :, 0]
    torch.testing.assert_close(model.features(images), model.features(clips)[:, :1], atol=1e-5, rtol=0)
    sure = ~unsure(model, model.features(images))
    assert model.encode(images).shape[1] == 1
    assert torch.equal(model.encode(images)[sure], model.encode(clips)[:, :1][sure])
    assert torch.equal(model.encode(images), model.encode(images[:, :, None]))
    assert model.reconstruct(images).shape == images.shape
    assert model.reconstruct(clips).shape == clips.shape


@torch.no_grad()
def test_a_changed_frame_changes_its_time_step_and_later_ones(model):
    clips, window = videos(model, 4), model.temporal_window or 4
    features = model.features(clips)
    for frame in range(clips.shape[2]):
        other = clips.clone()
        other[:, :, frame] = torch.rand_like(other[:, :, frame])
        step = 0 if frame == 0 else 1 + (frame - 1) // model.temporal_patch_size
        difference = (features - model.features(other)).abs().amax(dim=(0, 2, 3, 4))
        assert difference[:step].le(1e-5).all()
        assert difference[step : step + window].gt(1e-4).all()


@torch.no_grad()
def test_a_changed_id_changes_its_frames_and_later_ones(model):
    ids, window = model.encode(videos(model, 4)), model.temporal_window or 4
    decoded = model.decode(ids)
    for step in range(4):
        other = ids.clone()
        other[:, step] = (other[:, step] + 7) % model.codebook_size
        difference = (decoded - model.decode(other)).abs().amax(dim=(0, 1, 3, 4))
        first = 0 if step == 0 else model.num_frames(step)
        assert difference[:first].le(1e-5).all()
        assert difference[first : model.num_frames(min(4, step + window))].gt(1e-5).all()


def test_other_sizes_than_image_size_work_as_well(model):
    ph, pw = model.patch_size
    for height, width in ((ph, pw), (3 * ph, 5 * pw)):
        clips = torch.rand(1, model.channels, model.num_frames(2), height, width)
        ids = model.encode(clips)
        assert tuple(ids.shape[1:]) == model.grid(clips.shape[2], height, width) == (2, height // ph, width // pw)
        assert model.decode(ids).shape == clips.shape
        assert torch.isfinite(model(clips))


def test_all_positions_of_a_frame_see_each_other():
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


def test_eleven_frames_of_128_pixels_are_1536_ids():
    with torch.device("meta"):
        model = presets.cvivit()
        features = model.features(torch.rand(1, 3, 11, 128, 128))
    assert features.shape == (1, 6, 16, 16, 32)
    assert model.grid(11) == (6, 16, 16)


def test_the_per_frame_baseline_encodes_each_frame_alone():
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
    for frame in range(1, 5):  # the first frame has an embedding of its own, the others share one
        pair = small.encode(torch.cat((clip[:, :, :1], clip[:, :, frame : frame + 1]), dim=2))
        assert torch.equal(pair[:, 1], ids[:, frame])


# loss


def test_the_loss_is_that_of_pixels_plus_that_of_the_quantizer():
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
        return loss, gradients(model), state(model)

    expected = outcome(clips)
    other = clips.clone()
    other[1, :, 3:] = padding(other[1, :, 3:])
    for got, each in zip(outcome(other), expected):
        torch.testing.assert_close(got, each)
    other = clips.clone()
    other[1, :, 2] = padding(other[1, :, 2])  # a real frame
    assert (outcome(other)[0] - expected[0]).abs() > 1e-5


def test_the_loss_of_a_padded_batch_is_that_of_its_real_frames():
    model = tiny_cvivit().eval()  # in eval mode there is no commitment loss, which is a mean over tokens
    clips = torch.rand(2, 3, 7, 16, 16)
    mask = torch.arange(7) < torch.tensor([[7], [1]])
    clip, image = model(clips[:1]), model(clips[1:, :, 0])
    torch.testing.assert_close(model(clips, mask), (7 * clip + image) / 8)
    torch.testing.assert_close(model(clips, torch.ones_like(mask)), model(clips))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_all_parameters_get_gradients_and_the_loss_falls(quantizer):
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer])
    clips = torch.rand(2, 3, 1, 1, 1).expand(2, 3, 5, 16, 16) + 0.05 * torch.rand(2, 3, 5, 16, 16)
    model(clips).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    before = model.losses(clips).pixel.item()
    train(model, lambda: model(clips), 40)
    assert model.losses(clips).pixel < 0.5 * before


def test_the_state_dict_has_encoder_decoder_and_quantizer_only():
    assert {name.split(".")[0] for name in tiny_cvivit().state_dict()} == {"encoder", "decoder", "quantizer"}


# modules and state


@pytest.mark.parametrize("frame_mask", [None, torch.arange(5) < torch.tensor([[5], [3]])])
def test_every_linear_layer_is_called_in_training_encoding_and_decoding(frame_mask):
    """A wrapper around a layer, for adapters or sharding, works only if no weight is read past the layer's call."""
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    called = set()
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(lambda *_, name=name: called.add(name))
    linear = {
        half: {name for name, part in model.named_modules() if isinstance(part, nn.Linear) and half in name}
        for half in ("encoder", "decoder")
    }
    assert all(linear.values())
    model.losses(clip, frame_mask)
    assert called == linear["encoder"] | linear["decoder"]
    called.clear()
    ids = model.encode(clip)
    assert called == linear["encoder"]
    called.clear()
    model.decode(ids)
    assert called == linear["decoder"]


def test_encoding_records_no_gradient_and_changes_no_state():
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    before = state(model)
    ids = model.encode(clip.requires_grad_())
    assert ids.dtype == torch.int64 and not ids.requires_grad and model.training
    assert same_state(before, state(model))
    assert model.features(clip).requires_grad  # these do record it
    assert not model.reconstruct(clip).requires_grad


def test_a_copy_is_equal_and_independent():
    model, clip = tiny_cvivit(), torch.rand(2, 3, 5, 16, 16)
    twin = copy.deepcopy(model)
    assert torch.equal(model.encode(clip), twin.encode(clip))
    before = state(model)
    train(twin, lambda: twin(clip), 2)
    assert same_state(before, state(model))
    assert not torch.equal(model.features(clip), twin.features(clip))


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
    torch.testing.assert_close(gradients(twin), gradients(model))
    assert same_state(state(model), state(twin))
    checkpoint_activations(twin, on=False)
    twin(clip).backward()
    assert len(calls) == 4 + 2 * 4 + 4


# precision


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
def test_a_cast_model_takes_and_gives_videos_of_any_precision(dtype):
    model, clip = tiny_cvivit().to(dtype), torch.rand(2, 3, 5, 16, 16)
    assert model.decode(model.encode(clip)).dtype == dtype
    model(clip.to(dtype)).backward()
    assert model.encoder.embed_first.weight.grad.dtype == dtype
