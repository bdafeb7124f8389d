"""Phenaki: the frozen tokenizer, the loss, generation, and what generation does not change."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import (
    WordEncoder,
    make_context,
    make_ids,
    modes,
    same_state,
    seed,
    state,
    tiny_cvivit,
    tiny_discriminator,
    tiny_maskgit,
    tiny_phenaki,
    train,
)
from phenaki_pytorch import Phenaki, SelfCritic

TEXTS = ["a red circle", "snow"]
FAST = {"steps": 2, "cond_scale": 3.0}


def clips(b=2, frames=11):
    return torch.rand(b, 3, frames, 16, 16)


def spied(model):
    """The options of each call of maskgit.generate, kept in a list."""
    calls, inside = [], model.maskgit.generate
    model.maskgit.generate = lambda *args, **options: calls.append(options) or inside(*args, **options)
    return calls


def masked_lengths(model, monkeypatch):
    """Mask all tokens that may be masked; their numbers in each loss are kept in a list."""
    lengths = []
    model.maskgit.to_logits.register_forward_pre_hook(lambda _, args: lengths.append(len(args[0])))
    monkeypatch.setattr("phenaki_pytorch.priors.maskgit.draw_mask", lambda real, **_: real)
    return lengths


# the tokenizer is frozen


def test_training_does_not_change_the_tokenizer_or_its_eval_mode():
    model = tiny_phenaki().train()
    before, maskgit = state(model.cvivit), state(model.maskgit)
    videos = clips()
    train(model, lambda: model(videos, texts=TEXTS), 3, weight_decay=0.5)
    assert same_state(before, model.cvivit.state_dict())
    assert not same_state(maskgit, model.maskgit.state_dict())
    assert not any(part.training for part in model.cvivit.modules())
    assert all(part.training for part in model.maskgit.modules())
    assert not any(part.training for part in model.eval().modules())


@pytest.mark.parametrize("cond_drop_prob", [0.0, 0.1])
def test_maskgits_parameters_have_gradients_and_the_tokenizers_have_none(cond_drop_prob):
    model = tiny_phenaki(cond_drop_prob=cond_drop_prob)
    model(clips(), texts=TEXTS).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("maskgit."), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_all_parts_follow_to():
    model = tiny_phenaki().to("meta")
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    model = tiny_phenaki().to(torch.float64)
    assert model.cvivit.encoder.embed_first.weight.dtype == torch.float64
    assert model.cvivit.quantizer.quantizer.codebook.dtype == torch.float32
    model(clips().double(), texts=TEXTS).backward()
    assert model.generate(TEXTS, num_frames=15, prime_frames=clips(frames=3), **FAST).shape[2] == 15


# loss


@pytest.mark.parametrize(
    "build, batch",
    [
        (tiny_cvivit, lambda: (clips(),)),
        (tiny_maskgit, lambda: (make_ids(), *make_context())),
        (lambda: tiny_phenaki(dim_context=None, critic=SelfCritic), lambda: (clips(),)),
        (tiny_discriminator, lambda: (clips(), clips())),
    ],
    ids=["CViViT", "MaskGit", "Phenaki", "Discriminator"],
)
def test_a_call_is_the_total_of_losses(build, batch):
    module, batch = build(), batch()
    before = state(module)
    torch.manual_seed(1)
    loss = module(*batch)
    module.load_state_dict(before)  # a training step moves the codebook, and counts the discriminator's steps
    torch.manual_seed(1)
    assert loss.ndim == 0 and loss.requires_grad and torch.equal(loss, module.losses(*batch).total)


def test_ids_replace_videos_and_embeddings_replace_texts():
    model, videos = tiny_phenaki(), clips()
    embeds, mask = model.text_encoder(TEXTS)

    def loss(*args, **options):
        torch.manual_seed(1)
        return model(*args, **options)

    expected = loss(videos, texts=TEXTS)
    assert torch.equal(loss(video_ids=model.cvivit.encode(videos), texts=TEXTS), expected)
    assert torch.equal(loss(videos, text_embeds=embeds, text_mask=mask), expected)
    assert not torch.equal(loss(videos, texts=TEXTS[::-1]), expected)
    assert not torch.equal(loss(videos, text_embeds=embeds), expected)  # padding is noise


def test_padded_frames_do_not_change_the_loss_of_videos_and_images_together():
    model, videos = tiny_phenaki(), clips()
    mask = torch.arange(11) < torch.tensor([[11], [1]])  # a video and an image

    def loss(videos, mask=mask):
        torch.manual_seed(1)
        return model(videos, texts=TEXTS, frame_mask=mask)

    other = videos.clone()
    other[1, :, 1:] = torch.rand(3, 10, 16, 16)
    assert torch.equal(loss(videos), loss(other))
    assert not torch.equal(loss(videos, None), loss(other, None))
    other[1, :, 0] = 1 - other[1, :, 0]
    assert not torch.equal(loss(videos), loss(other))


def test_the_loss_of_an_image_is_that_of_its_one_time_step(monkeypatch):
    model = tiny_phenaki()
    lengths, mask = masked_lengths(model, monkeypatch), torch.arange(11) < torch.tensor([[11], [1]])
    model(clips(), texts=TEXTS, frame_mask=mask)
    model(clips()[:, :, 0], texts=TEXTS)
    assert lengths == [6 * 4 + 4, 2 * 4]


def test_given_time_steps_are_not_in_the_loss(monkeypatch):
    model = tiny_phenaki()
    lengths = masked_lengths(model, monkeypatch)
    model(clips(), texts=TEXTS, prime_steps=torch.tensor([5, 2]))
    assert lengths == [(6 - 5) * 4 + (6 - 2) * 4]
    with pytest.raises(ValueError, match=r"prime_steps must be .*\[6, 6\], got \[6, 0\]"):
        model(clips(), texts=TEXTS, prime_steps=torch.tensor([6, 0]))


def test_an_unconditional_model_learns_and_generates():
    model, videos = tiny_phenaki(dim_context=None, depth=1), clips()
    assert model.text_encoder is None
    losses = train(model, lambda: model(videos), 25, lr=1e-2)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert model.generate(num_frames=13, batch_size=3, **FAST).shape == (3, 3, 13, 16, 16)
    assert model.generate_images(batch_size=3, **FAST).shape == (3, 3, 16, 16)


# generation


@pytest.fixture(scope="module")
def model():
    """Its decoder gives values outside [0, 1] as well."""
    torch.manual_seed(0)
    cvivit = tiny_cvivit()
    for layer in (cvivit.decoder.pixels_first, cvivit.decoder.pixels_rest):
        layer.weight.data *= 20
    return tiny_phenaki(cvivit=cvivit)


@pytest.mark.parametrize("prime", [None, 0, 1, 4, 11, 14])
def test_any_number_of_frames_after_any_number_of_prime_frames(model, prime):
    prime_frames = None if prime is None else clips(1)[:, :, 0] if prime == 0 else clips(1, prime)
    for num_frames in (1, 2, 6, 10, 11, 12, 23) if prime in (None, 4) else (1, 11, 17):
        video = model.generate("snow", num_frames=num_frames, prime_frames=prime_frames, **FAST)
        assert video.shape == (1, 3, num_frames, 16, 16)
        assert video.min() >= 0 and video.max() <= 1


def test_images_are_decoded_ids_of_one_time_step(model):
    images = model.generate_images(TEXTS, steps=2, generator=seed())
    assert images.shape == (2, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    context, context_mask = model.text_encoder(TEXTS)
    ids = model.maskgit.generate((1, 2, 2), context=context, context_mask=context_mask, steps=2, generator=seed())
    assert torch.equal(images, model.cvivit.decode(ids)[:, :, 0].clamp(0, 1))


def test_a_video_is_the_decoded_ids_clamped_and_cut_to_the_number_of_frames(model):
    context, context_mask = model.text_encoder(TEXTS)
    ids = model.maskgit.generate(context=context, context_mask=context_mask, generator=seed(), **FAST)
    decoded = model.cvivit.decode(ids)
    assert decoded.shape[2] == 11 and decoded.max() > 1 and decoded.min() < 0
    assert torch.equal(model.generate(TEXTS, num_frames=8, generator=seed(), **FAST), decoded.clamp(0, 1)[:, :, :8])


@pytest.mark.parametrize(
    "given, kept",
    [
        (1, [1, 5, 5]),
        (2, [1, 5, 5]),
        (5, [5, 5, 5]),
        (8, [7, 5, 5]),
        (10, [9, 5, 5]),
        (12, [5, 5, 5]),
    ],
)
def test_as_many_of_the_last_prime_frames_are_kept_as_the_tokenizer_takes(given, kept):
    model, primes = tiny_phenaki(), clips(2, given)
    calls = spied(model)
    video = model.generate(TEXTS, num_frames=11 - kept[0] + 12, prime_frames=primes, **FAST)
    frames = torch.cat((primes, video), dim=2)
    end = given
    assert len(calls) == 3
    for call, count in zip(calls, kept):
        assert torch.equal(call["prime_ids"], model.cvivit.encode(frames[:, :, end - count : end]))
        end += 11 - count


def test_an_animated_image_begins_with_its_own_ids():
    model, images = tiny_phenaki(), clips()[:, :, 0]
    sampled, inside = [], model.maskgit.generate
    model.maskgit.generate = lambda *args, **options: sampled.append(inside(*args, **options)) or sampled[0]
    video = model.generate(TEXTS, num_frames=10, prime_frames=images, **FAST)
    assert video.shape[2] == 10
    assert torch.equal(sampled[0][:, :1], model.cvivit.encode(images))
    assert torch.equal(video, model.cvivit.decode(sampled[0])[:, :, 1:].clamp(0, 1))


@pytest.mark.parametrize("given, predicted", [(1, 15), (5, 11)])
def test_prediction_of_16_frames_is_one_window_of_17(given, predicted):
    model, primes = tiny_phenaki(dim_context=None, grid=(9, 2, 2)), clips(2, given)
    calls = spied(model)
    video = model.generate(num_frames=predicted, batch_size=2, prime_frames=primes, **FAST)
    assert model.window == 17
    assert video.shape == (2, 3, predicted, 16, 16)
    assert len(calls) == 1
    assert torch.equal(calls[0]["prime_ids"], model.cvivit.encode(primes))


# randomness, progress, modes, texts


def test_all_randomness_comes_from_the_generator(model):
    before = torch.get_rng_state()
    for generated in (
        lambda i: model.generate(TEXTS, num_frames=12, generator=seed(i), **FAST),
        lambda i: model.generate_images(TEXTS, generator=seed(i), **FAST),
        lambda i: model.generate_story(TEXTS, num_frames=6, generator=seed(i), **FAST)[0],
    ):
        one, again, other = generated(0), generated(0), generated(1)
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_wraps_the_steps_of_every_window(model):
    seen = []
    model.generate("snow", num_frames=20, progress=lambda passes: seen.append(len(passes)) or passes, steps=3)
    assert seen == [3, 3, 3]


def test_the_modes_of_all_parts_are_as_before_generation_also_after_an_error():
    model = tiny_phenaki(critic=SelfCritic).train()
    model.maskgit.transformer.blocks[0].eval(), model.critic.to_logits.eval()  # by themselves: they stay so
    before = modes(model)

    def fail(passes):
        assert not any(part.training for part in model.maskgit.modules())
        raise ZeroDivisionError

    calls = [
        lambda **options: model.generate("snow", num_frames=12, **options),
        lambda **options: model.generate_images("snow", **options),
        lambda **options: model.generate_story(["snow"], num_frames=3, **options),
    ]
    for call in calls:
        call(**FAST)
        assert modes(model) == before
        with pytest.raises(ZeroDivisionError):
            call(**FAST, progress=fail)
        assert modes(model) == before


def test_texts_and_their_embeddings_generate_the_same(model):
    embeds, mask = model.text_encoder(TEXTS)
    one = model.generate(TEXTS, num_frames=5, generator=seed(), **FAST)
    assert torch.equal(model.generate(text_embeds=embeds, text_mask=mask, num_frames=5, generator=seed(), **FAST), one)


def test_the_users_own_text_encoder_is_not_a_part_of_the_model():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, texts):
            embeds, mask = WordEncoder()(texts)
            return embeds * self.scale, mask

    encoder = Encoder()
    model = Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_maskgit(), text_encoder=encoder)
    assert model.text_encoder is encoder
    assert not any("scale" in name for name in model.state_dict())
    model(clips(), texts=TEXTS).backward()


OFFLINE = """
import socket, sys
def refuse(*_):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import torch
from conftest import WordEncoder, tiny_cvivit, tiny_maskgit, tiny_phenaki
from phenaki_pytorch import Phenaki
with_t5 = Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_maskgit(dim_context=768, depth=1))
for model, dim in ((tiny_phenaki(), 12), (with_t5, 768)):
    embeds, mask = WordEncoder(dim)(["snow", "a red circle"])
    model(torch.rand(2, 3, 11, 16, 16), text_embeds=embeds, text_mask=mask).backward()
    model.generate(text_embeds=embeds, text_mask=mask, num_frames=3, steps=1)
tiny_phenaki().generate("snow", num_frames=3, steps=1)
assert "transformers" not in sys.modules
print("offline")
"""


def test_with_embeddings_or_an_encoder_there_is_no_network_and_no_import_of_transformers():
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=120
    )
    assert run.stdout == "offline\n", run.stderr
