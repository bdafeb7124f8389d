"""ImageVAE computes what its VAE computes by hand, frame by frame, and leaves the VAE as it is."""

import copy
from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from torch import nn

from conftest import same_state, seed, state
from image_vae_models import PlainVAE, codecs, kl_vae, make_video, plain_codec
from phenaki_pytorch.core.contracts import Codec, Lengths
from phenaki_pytorch.core.modules import in_eval_mode
from phenaki_pytorch.tokenizers.image_vae import ImageVAE


def frames_of(video):
    """Each frame as a batch of one image in [-1, 1], in the order of clips."""
    return [2 * frame[None] - 1 for frame in rearrange(video, "b c f h w -> (b f) c h w")]


def as_latents(frames, b=2):
    return rearrange(torch.cat(frames), "(b f) e h w -> b f h w e", b=b)


# the same as the VAE by hand


def test_the_vae_of_these_tests_is_the_one_described():
    assert sum(parameter.numel() for parameter in kl_vae().parameters()) == 43_711


@torch.no_grad()
def test_features_are_the_scaled_mode_of_each_frame():
    vae = kl_vae(shift_factor=0.3)
    expected = [(vae.encode(frame).latent_dist.mode() - 0.3) * 0.18215 for frame in frames_of(make_video())]
    got = ImageVAE(vae).features(make_video())
    assert got.shape == (2, 3, 8, 8, 4) and got.std() > 0.01
    torch.testing.assert_close(got, as_latents(expected), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_latents_are_drawn_as_the_vae_draws_them():
    vae, generator = kl_vae(), seed(5)
    expected = [vae.encode(frame).latent_dist.sample(generator) * 0.18215 for frame in frames_of(make_video())]
    codec = ImageVAE(vae)
    got = codec.latents(make_video(), generator=seed(5))
    torch.testing.assert_close(got, as_latents(expected), atol=1e-6, rtol=1e-5)
    assert (got - codec.features(make_video())).abs().mean() > 0.01


@torch.no_grad()
def test_decoding_is_the_vae_s_of_each_frame():
    vae = kl_vae(shift_factor=0.3)
    latents = torch.randn(2, 3, 8, 8, 4)
    frames = rearrange(latents / 0.18215 + 0.3, "b f h w e -> (b f) 1 e h w")
    expected = torch.cat([(vae.decode(frame).sample + 1) / 2 for frame in frames])
    got = ImageVAE(vae).decode_features(latents)
    assert got.shape == (2, 3, 3, 16, 16)
    torch.testing.assert_close(got, rearrange(expected, "(b f) c h w -> b c f h w", b=2), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_vae_without_a_distribution_gives_its_latents_and_uses_no_generator():
    codec, generator = plain_codec(), seed(2)
    before = generator.get_state()
    expected = as_latents([codec.vae.down(frame) for frame in frames_of(make_video())])
    assert codec.code_dim == 6 and codec.patch_size == (4, 8) and expected.shape == (2, 3, 4, 2, 6)
    torch.testing.assert_close(codec.features(make_video()), expected)
    assert torch.equal(codec.latents(make_video(), generator=generator), codec.features(make_video()))
    assert torch.equal(generator.get_state(), before)


def test_a_distribution_without_noise_gives_its_mode():
    class Certain(PlainVAE):
        def encode(self, images):
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: self.down(images)))

    codec = ImageVAE(Certain(), image_size=16)
    assert torch.equal(codec.latents(make_video()), codec.features(make_video()))


def test_other_kinds_of_diffusers_fit():
    from diffusers import AutoencoderDC, AutoencoderTiny, VQModel

    tiny = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    tiny |= {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    vq = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 5, "num_vq_embeddings": 8}
    vq |= {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    dc = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock", "latent_channels": 8}
    dc |= {f"{part}_block_out_channels": (8, 16) for part in ("encoder", "decoder")}
    dc |= {f"{part}_layers_per_block": (1, 1) for part in ("encoder", "decoder")}
    dc |= {f"{part}_qkv_multiscales": ((), ()) for part in ("encoder", "decoder")}
    for vae, width in ((AutoencoderTiny(**tiny), 4), (VQModel(**vq), 5), (AutoencoderDC(**dc), 8)):
        codec = ImageVAE(vae, image_size=16)
        latents = codec.latents(make_video())
        assert latents.shape == (2, *codec.grid(3), codec.code_dim) and codec.code_dim == width
        assert torch.equal(latents, codec.features(make_video()))
        assert codec.decode_features(latents).shape == (2, 3, 3, 16, 16)


@codecs
@torch.no_grad()
def test_scale_and_shift_cancel_out(build):
    plain, scaled = build(scale=1.0, shift=0.0), build(scale=3.0, shift=-0.7)
    scaled.load_state_dict(plain.state_dict())
    features = plain.features(make_video())
    torch.testing.assert_close(scaled.features(make_video()), (features + 0.7) * 3, atol=1e-5, rtol=1e-5)
    decoded = scaled.decode_features(scaled.features(make_video()))
    torch.testing.assert_close(decoded, plain.decode_features(features), atol=1e-5, rtol=1e-5)


# the codec


@codecs
def test_it_is_a_codec_of_any_number_of_frames(build):
    codec = build()
    assert isinstance(codec, Codec) and isinstance(codec, Lengths)
    for frames in (1, 2, 7):
        video = make_video(f=frames, size=32)
        latents = codec.latents(video)
        assert latents.shape == (2, *codec.grid(frames, 32, 32), codec.code_dim)
        assert codec.decode_features(latents).shape == video.shape
        assert codec.num_frames(frames) == frames
    assert codec.grid(3) == codec.grid(3, 16, 16) == codec.grid(3, 16) == codec.grid(3, width=16)


def test_the_assumed_size_is_the_config_s_unless_one_is_given():
    assert ImageVAE(kl_vae()).grid(5) == (5, 8, 8)
    assert ImageVAE(kl_vae(), image_size=(32, 8)).grid(5) == (5, 16, 4)
    assert ImageVAE(kl_vae(sample_size=[8, 24])).grid(5) == (5, 4, 12)


def test_scale_and_shift_default_to_the_config_s_or_1_and_0():
    assert (ImageVAE(kl_vae()).scale, ImageVAE(kl_vae()).shift) == (0.18215, 0.0)
    given = ImageVAE(kl_vae(scaling_factor=0.36, shift_factor=0.12))
    assert (given.scale, given.shift) == (0.36, 0.12)
    assert (plain_codec().scale, plain_codec().shift) == (1.0, 0.0)
    assert (plain_codec(scale=2, shift=0.5).scale, plain_codec(scale=2, shift=0.5).shift) == (2, 0.5)


@codecs
def test_images_are_clips_of_one_frame(build):
    codec, images = build(), torch.rand(2, 3, 16, 16)
    assert codec.features(images).shape[1] == 1
    assert torch.equal(codec.features(images), codec.features(images[:, :, None]))
    drawn = codec.latents(images, generator=seed())
    assert torch.equal(drawn, codec.latents(images[:, :, None], generator=seed()))


@codecs
def test_each_frame_is_coded_alone(build):
    codec, video = build(), make_video()
    other = video.clone()
    other[:, :, 1] = torch.rand(2, 3, 16, 16)
    difference = (codec.features(video) - codec.features(other)).abs().amax(dim=(0, 2, 3, 4))
    assert difference[0] < 1e-6 and difference[2] < 1e-6 and difference[1] > 1e-3


@codecs
@torch.no_grad()
def test_chunks_change_nothing(build):
    video = make_video(size=24)  # 144 latents' values a frame, and 108 of the plain VAE
    codec, chunked = build(), build(frames_at_once=2)
    chunked.load_state_dict(codec.state_dict())
    drawn = codec.latents(video, generator=seed())
    torch.testing.assert_close(chunked.latents(video, generator=seed()), drawn, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(chunked.features(video), codec.features(video), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(chunked.decode_features(drawn), codec.decode_features(drawn), atol=1e-5, rtol=1e-5)


def test_the_vae_never_sees_more_frames_at_once():
    codec = plain_codec(frames_at_once=4)
    codec.vae.sizes.clear()
    codec.decode_features(codec.latents(make_video(f=5)))
    assert codec.vae.sizes == [4, 4, 2] * 2


@codecs
def test_the_same_generator_gives_the_same_latents_and_leaves_the_global_state_alone(build):
    codec, before = build(), torch.get_rng_state()
    first = codec.latents(make_video(), generator=seed(7))
    assert torch.equal(first, codec.latents(make_video(), generator=seed(7)))
    assert torch.equal(torch.get_rng_state(), before)
    if isinstance(codec.vae, PlainVAE):
        return
    assert not torch.equal(first, codec.latents(make_video(), generator=seed(8)))
    torch.manual_seed(7)
    assert torch.equal(first, codec.latents(make_video()))  # without a generator: the global one


# the VAE is frozen


@codecs
def test_the_vae_is_frozen_and_stays_in_eval_mode(build):
    codec = nn.Sequential(build())
    for mode in (True, False, True):
        codec.train(mode)
        assert codec[0].training == mode and not any(part.training for part in codec[0].vae.modules())
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    video = make_video()
    assert torch.equal(codec[0].features(video), codec[0].features(video))  # no dropout
    with in_eval_mode(codec):
        pass
    assert codec[0].training and not any(part.training for part in codec[0].vae.modules())


@codecs
def test_only_decoding_passes_gradients_and_none_reaches_the_vae(build):
    codec, video = build(), make_video().requires_grad_()
    before = state(codec)
    assert not codec.features(video).requires_grad and not codec.latents(video).requires_grad
    latents = codec.latents(video).requires_grad_()
    codec.decode_features(latents).square().mean().backward()
    assert latents.grad.abs().amax(dim=(0, 2, 3, 4)).gt(0).all()
    assert all(parameter.grad is None for parameter in codec.parameters())
    assert same_state(before, codec.state_dict())


def test_its_state_is_the_vae_s():
    vae = kl_vae()
    codec = ImageVAE(vae)
    assert same_state({f"vae.{name}": value for name, value in vae.state_dict().items()}, codec.state_dict())
    twin = copy.deepcopy(codec)
    assert torch.equal(twin.features(make_video()), codec.features(make_video()))


# dtypes


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float64])
@torch.no_grad()
def test_the_vae_computes_in_its_own_dtype_and_results_have_the_input_s(weights):
    vae, plain = kl_vae().to(weights), kl_vae().to(weights).eval()
    codec, video = ImageVAE(vae), make_video()
    images = rearrange(2 * video - 1, "b c f h w -> (b f) c h w").to(weights)
    expected = as_latents([plain.encode(images).latent_dist.mode().float() * 0.18215])
    features = codec.features(video)
    assert features.dtype == codec.latents(video).dtype == torch.float32
    assert torch.equal(features, expected)
    latents = rearrange(features / 0.18215, "b f h w e -> (b f) e h w").to(weights)
    decoded = codec.decode_features(features)
    assert decoded.dtype == torch.float32 and next(vae.parameters()).dtype == weights
    expected = (plain.decode(latents).sample.float() + 1) / 2
    assert torch.equal(decoded, rearrange(expected, "(b f) c h w -> b c f h w", b=2))
    assert codec.features(video.bfloat16()).dtype == torch.bfloat16
    assert codec.decode_features(features.double()).dtype == torch.float64


def test_it_can_be_built_on_the_meta_device():
    with torch.device("meta"):
        vae = kl_vae()
    codec = ImageVAE(vae)
    assert codec.code_dim == 4 and codec.grid(2) == (2, 8, 8)
