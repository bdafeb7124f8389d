"""VQVAE: the paper's sizes and layers, its loss divided by the data's variance, its state and its errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import QUANTIZERS, same_state, state, train
from phenaki_pytorch.core.contracts import Tokenizer
from phenaki_pytorch.tokenizers.vqvae import VQVAE, ResidualBlock
from tiny_vqvae import tiny_vqvae, trained_vqvae

SHAPES = {
    "stride 2": {"strides": (2, 2, 2), "video_shape": (4, 8, 8)},
    "longer in time": {"strides": (4, 2, 2), "video_shape": (8, 8, 8)},
    "frame by frame": {"strides": (1, 4, 4), "video_shape": (2, 16, 16)},
    "lists, one channel": {"strides": [2, 4, 2], "video_shape": [4, 16, 8], "channels": 1},
    "no stride": {"strides": (1, 1, 1), "video_shape": (2, 4, 4)},
    "no attention": {"strides": (2, 2, 2), "video_shape": (4, 8, 8), "axial_attention": False},
    "no blocks": {"strides": (2, 2, 2), "video_shape": (4, 8, 8), "depth": 0},
}


def parameters_of(*modules):
    return sum(part.numel() for module in modules for part in module.parameters())


# sizes


def test_the_numbers_of_parameters_are_those_of_the_released_layers():
    with torch.device("meta"):
        model, plain = VQVAE(), VQVAE(axial_attention=False)
    maps = parameters_of(model.encoder.to_code, model.decoder.from_code)
    assert parameters_of(model.encoder) + parameters_of(model.decoder) == 21_141_619
    assert parameters_of(model.encoder) - parameters_of(model.encoder.to_code) == 11_286_960
    assert parameters_of(model.decoder) - parameters_of(model.decoder.from_code) == 9_731_283
    assert maps == 240 * 256 + 256 + 256 * 240 + 240
    assert parameters_of(model.positions) == (8 + 16 + 16) * 80
    assert parameters_of(model) == 21_141_619 + 3_200
    assert parameters_of(plain) == 15_602_419


def test_sixteen_frames_of_64_pixels_are_2048_ids():
    with torch.device("meta"):
        model = VQVAE()
        features = model.features(torch.rand(1, 3, 16, 64, 64))
        assert features.shape == (1, 8, 16, 16, 256)
        assert model.decode_features(features).shape == (1, 3, 16, 64, 64)
    assert model.grid(16) == (8, 16, 16)
    small, _ = trained_vqvae(video_shape=(16, 64, 64), dim=6)
    video = torch.rand(1, 3, 16, 64, 64)
    ids = small.encode(video)
    assert ids.shape == (1, 8, 16, 16) and ids.unique().numel() > 1
    assert small.decode(ids).shape == video.shape


@pytest.mark.parametrize("name", SHAPES)
def test_ids_have_the_size_of_the_video_divided_by_the_strides(name):
    model, video = trained_vqvae(**SHAPES[name])
    ids = model.encode(video)
    expected = tuple(length // stride for length, stride in zip(video.shape[2:], model.strides))
    assert tuple(ids.shape) == (2, *expected) and model.grid(*video.shape[2:]) == expected
    assert ids.min() >= 0 and ids.max() < 16 and ids.unique().numel() > 1
    assert model.decode(ids).shape == video.shape
    assert isinstance(model, Tokenizer)


def test_grid_and_num_frames_are_inverse():
    model = tiny_vqvae(strides=(4, 2, 2), video_shape=(64, 16, 16))
    assert model.grid(16) == (4, 8, 8) and model.grid(8, 6, 16) == (2, 3, 8)
    assert [model.num_frames(t) for t in (1, 2, 5)] == [4, 8, 20]
    assert all(model.grid(model.num_frames(t))[0] == t for t in range(1, 9))


def test_images_are_clips_of_one_frame_where_the_stride_in_time_is_1():
    model, _ = trained_vqvae(**SHAPES["frame by frame"])
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model.encode(images), model.encode(images[:, :, None]))
    assert model.reconstruct(images).shape == images.shape
    with pytest.raises(ValueError, match=r"a clip needs k · 2 frames, k ≥ 1, got 1"):
        tiny_vqvae()(images)


def test_smaller_videos_use_the_same_positions_and_larger_ones_are_refused():
    model, _ = trained_vqvae()
    video = torch.rand(1, 3, 2, 8, 12)
    ids = model.encode(video)
    assert ids.shape == (1, 1, 2, 3) and model.decode(ids).shape == video.shape
    for shape, grid in (((6, 16, 16), (3, 4, 4)), ((4, 20, 16), (2, 5, 4)), ((4, 16, 24), (2, 4, 6))):
        message = rf"must fit into .*, \(2, 4, 4\), got \({grid[0]}, {grid[1]}, {grid[2]}\)"
        for call in (model, model.encode):
            with pytest.raises(ValueError, match=message):
                call(torch.rand(1, 3, *shape))
        with pytest.raises(ValueError, match=message):
            model.decode(torch.zeros(1, *grid, dtype=torch.int64))


def test_without_attention_larger_videos_work_as_well():
    model, _ = trained_vqvae(axial_attention=False)
    video = torch.rand(1, 3, 6, 24, 20)
    assert model.encode(video).shape == (1, 3, 6, 5)
    assert model.decode(model.encode(video)).shape == video.shape


# layers


def test_a_block_is_two_convolutions_and_axial_attention_to_tokens_with_positions():
    block, x, positions = ResidualBlock(12, heads=2), torch.randn(1, 2, 3, 4, 12), torch.randn(2, 3, 4, 12)
    seen = []
    block.attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = block(x, positions)

    def channels_first(values):
        return values.movedim(-1, 1)

    inner = F.conv3d(channels_first(block.inner_norm(x).relu()), block.to_inner.weight, padding=1).movedim(1, -1)
    outer = block.to_outer(block.outer_norm(inner).relu())
    torch.testing.assert_close(seen[0], block.attention_norm(outer).relu() + positions)
    torch.testing.assert_close(out, x + block.attention(seen[0]))
    assert block.to_inner.bias is None and block.to_outer.bias is None


def test_the_norms_are_over_the_channels_of_each_token_alone():
    model = tiny_vqvae(axial_attention=False)
    norms = [part for part in model.modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 2 * (2 + 1)
    assert {part.normalized_shape for part in norms} == {(12,), (6,)}
    assert not [part for part in model.modules() if "BatchNorm" in type(part).__name__]
    video = torch.rand(3, 3, 4, 16, 16)
    torch.testing.assert_close(model.features(video)[:1], model.features(video[:1]))  # no sample sees another


def test_the_strides_of_encoder_and_decoder_have_the_same_order():
    model = tiny_vqvae(strides=(2, 4, 4))
    assert [layer.stride for layer in model.encoder.down] == [(2, 2, 2), (1, 2, 2)]
    assert [layer.stride for layer in model.decoder.up] == [(2, 2, 2), (1, 2, 2)]


def test_pixels_are_centred_inside_and_black_and_white_are_alike():
    model = tiny_vqvae(axial_attention=False, depth=0)
    seen = []
    model.encoder.down[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for value in (0.0, 1.0):
        model.features(torch.full((1, 3, 4, 16, 16), value))
    assert torch.equal(seen[0], torch.full_like(seen[0], -0.5)) and torch.equal(seen[1], -seen[0])
    nn.init.zeros_(model.decoder.up[-1].weight), nn.init.zeros_(model.decoder.up[-1].bias)
    assert torch.equal(model.decode_features(torch.randn(1, 2, 4, 4, 8)), torch.full((1, 3, 4, 16, 16), 0.5))


def test_both_halves_use_the_same_positions_computed_once_for_each():
    model, video = trained_vqvae(depth=3)
    calls = []
    model.positions.register_forward_hook(lambda *_: calls.append("positions"))
    model.losses(video)
    assert calls == ["positions"] * 2
    owners = [name for name, part in model.named_modules(remove_duplicate=False) if part is model.positions]
    assert owners == ["positions"]
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "encoder", "decoder", "quantizer", "positions", "measured_variance"
    }  # fmt: skip
    before = model.features(video), model.decode_features(model.features(video))
    for part in model.positions.parameters():
        nn.init.normal_(part)
    after = model.features(video), model.decode_features(before[0])
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(before, after))


def test_the_positions_start_small():
    model = tiny_vqvae(video_shape=(64, 64, 64), strides=(1, 1, 1), dim=48)
    assert all(abs(part.std() - 0.01) < 0.001 for part in model.positions.parameters())


# loss


def test_predicting_the_mean_of_the_data_has_a_normalised_error_of_1(monkeypatch):
    model, video = tiny_vqvae(), torch.rand(8, 3, 4, 16, 16) ** 2
    constant = video.mean()
    monkeypatch.setattr(model, "_decoded", lambda features: constant + 0 * features.sum() + torch.zeros_like(video))
    for _ in range(2):  # for the measured variance, and with more than one batch measured
        losses = model.losses(video)
        torch.testing.assert_close(losses.total - losses.quantizer, torch.tensor(1.0))
    constant = constant + 0.1  # any other prediction is worse
    losses = model.losses(video)
    torch.testing.assert_close(losses.total - losses.quantizer, 1 + 0.01 / video.var(correction=0))
    assert losses.pixel < 0.3  # itself it is not divided


def test_a_given_variance_divides_the_pixels_term():
    model, video = tiny_vqvae(data_variance=0.06), torch.rand(2, 3, 4, 16, 16)
    losses = model.losses(video)
    torch.testing.assert_close(losses.total, losses.quantizer + losses.pixel / 0.06)
    assert model.pixel_scale() == 1 / 0.06 and "measured_variance" not in str(list(model.state_dict()))


@pytest.mark.parametrize("quantizer", sorted({*QUANTIZERS, "ema"}))
def test_all_parameters_get_gradients_with_every_quantizer(quantizer):
    model = tiny_vqvae(quantizer=quantizer, quantizer_kwargs=QUANTIZERS.get(quantizer), codebook_size=32)
    model(torch.rand(4, 3, 4, 16, 16)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_loss_falls_in_training():
    model = tiny_vqvae(video_shape=(2, 8, 8), dim=48, data_variance=0.06, codebook_size=8)
    video = torch.rand(8, 3, 1, 1, 1).expand(8, 3, 2, 8, 8) + 0.02 * torch.rand(8, 3, 2, 8, 8)
    losses = train(model, lambda: model(video), 60, lr=1e-3)
    assert losses[-1] < 0.5 * losses[0]


def test_it_is_not_causal():
    model, video = trained_vqvae()
    assert not model.causal
    other = video.clone()
    other[:, :, 3] = 1 - other[:, :, 3]
    assert (model.features(video) - model.features(other)).abs().amax(dim=(0, 2, 3, 4)).gt(1e-4).all()
    with pytest.raises(ValueError, match="VQVAE is not causal"):
        model(video, torch.ones(2, 4, dtype=torch.bool))


# state


@pytest.mark.parametrize("changes", [{}, {"data_variance": 0.06}, {"axial_attention": False, "quantizer": "fsq"}])
def test_a_loaded_model_trains_on_the_same_bit_for_bit(tmp_path, changes):
    if changes.get("quantizer") == "fsq":
        changes = {**changes, "quantizer_kwargs": {"levels": [4, 4]}}
    model, video = trained_vqvae(**changes)
    model.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path)
    assert same_state(state(model), state(loaded))
    assert torch.equal(model.encode(video), loaded.encode(video))
    before = state(model)
    losses = []
    for each in (model, loaded):
        torch.manual_seed(1)
        losses.append(train(each, lambda each=each: each(video), 2))
    assert losses[0] == losses[1] and same_state(state(model), state(loaded))
    assert not same_state(before, state(model))


def test_before_the_first_batch_of_training_there_are_no_codes():
    model, video = tiny_vqvae(), torch.rand(2, 3, 4, 16, 16)
    for call in (model.encode, model.reconstruct, model.eval()):
        with pytest.raises(ValueError, match="initialised by the first batch of training"):
            call(video)
    model.train()(video)
    assert model.encode(video).shape == (2, 2, 4, 4)


def test_a_copy_is_equal_and_independent():
    model, video = trained_vqvae()
    twin = copy.deepcopy(model)
    assert torch.equal(model.encode(video), twin.encode(video))
    before = state(model)
    train(twin, lambda: twin(video), 2)
    assert same_state(before, state(model)) and not same_state(before, state(twin))


def test_every_module_with_weights_is_called_in_a_loss():
    model, video = trained_vqvae()
    called, owners = set(), set()
    for name, part in model.named_modules():
        if any(True for _ in part.parameters(recurse=False)) and not isinstance(part, nn.ParameterList):
            owners.add(name)
            part.register_forward_hook(lambda *_, name=name: called.add(name))
    model(video)
    assert len(owners) > 20 and owners <= called


# precision


def test_bfloat16_autocast_trains_and_stays_near():
    model, video = tiny_vqvae(quantizer="vq"), torch.rand(2, 3, 4, 16, 16)
    exact = copy.deepcopy(model)(video)
    # On processors with AMX, oneDNN leaves parts of some weights' gradients unwritten: 3-D convolutions of kernel 3 in
    # bfloat16 (PyTorch 2.13).
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", torch.bfloat16):
        loss = model(video)
        loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, atol=0, rtol=0.1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


# errors


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"strides": (2, 3, 4)}, ValueError, r"strides must be powers of 2, got \(2, 3, 4\)"),
        ({"strides": (0, 4, 4)}, ValueError, r"strides must be at least 1, got \(0, 4, 4\)"),
        ({"strides": (-2, 4, 4)}, ValueError, r"strides must be at least 1, got \(-2, 4, 4\)"),
        ({"strides": (2, 4)}, ValueError, r"strides must be three numbers, .* got \(2, 4\)"),
        ({"strides": (True, 4, 4)}, TypeError, "strides must hold int, got True"),
        ({"strides": (2, 4.0, 4)}, TypeError, r"strides must hold int, got 4\.0"),
        ({"strides": "244"}, TypeError, "strides must hold int, got '2'"),
        ({"strides": 2}, TypeError, "strides"),
        ({"video_shape": (4, 16)}, ValueError, r"video_shape must be three numbers, .* got \(4, 16\)"),
        ({"video_shape": (4, 0, 16)}, ValueError, r"video_shape must be at least 1, got \(4, 0, 16\)"),
        ({"video_shape": (4, 16, None)}, TypeError, "video_shape must hold int, got None"),
        ({"video_shape": (5, 16, 16)}, ValueError, "a clip needs k · 2 frames, k ≥ 1, got 5"),
        ({"video_shape": (4, 16, 18)}, ValueError, "multiples of the patch 4×4, got 16×18"),
        ({"heads": 5}, ValueError, "heads must divide dim, got 5 heads and dim 12"),
        ({"heads": 0}, ValueError, "heads must be at least 1, got 0"),
        ({"dim": 1}, ValueError, "dim must be at least 2, got 1"),
        ({"dim": 2, "heads": 1}, ValueError, "positions over 3 axes need a width of at least 3, got 2"),
        ({"dim": 12.0}, TypeError, "dim"),
        ({"depth": -1}, ValueError, "depth must be at least 0, got -1"),
        ({"codebook_size": 0}, ValueError, "codebook_size must be at least 1, got 0"),
        ({"code_dim": 0}, ValueError, "code_dim must be at least 1, got 0"),
        ({"channels": 0}, ValueError, "channels must be at least 1, got 0"),
        ({"axial_attention": 1}, TypeError, "axial_attention"),
        ({"data_variance": 0.0}, ValueError, "data_variance must be finite and at least 1e-06, got 0.0"),
        ({"data_variance": 1e-320}, ValueError, "data_variance must be finite and at least 1e-06, got 1e-320"),
        ({"data_variance": float("nan")}, ValueError, "data_variance must be finite and at least 1e-06, got nan"),
        ({"data_variance": "0.06"}, TypeError, "data_variance"),
        ({"quantizer": "emma"}, ValueError, "quantizer must be one of .* got 'emma'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        tiny_vqvae(**changes)


def test_videos_and_ids_that_do_not_fit_are_refused():
    model, video = trained_vqvae()
    for bad, error, message in (
        (video[:, :, :3], ValueError, "a clip needs k · 2 frames, k ≥ 1, got 3"),
        (video[..., :15], ValueError, "multiples of the patch 4×4, got 16×15"),
        (video[:, :2], ValueError, "3 channels, got 2"),
        (video.mul(255).long(), TypeError, r"floating point in \[0, 1\], got torch.int64"),
    ):
        for call in (model, model.encode):
            with pytest.raises(error, match=message):
                call(bad)
    with pytest.raises(ValueError, match=r"\[0, 16\), got values from 16 to 16"):
        model.decode(torch.full((1, 2, 4, 4), 16))
    with pytest.raises(ValueError, match="at least 1 time step, got 0"):
        model.num_frames(0)
