"""Phenaki: a frozen tokenizer, any number of frames, primes and stories, and no chance but the generator's."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import WordEncoder, same_state, seed, state, tiny_cvivit, tiny_maskgit, tiny_phenaki, train
from phenaki_pytorch import Phenaki

TEXTS = ["a red circle", "snow"]
FAST = {"steps": 2, "cond_scale": 3.0}


def clips(b=2, frames=11):
    return torch.rand(b, 3, frames, 16, 16)


def spied(model):
    """The options of each call of maskgit.generate, kept in a list."""
    calls, inside = [], model.maskgit.generate
    model.maskgit.generate = lambda *args, **options: calls.append(options) or inside(*args, **options)
    return calls


# the tokenizer is frozen


def test_training_leaves_the_tokenizer_bit_for_bit_as_it_was():
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
def test_exactly_what_asks_for_a_gradient_gets_one(cond_drop_prob):
    model = tiny_phenaki(cond_drop_prob=cond_drop_prob)
    model(clips(), texts=TEXTS).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith("maskgit."), name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_all_of_it_follows_to():
    model = tiny_phenaki().to("meta")
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    model = tiny_phenaki().to(torch.float64)
    assert model.cvivit.encoder.embed_first.weight.dtype == torch.float64
    assert model.cvivit.quantizer.quantizer.codebook.dtype == torch.float32
    model(clips().double(), texts=TEXTS).backward()
    assert model.generate(TEXTS, num_frames=15, prime_frames=clips(frames=3), **FAST).shape[2] == 15


# loss


def test_videos_or_their_ids_texts_or_their_embeddings():
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


def test_padded_frames_of_a_mixed_batch_change_nothing():
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


def test_the_loss_of_an_image_touches_its_own_frame_only(monkeypatch):
    model, seen = tiny_phenaki(), []
    model.maskgit.to_logits.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    monkeypatch.setattr("phenaki_pytorch.maskgit.draw_mask", lambda real, **_: real)
    mask = torch.arange(11) < torch.tensor([[11], [1]])
    model(clips(), texts=TEXTS, frame_mask=mask)
    model(clips()[:, :, 0], texts=TEXTS)
    assert seen == [6 * 4 + 4, 2 * 4]


def test_of_so_many_time_steps_that_are_given_nothing_is_learnt(monkeypatch):
    model, seen = tiny_phenaki(), []
    model.maskgit.to_logits.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    monkeypatch.setattr("phenaki_pytorch.maskgit.draw_mask", lambda real, **_: real)
    model(clips(), texts=TEXTS, prime_steps=torch.tensor([5, 2]))
    assert seen == [(6 - 5) * 4 + (6 - 2) * 4]
    with pytest.raises(ValueError, match=r"prime_steps must be .*\[6, 6\], got \[6, 0\]"):
        model(clips(), texts=TEXTS, prime_steps=torch.tensor([6, 0]))


def test_without_texts_it_learns_and_draws():
    model, videos = tiny_phenaki(dim_context=None), clips()
    assert model.text_encoder is None
    losses = train(model, lambda: model(videos), 40, lr=5e-3)
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
    assert model.generate(num_frames=13, batch_size=3, **FAST).shape == (3, 3, 13, 16, 16)
    assert model.generate_images(batch_size=3, **FAST).shape == (3, 3, 16, 16)


# generation


@pytest.fixture(scope="module")
def model():
    """Its frames leave [0, 1] where they are not clamped."""
    torch.manual_seed(0)
    cvivit = tiny_cvivit()
    for layer in (cvivit.decoder.pixels_first, cvivit.decoder.pixels_rest):
        layer.weight.data *= 20
    return tiny_phenaki(cvivit=cvivit)


@pytest.mark.parametrize("prime", [None, 0, 1, 2, 4, 5, 11, 14])
def test_any_number_of_frames_after_any_number_of_primes(model, prime):
    prime_frames = None if prime is None else clips(1)[:, :, 0] if prime == 0 else clips(1, prime)
    for num_frames in (*range(1, 14), 17, 23, 40) if prime in (None, 4) else (1, 6, 11, 23):
        video = model.generate("snow", num_frames=num_frames, prime_frames=prime_frames, **FAST)
        assert video.shape == (1, 3, num_frames, 16, 16)
        assert video.min() >= 0 and video.max() <= 1


def test_images_are_windows_of_one_frame(model):
    images = model.generate_images(TEXTS, steps=2, generator=seed())
    assert images.shape == (2, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    context, context_mask = model.text_encoder(TEXTS)
    ids = model.maskgit.generate((1, 2, 2), context=context, context_mask=context_mask, steps=2, generator=seed())
    assert torch.equal(images, model.cvivit.decode(ids)[:, :, 0].clamp(0, 1))


def test_what_is_drawn_is_the_decoded_ids_cut_to_the_count(model):
    context, context_mask = model.text_encoder(TEXTS)
    ids = model.maskgit.generate(context=context, context_mask=context_mask, generator=seed(), **FAST)
    decoded = model.cvivit.decode(ids)
    assert decoded.shape[2] == 11 and decoded.max() > 1 and decoded.min() < 0
    assert torch.equal(model.generate(TEXTS, num_frames=8, generator=seed(), **FAST), decoded.clamp(0, 1)[:, :, :8])


@pytest.mark.parametrize(
    "given, looked_at",
    [
        (1, [1, 5, 5]),
        (2, [1, 5, 5]),
        (3, [3, 5, 5]),
        (5, [5, 5, 5]),
        (8, [7, 5, 5]),
        (10, [9, 5, 5]),
        (12, [5, 5, 5]),
    ],
)
def test_as_many_of_the_last_frames_prime_as_the_tokenizer_takes(given, looked_at):
    model, primes = tiny_phenaki(), clips(2, given)
    calls = spied(model)
    video = model.generate(TEXTS, num_frames=11 - looked_at[0] + 12, prime_frames=primes, **FAST)
    frames = torch.cat((primes, video), dim=2)
    end = given
    assert len(calls) == 3
    for call, count in zip(calls, looked_at):
        assert torch.equal(call["prime_ids"], model.cvivit.encode(frames[:, :, end - count : end]))
        end += 11 - count


@pytest.mark.parametrize("overlap", [1, 3, 5, 9])
def test_windows_slide_by_encoding_the_last_frames_again(overlap):
    model = tiny_phenaki()
    calls = spied(model)
    video = model.generate(TEXTS, num_frames=11 + 2 * (11 - overlap), overlap=overlap, **FAST)
    assert calls[0]["prime_ids"] is None
    assert len(calls) == 3
    for i, call in enumerate(calls[1:]):
        end = 11 + i * (11 - overlap)
        assert torch.equal(call["prime_ids"], model.cvivit.encode(video[:, :, end - overlap : end]))


def test_an_image_is_set_in_motion_from_its_own_ids():
    model, images = tiny_phenaki(), clips()[:, :, 0]
    drawn, inside = [], model.maskgit.generate
    model.maskgit.generate = lambda *args, **options: drawn.append(inside(*args, **options)) or drawn[0]
    video = model.generate(TEXTS, num_frames=10, prime_frames=images, **FAST)
    assert video.shape[2] == 10
    assert torch.equal(drawn[0][:, :1], model.cvivit.encode(images))
    assert torch.equal(video, model.cvivit.decode(drawn[0])[:, :, 1:].clamp(0, 1))


@pytest.mark.parametrize("given, predicted", [(1, 15), (5, 11)])
def test_prediction_of_16_frames_from_a_window_of_17(given, predicted):
    model, primes = tiny_phenaki(dim_context=None, grid=(9, 2, 2)), clips(2, given)
    calls = spied(model)
    video = model.generate(num_frames=predicted, batch_size=2, prime_frames=primes, **FAST)
    assert model.window == 17
    assert video.shape == (2, 3, predicted, 16, 16)
    assert len(calls) == 1
    assert torch.equal(calls[0]["prime_ids"], model.cvivit.encode(primes))


@pytest.mark.parametrize("pt, grid", [(1, (4, 2, 2)), (3, (3, 2, 2))])
def test_other_tubelets_slide_as_well(pt, grid):
    model = tiny_phenaki(cvivit=tiny_cvivit(temporal_patch_size=pt), grid=grid)
    calls = spied(model)
    overlap = 1 + pt
    for prime in (None, *(clips(1, n) for n in range(1, 9))):
        for num_frames in (1, 6, 13):
            video = model.generate("snow", num_frames=num_frames, prime_frames=prime, overlap=overlap, **FAST)
            assert video.shape[2] == num_frames
    assert all(call["prime_ids"] is None or call["prime_ids"].shape[1] < grid[0] for call in calls)


# stories


@pytest.mark.parametrize("n", [1, 2, 3])
def test_n_prompts_of_a_story_are_11_and_6_times_n_less_1_frames(n):
    model = tiny_phenaki()
    calls = spied(model)
    prompts = ["snow falls", "a red circle moves", "rain"][:n]
    video, scenes = model.generate_story(prompts, num_frames=[11, 6, 6][:n], **FAST)
    assert video.shape == (1, 3, 11 + 6 * (n - 1), 16, 16)
    assert [scene.shape[2] for scene in scenes] == [11, 6, 6][:n]
    assert torch.equal(torch.cat(scenes, dim=2), video)
    assert model.text_encoder.calls == [[prompt] for prompt in prompts]
    assert len(calls) == n
    for i, call in enumerate(calls[1:]):
        end = 11 + 6 * i
        assert torch.equal(call["prime_ids"], model.cvivit.encode(video[:, :, end - 5 : end]))


def test_several_stories_go_side_by_side():
    model = tiny_phenaki()
    stories = [["snow", "rain"], ["a circle", "a red circle moves"], ["rain", "snow"]]
    video, scenes = model.generate_story(stories, num_frames=13, overlap=3, **FAST)
    assert video.shape == (3, 3, 26, 16, 16)
    assert [scene.shape[2] for scene in scenes] == [13, 13]
    assert model.text_encoder.calls == [["snow", "a circle", "rain"], ["rain", "a red circle moves", "snow"]]


def test_scenes_shorter_than_the_overlap_are_looked_back_on_as_far_as_they_go():
    model = tiny_phenaki()
    calls = spied(model)
    video, _ = model.generate_story(["snow", "rain", "a circle"], num_frames=[2, 2, 1], **FAST)
    assert video.shape[2] == 5
    assert torch.equal(calls[1]["prime_ids"], model.cvivit.encode(video[:, :, 1:2]))
    assert torch.equal(calls[2]["prime_ids"], model.cvivit.encode(video[:, :, 1:4]))


def test_one_bare_prompt_is_no_list_of_scenes():
    with pytest.raises(TypeError, match="list"):
        tiny_phenaki().generate_story("snow falls", num_frames=6)


# chance, progress, company


def test_the_generator_is_the_only_source_of_chance(model):
    before = torch.get_rng_state()
    for draw in (
        lambda i: model.generate(TEXTS, num_frames=20, generator=seed(i), **FAST),
        lambda i: model.generate_images(TEXTS, generator=seed(i), **FAST),
        lambda i: model.generate_story(TEXTS, num_frames=9, generator=seed(i), **FAST)[0],
    ):
        one, again, other = draw(0), draw(0), draw(1)
        assert torch.equal(one, again)
        assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_progress_is_told_of_every_window(model):
    seen = []
    model.generate("snow", num_frames=20, progress=lambda passes: seen.append(len(passes)) or passes, steps=3)
    assert seen == [3, 3, 3]


def test_texts_or_their_embeddings_draw_the_same(model):
    embeds, mask = model.text_encoder(TEXTS)
    one = model.generate(TEXTS, num_frames=5, generator=seed(), **FAST)
    assert torch.equal(model.generate(text_embeds=embeds, text_mask=mask, num_frames=5, generator=seed(), **FAST), one)


def test_a_text_encoder_of_ones_own_is_no_part_of_the_model():
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


ALONE = """
import socket, sys
def refuse(*_):
    raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
import torch
from conftest import WordEncoder, tiny_cvivit, tiny_maskgit, tiny_phenaki
from phenaki_pytorch import Phenaki
with_t5 = Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_maskgit(dim_context=768))
for model, dim in ((tiny_phenaki(), 12), (with_t5, 768)):
    embeds, mask = WordEncoder(dim)(["snow", "a red circle"])
    model(torch.rand(2, 3, 11, 16, 16), text_embeds=embeds, text_mask=mask).backward()
    model.generate(text_embeds=embeds, text_mask=mask, num_frames=13, steps=2)
tiny_phenaki().generate("snow", num_frames=3, steps=2)
assert "transformers" not in sys.modules
print("alone")
"""


def test_no_network_and_no_transformers_where_embeddings_or_an_encoder_are_given():
    run = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=120
    )
    assert run.stdout == "alone\n", run.stderr
