"""Latte: any first stage, classes, texts and images in training, given frames, long videos, saving."""

from functools import partial

import pytest
import torch

from conftest import ToyTokenizer, WordEncoder, same_state, seed, state, tiny_latte, tiny_videogpt, train
from latte_models import CODECS, FAST, LABELS, TEXTS, TOLD, clips, every_codec, every_combination, measured
from phenaki_pytorch import Latte
from phenaki_pytorch.diffusion.process import Diffusion
from phenaki_pytorch.diffusion.standardisation import Standardisation

pytestmark = pytest.mark.filterwarnings("ignore:left out of the saved model:UserWarning")


# loss


@every_codec
def test_the_loss_is_that_of_the_standardised_latents(name):
    latte = measured(codec=CODECS[name](), **TOLD)
    video = clips(latte)
    torch.manual_seed(1)
    losses = latte.losses(video, **LABELS)
    context, context_mask = latte.text_encoder(TEXTS)
    named = {"classes": LABELS["classes"], "context": context, "context_mask": context_mask}
    latents = latte.codec.latents(video)
    torch.manual_seed(1)
    expected = Diffusion().losses(partial(latte.transformer, **named), latte.standardisation.standardised(latents))
    torch.testing.assert_close(losses, expected)
    torch.manual_seed(1)
    torch.testing.assert_close(latte(latents=latents, **LABELS), losses.total)
    torch.manual_seed(1)
    assert latte(latents=latents, classes=LABELS["classes"], texts=["snow", "snow"]) != losses.total


def test_training_alone_measures_the_latents():
    latte = tiny_latte()
    before = state(latte.standardisation)
    latte.eval()(clips(latte))
    latte.generate(num_frames=2, **FAST)
    assert same_state(before, state(latte.standardisation))
    video = clips(latte)
    latte.train()(video)
    latents = latte.codec.latents(video)
    standardised = latte.standardisation.standardised(latents)
    torch.testing.assert_close(standardised.mean(dim=(0, 1, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(standardised.var(dim=(0, 1, 2, 3), correction=0), torch.ones(8))
    torch.testing.assert_close(latte.standardisation.restored(standardised), latents)


def test_latents_that_are_not_to_be_standardised_stay_as_they_are():
    latte = tiny_latte(standardise=False)
    latte.train()(clips(latte))
    latents = latte.codec.latents(clips(latte))
    assert torch.equal(latte.standardisation.standardised(latents), latents)
    assert torch.equal(latte.standardisation.restored(latents), latents)


def test_a_channel_without_variance_stays_finite():
    standardisation = Standardisation(code_dim=2)
    standardisation.measure(torch.full((2, 3, 1, 1, 2), 5.0))
    assert standardisation.standardised(torch.full((1, 1, 1, 1, 2), 5.0)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_standardised_latents_keep_their_dtype(dtype):
    standardisation = Standardisation(code_dim=2)
    standardisation.measure(torch.randn(2, 3, 1, 1, 2))
    latents = torch.randn(1, 1, 1, 1, 2, dtype=dtype)
    assert standardisation.standardised(latents).dtype == standardisation.restored(latents).dtype == dtype


def test_images_are_trained_beside_the_videos():
    latte = measured(**TOLD)
    video, images = clips(latte), torch.rand(2, 3, 3, 16, 16)
    image_classes = torch.tensor([[0, 1, 2], [2, 1, 0]])
    embeds, mask = torch.randn(2, 3, 5, 12), torch.ones(2, 3, 5, dtype=torch.bool)
    given = {"image_classes": image_classes, "image_text_embeds": embeds, "image_text_mask": mask}
    torch.manual_seed(1)
    losses = latte.losses(video, **LABELS, images=images, **given)
    assert losses.total.isfinite()
    latents = torch.stack([latte.codec.latents(each[:, :, None])[:, 0] for each in images])
    torch.manual_seed(1)
    torch.testing.assert_close(latte(video, **LABELS, image_latents=latents, **given), losses.total)
    for change in (
        {"images": images.flip(1)},
        {"image_classes": image_classes.flip(1)},
        {"image_text_embeds": embeds.flip(1)},
        {"image_text_mask": mask & (torch.arange(5) < 2)},
    ):
        torch.manual_seed(1)
        assert latte(video, **LABELS, **{"images": images, **given, **change}) != losses.total


def test_the_length_to_which_texts_are_padded_changes_nothing():
    latte = measured(dim_context=12)
    video, images = clips(latte), torch.rand(2, 1, 3, 16, 16)
    embeds, more = torch.randn(2, 1, 6, 12), torch.randn(2, 1, 6, 12)
    mask = torch.tensor([[[True] * 2 + [False] * 4]] * 2)
    context, context_mask = torch.randn(2, 3, 12), torch.tensor([[True] * 3, [True] * 2 + [False]])
    losses = []
    for image_embeds, image_mask in (
        (embeds, mask),
        (torch.where(mask[..., None], embeds, more), mask),
        (embeds[:, :, :2], None),
    ):
        torch.manual_seed(1)
        given = {"text_embeds": context, "text_mask": context_mask, "image_text_embeds": image_embeds}
        losses.append(latte(video, images=images, **given, image_text_mask=image_mask))
    torch.testing.assert_close(losses[1:], losses[:1] * 2)


def test_training_drops_conditions_and_eval_mode_does_not():
    latte = measured(num_classes=3, cond_drop_prob=1.0)
    latents = latte.codec.latents(clips(latte))

    def losses(mode):
        latte.train(mode)
        for classes in (torch.tensor([0, 0]), torch.tensor([2, 1])):
            torch.manual_seed(1)
            yield latte(latents=latents, classes=classes)

    latte.standardise = False  # so that nothing is measured in between
    one, other = losses(True)
    assert torch.equal(one, other)
    one, other = losses(False)
    assert not torch.equal(one, other)


@every_codec
def test_training_leaves_the_codec_as_it_was(name):
    latte = tiny_latte(codec=CODECS[name]())
    before, video = state(latte.codec), clips(latte)
    frozen = {id(parameter) for parameter in latte.codec.parameters()}
    train(latte, lambda: latte(video), 2, weight_decay=0.1)
    assert same_state(before, state(latte.codec)) and not any(part.training for part in latte.codec.modules())
    trained = [parameter for parameter in latte.parameters() if parameter.requires_grad]
    assert trained and not frozen & {id(parameter) for parameter in trained}
    assert all(parameter.grad is not None for parameter in trained)


def test_two_steps_of_training_lower_the_loss():
    latte = tiny_latte(started=False)
    latents = latte.codec.latents(clips(latte))

    def loss():
        torch.manual_seed(1)
        return latte(latents=latents)

    first = loss().item()
    train(latte, loss, 10, lr=1e-2)
    assert loss().item() < 0.9 * first


@every_combination
def test_every_kind_of_transformer_is_trained_generates_and_is_saved(
    variant, patches, conditioning, time_positions, tmp_path
):
    kinds = {"variant": variant, "patches": patches, "conditioning": conditioning, "time_positions": time_positions}
    latte = tiny_latte(**kinds, **TOLD)
    latte(clips(latte), **LABELS).backward()
    assert all(value.grad.abs().max() > 0 for name, value in latte.transformer.named_parameters() if "null" not in name)
    options = {**LABELS, "num_frames": latte.window, "steps": 2, "cond_scale": 3.0}
    video = latte.generate(**options, generator=seed())
    assert video.shape == (2, 3, latte.window, 16, 16) and video.min() >= 0 and video.max() <= 1
    latte.save_pretrained(tmp_path)
    loaded = Latte.from_pretrained(tmp_path, text_encoder=latte.text_encoder)
    assert torch.equal(loaded.generate(**options, generator=seed()), video)


# saving


def test_a_loaded_model_trains_and_generates_the_same(tmp_path):
    latte = tiny_latte(**TOLD)
    video = clips(latte)
    train(latte, lambda: latte(video, **LABELS), 2)
    latte.save_pretrained(tmp_path)
    loaded = Latte.from_pretrained(tmp_path, text_encoder=WordEncoder())
    assert same_state(state(latte), state(loaded))
    for model in (latte, loaded):
        torch.manual_seed(1)
        train(model, lambda model=model: model(video, **LABELS), 1)
    assert same_state(state(latte), state(loaded))
    one, other = (model.generate(**LABELS, num_frames=9, steps=2, generator=seed()) for model in (latte, loaded))
    assert torch.equal(one, other)


def test_a_codec_of_the_users_own_has_to_be_given_again(tmp_path):
    latte = tiny_latte(codec=ToyTokenizer(1, 2), standardise=False)
    with pytest.warns(UserWarning, match=r"left out of the saved model.*\['codec'\]"):
        latte.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs \['codec'\]"):
        Latte.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="codec must be a module, got a str"):
        Latte.from_pretrained(tmp_path, codec="my-tokenizer")
    loaded = Latte.from_pretrained(tmp_path, codec=ToyTokenizer(1, 2))
    assert not loaded.standardise
    one, other = (model.eval().generate(num_frames=3, **FAST, generator=seed()) for model in (latte, loaded))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name, value", [("variance", -1.0), ("values", -1.0), ("batches", -1)])
def test_statistics_that_nothing_could_have_are_refused(name, value, tmp_path):
    latte = tiny_latte()
    getattr(latte.standardisation.statistics, name).fill_(value)
    latte.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"the {name} of .* must be at least 0, got -1"):
        Latte.from_pretrained(tmp_path)


def test_folders_of_another_system_are_named(tmp_path):
    tiny_videogpt(grid=(3, 2, 2)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"parts of an earlier model.*\['tokenizer', 'gpt'\]"):
        tiny_latte().save_pretrained(tmp_path)


def test_statistics_of_another_model_are_refused(tmp_path):
    tiny_latte().save_pretrained(tmp_path)
    Standardisation(code_dim=3).save_pretrained(tmp_path / "standardisation")
    with pytest.raises(ValueError, match="code_dim must be that of the model, 8, got 3"):
        Latte.from_pretrained(tmp_path)
