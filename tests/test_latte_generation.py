"""Latte's videos: any length, given frames, guidance, images, the same from the same generator."""

import pytest
import torch

from conftest import ToyTokenizer, modes, seed, tiny_latte
from latte_models import CODECS, FAST, LABELS, TEXTS, TOLD, clips, every_codec, measured, spied
from phenaki_pytorch import Latte
from phenaki_pytorch.diffusion.process import Diffusion


@pytest.mark.parametrize("name", ["CViViT", "VQVAE", "toy"])
@pytest.mark.parametrize("num_frames", [1, 4, 20])
def test_any_number_of_frames_is_generated(name, num_frames):
    latte = measured(codec=CODECS[name]())
    video = latte.generate(num_frames=num_frames, batch_size=2, **FAST)
    assert video.shape == (2, 3, num_frames, 16, 16) and video.min() >= 0 and video.max() <= 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_the_same_generator_gives_the_same_video_and_leaves_the_global_state_alone(sampler):
    latte = measured(**TOLD)
    before = torch.get_rng_state()
    options = {**LABELS, "num_frames": 9, "sampler": sampler, "steps": 3, "cond_scale": 3.0}
    one, other = (latte.generate(**options, generator=seed()) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one, latte.generate(**options, generator=seed(1)))


def test_modes_are_as_before_also_after_an_error():
    latte = measured(num_classes=3).train()
    before = modes(latte)
    latte.generate(num_frames=2, classes=torch.tensor([1]), **FAST)
    assert modes(latte) == before

    def failing(steps):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        latte.generate(num_frames=2, classes=torch.tensor([1]), **FAST, progress=failing)
    assert modes(latte) == before


def test_classes_and_texts_change_the_video():
    latte, options = measured(**TOLD), {"num_frames": 4, "steps": 3, "cond_scale": 1.0}

    def video(**given):
        return latte.generate(**{"classes": torch.tensor([0]), "texts": "snow", **given}, **options, generator=seed())

    assert not torch.equal(video(), video(classes=torch.tensor([1])))
    assert not torch.equal(video(), video(texts="a red circle"))


def test_guidance_moves_away_from_what_no_condition_gives():
    latte, options = measured(num_classes=3), {"num_frames": 4, "sampler": "ddim", "steps": 1}
    _, read, decoded = spied(latte)

    def latents(scale):
        latte.generate(classes=torch.tensor([1]), cond_scale=scale, **options, generator=seed())
        return latte.standardisation.standardised(decoded[-1])

    null, cond, twice = (latents(scale) for scale in (0.0, 1.0, 2.0))
    assert not torch.allclose(null, cond)
    torch.testing.assert_close(twice - null, 2 * (cond - null), rtol=1e-3, atol=1e-3)
    assert [len(x) for x, _ in read] == [2, 1, 2]  # both sides are one batch, without guidance there is one side


def test_the_number_of_steps_is_the_samplers_if_none_is_given():
    latte = measured(dim=4, heads=1)

    def steps(progress):
        raise KeyboardInterrupt(len(progress))

    for sampler, count in (("ddpm", 250), ("ddim", 50)):
        with pytest.raises(KeyboardInterrupt, match=str(count)):
            latte.generate(num_frames=2, sampler=sampler, cond_scale=1.0, progress=steps)


@every_codec
def test_given_frames_are_pinned_in_every_step_and_at_the_end(name):
    latte = measured(codec=CODECS[name]())
    frames = torch.rand(2, 3, latte.codec.num_frames(2), 16, 16)
    expected = latte.codec.latents(frames)
    encoded, read, decoded = spied(latte)
    latte.generate(num_frames=2, prime_frames=frames, steps=4, sampler="ddim")
    assert len(encoded) == 1 and torch.equal(encoded[0], frames)
    torch.testing.assert_close(decoded[0][:, :2], expected)
    standardised = latte.standardisation.standardised(expected)
    noise = []
    for x, time in read:
        alpha_bar = Diffusion().alphas_bar[time][:, None, None, None, None].float()
        noise.append((x[:, :2] - alpha_bar.sqrt() * standardised) / (1 - alpha_bar).sqrt())
    assert 0.7 < torch.stack(noise).std() < 1.3 and len(read) == 4
    assert not torch.allclose(noise[0], noise[1])


def test_an_image_is_animated():
    latte = measured(num_classes=3)
    _, _, decoded = spied(latte)
    image = torch.rand(2, 3, 16, 16)
    video = latte.generate(num_frames=4, prime_frames=image, classes=torch.tensor([0, 2]), **FAST)
    assert video.shape == (2, 3, 4, 16, 16)
    torch.testing.assert_close(decoded[0][:, :1], latte.codec.latents(image))


def test_each_window_goes_on_from_the_last_frames_before_it():
    latte = measured()
    encoded, _, _ = spied(latte)
    video = latte.generate(num_frames=15, overlap=3, **FAST, generator=seed())
    assert [tuple(frames.shape) for frames in encoded] == [(1, 3, 3, 16, 16)] * 2
    assert torch.equal(encoded[0], video[:, :, 4:7]) and torch.equal(encoded[1], video[:, :, 8:11])


def test_images_are_generated():
    latte = measured(**TOLD)
    images = latte.generate_images(TEXTS, classes=torch.tensor([0, 1]), steps=2, generator=seed())
    assert images.shape == (2, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, latte.generate_images(TEXTS, classes=torch.tensor([0, 1]), steps=2, generator=seed()))
    with pytest.raises(ValueError, match=r"frames, got 1"):
        measured(codec=ToyTokenizer(3, 2)).generate_images(steps=2)


def test_bfloat16_weights_train_and_generate():
    latte = tiny_latte(num_classes=3).bfloat16()
    latte(clips(latte).bfloat16(), classes=torch.tensor([0, 1])).backward()
    assert latte.standardisation.statistics().mean.dtype == torch.float32
    assert latte.generate(num_frames=3, classes=torch.tensor([0]), **FAST).isfinite().all()


def test_text_embeddings_are_enough():
    latte = measured(dim_context=12)
    latte = Latte(codec=latte.codec, transformer=latte.transformer)
    embeds, mask = torch.randn(2, 4, 12), torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    assert latte(clips(latte), text_embeds=embeds, text_mask=mask).isfinite()
    assert latte.generate(num_frames=2, text_embeds=embeds, text_mask=mask, **FAST).shape[0] == 2
    with pytest.raises(ValueError, match="no text encoder: expected text_embeds, got texts"):
        latte(clips(latte), texts=TEXTS)
