"""VideoGPT: frames, actions, classes and texts act where they belong, in the loss and in every window."""

import math

import pytest
import torch
from torch import nn

from conftest import (
    seed,
    tiny_cvivit,
    tiny_frame_encoder,
    tiny_gpt,
    tiny_vqgan,
    tiny_vqvae,
)
from phenaki_pytorch import GPT, VideoGPT
from videogpt_models import GRID, TEXTS, all_parts, clips, given, spied, videogpt


@all_parts
def test_the_untrained_loss_is_ln_k_and_every_parameter_of_the_prior_learns(parts):
    model = videogpt(*parts, started=False)
    losses = model.losses(clips(), **given(*parts))
    assert losses.total.item() == pytest.approx(math.log(32), abs=1e-6) and losses.nats.shape == (2, *GRID)
    nn.init.normal_(model.gpt.to_logits.weight)
    model(clips(), **given(*parts)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("tokenizer.")), name
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if parameter.requires_grad and "null_context" not in name:
            assert parameter.grad.abs().max() > 0, name


@all_parts
def test_the_loss_is_gpts_of_the_ids_and_what_the_parts_make(parts):
    model, videos, labels = videogpt(*parts).eval(), clips(), given(*parts)
    condition = {}
    if "actions" in parts:  # two frames a time step, side by side
        condition["condition"] = labels["actions"].reshape(2, 3, 4)
    if "classes" in parts:
        classes = torch.eye(3)[labels["classes"]]
        actions = condition.get("condition")
        classes = classes if actions is None else classes[:, None].expand(-1, 3, -1)
        condition["condition"] = classes if actions is None else torch.cat((classes, actions), dim=-1)
    if model.frame_encoder is not None:
        condition[model.frame_input] = model.frame_encoder(videos[:, :, :1])
    if "texts" in parts:
        condition |= dict(zip(("context", "context_mask"), model.text_encoder(TEXTS)))
    ids = model.tokenizer.encode(videos)
    expected = model.gpt(ids, **condition)
    assert torch.equal(model(videos, **labels), expected)
    shown = {} if model.frame_encoder is None else {"frames": videos[:, :, 0]}
    assert torch.equal(model(video_ids=ids, **shown, **labels), expected)
    assert model(video_ids=(ids + 1) % 32, **shown, **labels) != expected


@pytest.mark.parametrize("build, short", [(tiny_vqvae, 2), (tiny_vqgan, 1), (tiny_cvivit, 1)])
@pytest.mark.parametrize("parts", [(), ("vector", "actions")])
def test_padded_clips_have_the_loss_of_the_clips_alone(build, short, parts):
    tokenizer = build()
    model = videogpt(*parts, tokenizer=tokenizer).eval()
    f = tokenizer.num_frames(3)
    videos, labels = clips(f=f), given(*parts, f=f)
    frame_mask = torch.arange(f) < torch.tensor([[f], [short]])
    padded = videos.masked_fill(~frame_mask[:, None, :, None, None], float("nan"))
    padded_labels = dict(labels)
    if "actions" in parts:
        padded_labels["actions"] = labels["actions"].masked_fill(~frame_mask[..., None], float("nan"))
    together = model(padded, **padded_labels, frame_mask=frame_mask)
    long = model(videos[:1], **{name: value[:1] for name, value in labels.items()})
    alone = model(videos[1:, :, :short], **{name: value[1:, :short] for name, value in labels.items()})
    torch.testing.assert_close(together, (12 * long + 4 * alone) / 16)
    assert abs(together - model(videos, **labels)) > 1e-5


def test_a_frame_encoder_of_several_frames_reads_padding_as_zeros():
    model = videogpt("vector", tokenizer=tiny_vqgan(), frame_encoder=tiny_frame_encoder(num_frames=3)).eval()
    videos, frame_mask = clips(f=5), torch.arange(5) < torch.tensor([[5], [1]])
    padded = videos.masked_fill(~frame_mask[:, None, :, None, None], float("nan"))
    zeros = padded.nan_to_num(0)
    assert torch.equal(model(padded, frame_mask=frame_mask), model(zeros, frame_mask=frame_mask))


def test_images_are_clips_of_one_frame():
    model, images = videogpt("vector", "classes", tokenizer=tiny_vqgan()).eval(), clips(f=1)
    labels = given("classes")
    assert torch.equal(model(images[:, :, 0], **labels), model(images, **labels))


def test_an_encoder_of_the_users_own_is_given_clips_also_of_images():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.scale = [], nn.Parameter(torch.ones(()))

        def forward(self, frames):
            self.seen.append(tuple(frames.shape))
            return self.scale * frames.mean(dim=(2, 3, 4))

    tokenizer = tiny_vqgan()
    gpt = tiny_gpt(code_dim=8, dim_frame_vector=3, grid=GRID)
    model = VideoGPT(tokenizer=tokenizer, gpt=gpt, frame_encoder=Own())
    model(clips(f=5)), model(clips(f=1)[:, :, 0]), model(clips(f=5), frames=clips(f=1)[:, :, 0])
    model.generate(num_frames=5, frames=clips(f=1)[:, :, 0])
    assert set(model.frame_encoder.seen) == {(2, 3, 1, 16, 16)}


@all_parts
def test_any_number_of_frames_after_any_number_of_prime_frames(parts):
    model = videogpt(*parts)
    for prime, num_frames in ((None, 1), (None, 13), (2, 4), (3, 6), (9, 5)):
        shown = {"prime_frames": clips(f=prime)} if prime else {}
        if model.frame_encoder is not None and prime is None:
            shown["frames"] = clips(f=1)
        labels = given(*parts, f=num_frames + (prime or 0))
        video = model.generate(num_frames=num_frames, **{"batch_size": 2} | shown | labels)
        assert video.shape == (2, 3, num_frames, 16, 16)
        assert video.min() >= 0 and video.max() <= 1


@pytest.mark.parametrize("prime", [None, 3, 6, 9])
@pytest.mark.parametrize("encoder", [None, "vector", "map"])
def test_each_window_reads_its_own_slice_of_actions_and_its_own_first_frames(prime, encoder):
    model, num_frames = videogpt("actions", encoder), 9
    calls, known = spied(model), prime or 0
    actions = torch.randn(2, known + num_frames, 2)
    shown = {} if encoder is None or prime else {"frames": clips(f=1)}
    primes = None if prime is None else clips(f=prime)
    video = model.generate(num_frames=num_frames, prime_frames=primes, actions=actions, generator=seed(), **shown)

    frames = video if primes is None else torch.cat((primes, video), dim=2)
    filled = torch.cat((actions, torch.zeros(2, 6, 2)), dim=1)  # beyond the last frame
    end = known  # frames before each window
    generator, made = seed(), []
    for options, ids in calls:
        kept = 0 if options["prime_ids"] is None else 2 * options["prime_ids"].shape[1]
        first = end - kept
        by_hand = {"condition": filled[:, first : first + 6].reshape(2, 3, 4)}
        if encoder is not None:
            read = shown["frames"] if kept == 0 else frames[:, :, first : first + 1]
            with torch.no_grad():
                by_hand[model.frame_input] = model.frame_encoder.eval()(read)
        prime_ids = model.tokenizer.encode(frames[:, :, first:end]) if kept else None
        expected = GPT.generate(model.gpt, batch_size=2, prime_ids=prime_ids, generator=generator, **by_hand)
        assert torch.equal(ids, expected)
        made.append(model.tokenizer.decode(expected)[:, :, kept:].clamp(0, 1))
        end += 6 - kept
    assert len(calls) > 1
    assert torch.equal(torch.cat(made, dim=2)[:, :, :num_frames], video)


def test_the_first_time_steps_do_not_depend_on_later_actions():
    model = videogpt("actions", "classes")
    calls, actions, classes = spied(model), torch.randn(2, 6, 2), torch.tensor([0, 1])
    for frame in (None, 1, 3, 5):
        other = actions.clone()
        if frame is not None:
            other[:, frame] += 3
        model.generate(num_frames=6, actions=other, classes=classes, generator=seed())
        if frame is not None:
            same = (calls[0][1] == calls[-1][1]).flatten(2).all(dim=2).all(dim=0).tolist()
            assert same[: frame // 2] == [True] * (frame // 2) and not all(same)


@pytest.mark.parametrize("parts", [("classes",), ("vector",), ("map",), ("texts",), ("actions",)], ids=str)
def test_every_condition_moves_what_is_generated(parts):
    model, calls = videogpt(*parts), []
    calls = spied(model)
    one, other = given(*parts), given(*parts)
    if "classes" in parts:
        other["classes"] = 2 - one["classes"]
    if "texts" in parts:
        other["texts"] = TEXTS[::-1]
        for parameter in model.gpt.transformer.blocks[0].cross.parameters():
            parameter.data.mul_(3)
    if model.frame_encoder is not None:
        one["frames"], other["frames"] = clips(f=1), clips(f=1)
        scale = model.frame_encoder.groups
        [p.data.mul_(3) for p in scale.parameters() if p.ndim > 1]
    for labels in (one, one, other):
        model.generate(num_frames=6, generator=seed(), **labels)
    assert torch.equal(calls[0][1], calls[1][1]) and not torch.equal(calls[0][1], calls[2][1])


def test_prime_frames_are_pinned_and_all_ids_of_a_shown_frame_are_sampled():
    model, primes = videogpt("vector"), clips(f=3)
    calls = spied(model)
    model.generate(num_frames=3, prime_frames=primes)
    assert torch.equal(calls[0][1][:, :1], model.tokenizer.encode(primes[:, :, 1:]))  # one time step of two frames
    model.generate(num_frames=3, frames=primes[:, :, 0])
    assert calls[1][0]["prime_ids"] is None


def test_the_video_is_the_decoded_ids_clamped_and_cut():
    model = videogpt()
    model.tokenizer.decoder.up[-1].weight.data.mul_(50)
    ids = model.gpt.generate(batch_size=2, generator=seed())
    decoded = model.tokenizer.decode(ids)
    assert decoded.max() > 1 and decoded.min() < 0
    video = model.generate(num_frames=5, batch_size=2, generator=seed())
    assert torch.equal(video, decoded[:, :, :5].clamp(0, 1))


def test_later_windows_with_too_few_shared_frames_for_the_encoder_are_refused_before_sampling():
    model = videogpt("vector", tokenizer=tiny_vqgan(), frame_encoder=tiny_frame_encoder(num_frames=3))
    model.gpt.generate = None
    with pytest.raises(ValueError, match="must share at least 3 frames, got an overlap of 1"):
        model.generate(num_frames=9, frames=clips(f=3), overlap=1)


def test_actions_are_looked_at_before_sampling():
    model = videogpt("actions")
    model.gpt.generate = None
    actions = torch.randn(1, 13, 2)
    actions[0, 12, 0] = float("inf")
    with pytest.raises(ValueError, match="actions must be finite"):
        model.generate(num_frames=13, actions=actions)


def test_guidance_by_the_text_moves_the_video():
    model = videogpt("texts")
    plain, guided = (model.generate("snow", num_frames=6, generator=seed(), cond_scale=s) for s in (1.0, 30.0))
    assert not torch.equal(plain, guided)
