"""VQGAN: LAION's sizes, lengths 1 + 2k, a codebook that works in eval mode too, its loss and state."""

import copy

import pytest
import torch
from vqgan_models import clips, tiny_vqgan

from conftest import QUANTIZERS, same_state, state, train
from phenaki_pytorch.core.contracts import Tokenizer
from phenaki_pytorch.tokenizers.discriminators import PatchDiscriminator
from phenaki_pytorch.tokenizers.losses import LAION_WEIGHTS
from phenaki_pytorch.tokenizers.vqgan import VQGAN

# Tiny batches have fewer tokens than a codebook needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens a step are few:UserWarning")


def trained_vqgan(steps=3, **changes):
    """A tiny tokenizer whose codes the first of its training steps has initialised."""
    model, video = tiny_vqgan(**changes), clips(4)
    train(model, lambda: model(video), steps)
    return model


@pytest.fixture(scope="module")
def shared():
    torch.manual_seed(0)
    return trained_vqgan(15).eval()


@pytest.fixture
def model(shared):
    """In eval mode."""
    return copy.deepcopy(shared)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


# LAION's sizes


def test_laions_tokenizer_has_43_258_244_parameters_beside_the_codebook():
    with torch.device("meta"):
        model = VQGAN()
    encoder, decoder = model.encoder, model.decoder
    codes = count(encoder.to_code) + count(encoder.norm), count(decoder.from_code)
    assert codes == (8_208 + 32, 8_704)
    assert count(encoder) - codes[0] == 19_883_264
    assert count(decoder) - codes[1] == 23_358_036
    assert count(encoder.first_frame) == 49_152
    assert count(model) == 43_258_244
    assert count(model.quantizer) == 0  # moving averages are no parameters
    assert (model.codebook_size, model.code_dim) == (8192, 16)


@pytest.mark.parametrize("frames, size, grid", [(1, 128, (1, 16, 16)), (11, 128, (6, 16, 16)), (21, 256, (11, 32, 32))])
def test_laions_grids_and_back(frames, size, grid):
    with torch.device("meta"):
        model = VQGAN()
        features = model.features(torch.rand(1, 3, frames, size, size))
        assert features.shape == (1, *grid, 16)
        assert model.decode_features(features).shape == (1, 3, frames, size, size)
    assert model.grid(frames, size, size) == grid
    assert model.num_frames(grid[0]) == frames


# lengths and sizes


@torch.no_grad()
@pytest.mark.parametrize("frames, t", [(1, 1), (3, 2), (11, 6), (21, 11)])
def test_clips_of_1_plus_2k_frames_come_back_in_their_length(model, frames, t):
    video = clips(1, frames)
    ids = model.encode(video)
    assert ids.shape == (1, t, 2, 2) == (1, *model.grid(frames))
    assert model.num_frames(t) == frames
    assert model.decode(ids).shape == video.shape
    assert model.reconstruct(video).shape == video.shape


@pytest.mark.parametrize("frames", [0, 2, 4, 10])
def test_even_numbers_of_frames_are_refused(model, frames):
    message = rf"1 \+ k · 2 frames, k ≥ 0, got {frames}"
    with pytest.raises(ValueError, match=message):
        model.grid(frames)
    if frames > 0:
        for call in (model, model.encode, model.features, model.reconstruct):
            with pytest.raises(ValueError, match=message):
                call(clips(1, frames))


@torch.no_grad()
def test_images_are_clips_of_one_frame(model):
    images = clips(2, 1)[:, :, 0]
    ids = model.encode(images)
    assert ids.shape == (2, 1, 2, 2)
    assert torch.equal(ids, model.encode(images[:, :, None]))
    assert model.decode(ids).shape == (2, 3, 1, 16, 16)
    assert model.reconstruct(images).shape == images.shape
    assert torch.isfinite(model(images))


@torch.no_grad()
def test_any_multiple_of_8_works_whatever_the_size_of_the_learned_frame(model):
    for height, width in ((8, 8), (24, 16), (16, 40)):
        video = torch.rand(1, 3, 3, height, width)
        ids = model.encode(video)
        assert tuple(ids.shape[1:]) == model.grid(3, height, width) == (2, height // 8, width // 8)
        assert model.decode(ids).shape == video.shape
    wide = tiny_vqgan(image_size=(8, 24))
    assert wide.grid(1) == (1, 1, 3) and wide.encoder.first_frame.frame.shape == (3, 1, 8, 24)


# codes


@torch.no_grad()
def test_eval_mode_quantizes(model):
    video = clips()
    ids = model.encode(video)
    reconstruction = model.losses(video).reconstruction
    decoded = model.decode(ids)
    torch.testing.assert_close(reconstruction, decoded)
    assert ids.unique().numel() > 3
    assert (model.decode_features(model.features(video)) - decoded).abs().max() > 1e-5  # without a quantizer
    codes = model.code_features(ids)
    assert torch.equal(model.nearest(codes), ids)  # ids are those of their codes
    torch.testing.assert_close(model.decode_features(codes), decoded)


def test_codes_start_as_features_and_the_commitment_weighs_a_tenth():
    model, video = tiny_vqgan(), clips(8)
    with pytest.raises(ValueError, match="initialised by the first batch"):
        model.encode(video)
    twin = tiny_vqgan(quantizer_kwargs={"commitment_weight": 1.0})
    twin.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    losses = model.losses(video)
    torch.manual_seed(1)
    other = twin.losses(video)
    assert losses.quantizer > 0
    torch.testing.assert_close(other.quantizer, 10 * losses.quantizer)
    torch.testing.assert_close(losses.total, losses.pixel + losses.quantizer)
    codebook = model.quantizer.quantizer.codebook
    assert codebook.abs().sum(dim=-1).min() > 1e-3  # no code became 0
    torch.testing.assert_close(codebook.std(), torch.tensor(1.0), atol=0.3, rtol=0)  # as the normalised features


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_other_quantizers_work_by_name_and_train_every_parameter(quantizer):
    model = tiny_vqgan(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer])
    model(clips()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert model.encode(clips()).shape == (2, 3, 2, 2)


# batch statistics


def test_ids_do_not_depend_on_the_batch_and_encoding_changes_no_state():
    model, video = trained_vqgan(), clips(3)
    assert model.training
    before = state(model)
    ids = model.encode(video)
    assert ids.dtype == torch.int64 and model.training
    assert torch.equal(ids[:1], model.encode(video[:1]))
    with torch.no_grad():
        features = model.features(video)
        model.reconstruct(video)
    assert same_state(before, state(model))
    torch.testing.assert_close(model.eval().features(video).detach(), features)


def test_training_steps_normalise_by_the_batch_and_move_the_running_statistics():
    model = trained_vqgan()
    mean = model.encoder.norm.running_mean.clone()
    features = model.features(clips(8))
    torch.testing.assert_close(features.mean(dim=(0, 1, 2, 3)), torch.zeros(8), atol=0.05, rtol=0)
    torch.testing.assert_close(features.std(dim=(0, 1, 2, 3)), torch.ones(8), atol=0.05, rtol=0)
    assert not torch.equal(mean, model.encoder.norm.running_mean)


# loss


def test_every_parameter_gets_a_gradient_from_clips_and_from_images_and_the_loss_falls():
    model = tiny_vqgan()
    video = torch.rand(2, 3, 1, 1, 1).expand(2, 3, 5, 16, 16) + 0.05 * clips()
    for batch in (video, video[:, :, 0]):
        model.zero_grad()
        model(batch).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    before = model.losses(video).pixel.item()
    train(model, lambda: model(video), 20, lr=1e-2)
    assert model.losses(video).pixel < 0.5 * before


def test_it_trains_with_laions_discriminator_and_weights():
    model, video = tiny_vqgan(), clips()
    discriminator = PatchDiscriminator(dim=16, depth=3)
    given = {
        "discriminator": discriminator,
        "image_perceptual": lambda fake, real: (fake - real).abs(),
        "video_perceptual": lambda fake, real: pytest.fail("it weighs 0"),
    }
    losses = model.losses(video, weights=LAION_WEIGHTS, **given)
    total = losses.quantizer + losses.pixel + 0.1 * losses.image_perceptual + 0.1 * losses.adversarial
    torch.testing.assert_close(losses.total, total)
    losses.total.backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    discriminator(video, losses.reconstruction).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in discriminator.parameters())


def test_padding_is_refused(model):
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    with pytest.raises(ValueError, match=r"VQGAN is not causal.*got a frame_mask"):
        model(clips(), mask)


# saving, precision, compilation


def test_a_loaded_tokenizer_takes_the_same_next_training_step(tmp_path):
    model, video = trained_vqgan(), clips(4)
    model.save_pretrained(tmp_path)
    loaded = VQGAN.from_pretrained(tmp_path)
    assert same_state(state(model), state(loaded)) and loaded.config == model.config
    assert not torch.equal(model.encoder.norm.running_mean, torch.zeros(8))
    stepped = []
    for each in (model, loaded):
        torch.manual_seed(1)
        stepped.append(train(each, lambda each=each: each(video), 2))
    assert stepped[0] == stepped[1]
    assert same_state(state(model), state(loaded))
    assert torch.equal(model.encode(video), loaded.encode(video))


def test_bfloat16_autocast_trains_and_stays_near():
    model, video = trained_vqgan(), clips()
    terms = {"discriminator": PatchDiscriminator(dim=16, depth=3), "weights": LAION_WEIGHTS}
    exact = copy.deepcopy(model).losses(video, **terms)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.losses(video, **terms)
        assert model.encode(video).shape == (2, 3, 2, 2)
    losses.total.backward()
    assert all(torch.isfinite(term).all() for term in losses)
    torch.testing.assert_close(losses.total, exact.total, atol=0, rtol=0.1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_model_takes_and_gives_videos_of_any_precision(dtype):
    model, video = trained_vqgan().to(dtype), clips()
    assert model.decode(model.encode(video)).dtype == dtype
    model(video.to(dtype)).backward()
    assert model.encoder.stem.weight.grad.dtype == dtype


def test_every_layer_is_called_in_training_encoding_and_decoding(model):
    """A wrapper around a layer, for adapters or sharding, works only if no weight is read past the layer's call."""
    called = set()
    layers = {name: part for name, part in model.named_modules() if list(part.parameters(recurse=False))}
    for name, part in layers.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    ids = model.encode(clips())
    assert called == {name for name in layers if name.startswith("encoder")}
    called.clear()
    model.decode(ids)
    assert called == {name for name in layers if name.startswith("decoder")}
    model(clips())
    assert called == set(layers)


# arguments


def test_it_is_a_tokenizer(model):
    assert isinstance(model, Tokenizer)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "decoder", "quantizer"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dim": 12}, "multiple of 4 and at least 16, got 12"),
        ({"dim": 18}, "multiple of 4 and at least 16, got 18"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"code_dim": 0}, "code_dim must be at least 1, got 0"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"image_size": 20}, "multiples of the patch 8×8, got 20×20"),
        ({"quantizer": "nearest"}, "must be one of .* got 'nearest'"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_vqgan(**changes)


def test_frames_and_ids_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="multiples of the patch 8×8, got 16×12"):
        model(torch.rand(1, 3, 3, 16, 12))
    with pytest.raises(ValueError, match="3 channels, got 1"):
        model.encode(torch.rand(1, 1, 3, 16, 16))
    with pytest.raises(ValueError, match="at least 1 time step, got 0"):
        model.num_frames(0)
    with pytest.raises(ValueError, match=r"\[0, 32\), got values from 32 to 32"):
        model.decode(torch.full((1, 1, 2, 2), 32))
