"""Every tokenizer as the first stage of Phenaki: padding, lengths, images, stories, saving."""

import pytest
import torch

from conftest import (
    ToyTokenizer,
    WordEncoder,
    modes,
    same_state,
    seed,
    state,
    tiny_cvivit,
    tiny_maskgit,
    tiny_phenaki,
    tiny_vqgan,
    tiny_vqvae,
    train,
)
from phenaki_pytorch import VQGAN, VQVAE, Phenaki
from phenaki_pytorch.first_stage import encode, frozen_tokenizer, kind_of

FAST = {"steps": 2, "cond_scale": 1.0}
TOKENIZERS = {
    "CViViT": tiny_cvivit,
    "VQGAN": tiny_vqgan,
    "VQVAE": tiny_vqvae,
    "toy": lambda: ToyTokenizer(3, 2),
}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
both_new = pytest.mark.parametrize("name", ["VQGAN", "VQVAE"])


def built(name):
    """A tokenizer in eval mode, and one of its clips of 4 time steps for each of two samples."""
    tokenizer = TOKENIZERS[name]().eval()
    return tokenizer, torch.rand(2, 3, tokenizer.num_frames(4), 16, 16)


def phenaki(tokenizer, **changes):
    """A window of 4 time steps."""
    return tiny_phenaki(cvivit=tokenizer, grid=(4, 2, 2), depth=1, **changes)


# encoding


@every_tokenizer
def test_the_ids_of_padded_clips_are_those_of_the_clips_alone(name):
    tokenizer, clips = built(name)
    lengths = [tokenizer.num_frames(t) for t in (4, 2)]
    frame_mask = torch.arange(clips.shape[2]) < torch.tensor(lengths)[:, None]
    padded = clips.masked_fill(~frame_mask[:, None, :, None, None], float("nan"))
    ids, real = encode(tokenizer, padded, frame_mask)
    assert real[0].all() and real[1, :2].all() and not real[1, 2:].any()
    assert torch.equal(ids[:1], tokenizer.encode(clips[:1]))
    assert torch.equal(ids[1:, :2], tokenizer.encode(clips[1:, :, : lengths[1]]))
    assert torch.equal(encode(tokenizer, clips, None)[0], tokenizer.encode(clips))


@both_new
def test_padding_would_change_the_ids_of_a_tokenizer_that_is_not_causal(name):
    tokenizer, clips = built(name)
    short = tokenizer.num_frames(2)
    clips[:, :, short:] = 0
    padded, alone = tokenizer.features(clips)[:, :2], tokenizer.features(clips[:, :, :short])
    assert (padded - alone).abs().max() > 1e-3


def test_images_with_a_frame_mask_are_clips_of_one_frame():
    tokenizer, images = tiny_vqgan().eval(), torch.rand(2, 3, 16, 16)
    ids, real = encode(tokenizer, images, torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(ids, tokenizer.encode(images)) and real.shape == ids.shape and real.all()


@both_new
def test_frame_masks_that_do_not_fit_are_refused(name):
    tokenizer, clips = built(name)
    f = clips.shape[2]
    for frame_mask in (torch.ones(2, f - 1, dtype=torch.bool), torch.ones(2, f)):
        with pytest.raises(ValueError, match=rf"frame_mask must be bool \(2, {f}\), got"):
            encode(tokenizer, clips, frame_mask)
    wrong = 1 if name == "VQVAE" else 2
    with pytest.raises(ValueError, match=rf"got \[{f}, {wrong}\] real frames"):
        encode(tokenizer, clips, torch.arange(f) < torch.tensor([[f], [wrong]]))


# Phenaki


@both_new
def test_the_loss_with_padded_clips_is_that_of_the_clips_alone(name, monkeypatch):
    tokenizer, clips = built(name)
    model = phenaki(tokenizer, dim_context=None).eval()
    monkeypatch.setattr("phenaki_pytorch.priors.maskgit.draw_mask", lambda real, **_: real)  # all real ids
    short = tokenizer.num_frames(3)
    frame_mask = torch.arange(clips.shape[2]) < torch.tensor([[clips.shape[2]], [short]])
    together = model(clips, frame_mask=frame_mask)
    alone = [model(clips[:1]), model(clips[1:, :, :short])]
    torch.testing.assert_close(together, (16 * alone[0] + 12 * alone[1]) / 28)
    assert abs(together - model(clips)) > 1e-4


@both_new
def test_training_leaves_the_tokenizer_bit_identical(name):
    tokenizer, clips = built(name)
    model = phenaki(tokenizer).train()
    before, prior = state(tokenizer), state(model.maskgit)
    train(model, lambda: model(clips, texts=["a", "b"]), 3, weight_decay=0.5)
    assert same_state(before, state(tokenizer)) and not same_state(prior, state(model.maskgit))
    assert not any(part.training for part in tokenizer.modules())


@both_new
@pytest.mark.parametrize("prime", [None, 2, 5, 20])
def test_any_number_of_frames_after_any_number_of_prime_frames(name, prime):
    model = phenaki(TOKENIZERS[name]())
    prime_frames = None if prime is None else torch.rand(1, 3, prime, 16, 16)
    for num_frames in (1, 3, model.window, 2 * model.window + 1):
        video = model.generate("snow", num_frames=num_frames, prime_frames=prime_frames, **FAST)
        assert video.shape == (1, 3, num_frames, 16, 16)
        assert video.min() >= 0 and video.max() <= 1


@both_new
def test_later_windows_begin_with_the_ids_of_the_last_frames(name):
    model, windows = phenaki(TOKENIZERS[name]()), []
    inside = model.maskgit.generate
    model.maskgit.generate = lambda *args, **options: windows.append(options["prime_ids"]) or inside(*args, **options)
    video = model.generate("snow", num_frames=model.window + 1, **FAST)
    overlap = 5 if name == "VQGAN" else 4  # the most below the default that the tokenizer takes
    last = video[:, :, model.window - overlap : model.window]
    assert windows[0] is None and torch.equal(windows[1], model.cvivit.encode(last))


def test_images_are_generated_where_the_tokenizer_takes_one_frame():
    assert phenaki(tiny_vqgan()).generate_images(["a", "b"], **FAST).shape == (2, 3, 16, 16)
    per_frame = tiny_vqvae(strides=(1, 8, 8))
    model = phenaki(per_frame)
    assert model.generate_images(["a", "b"], **FAST).shape == (2, 3, 16, 16)
    assert model(torch.rand(2, 3, 16, 16), texts=["a", "b"]).isfinite()
    with pytest.raises(ValueError, match="k · 2 frames, k ≥ 1, got 1"):
        phenaki(tiny_vqvae()).generate_images("a", **FAST)


@both_new
def test_stories_have_the_frames_of_all_scenes(name):
    model = phenaki(TOKENIZERS[name]())
    video, scenes = model.generate_story(["a", "b", "c"], num_frames=[6, 3, 9], generator=seed(), **FAST)
    assert video.shape == (1, 3, 18, 16, 16)
    assert [scene.shape[2] for scene in scenes] == [6, 3, 9] and torch.equal(torch.cat(scenes, dim=2), video)
    other, _ = model.generate_story(["a", "b", "d"], num_frames=[6, 3, 9], generator=seed(), **FAST)
    assert torch.equal(other[:, :, :9], video[:, :, :9]) and not torch.equal(other, video)
    with pytest.raises(ValueError, match=r"can share .* got an overlap of 1000"):
        model.generate_story(["a", "b"], num_frames=6, overlap=1000, **FAST)


@both_new
def test_a_loaded_phenaki_has_the_same_loss_and_generates_the_same(name, tmp_path):
    tokenizer, clips = built(name)
    model = phenaki(tokenizer).eval()
    with pytest.warns(UserWarning, match="text_encoder"):
        model.save_pretrained(tmp_path)
    loaded = Phenaki.from_pretrained(tmp_path, text_encoder=WordEncoder()).eval()
    assert type(loaded.cvivit) is (VQGAN if name == "VQGAN" else VQVAE)
    assert same_state(state(loaded), state(model))

    def results(each):
        torch.manual_seed(1)
        loss = each(clips, texts=["a", "b"])
        return loss, each.generate("a", num_frames=9, generator=seed(), **FAST)

    for one, other in zip(results(model), results(loaded)):
        assert torch.equal(one, other)


# what does not fit


@every_tokenizer
def test_the_prior_must_have_the_codes_and_grid_of_the_tokenizer(name):
    tokenizer, _ = built(name)
    with pytest.raises(ValueError, match=r"the prior must have as many tokens .* 32, got 64"):
        frozen_tokenizer("tokenizer", tokenizer, tiny_maskgit(num_tokens=64, grid=(4, 2, 2)), "the prior")
    with pytest.raises(ValueError, match=r"grid must be that of the \w+, \(4, 2, 2\), got \(4, 2, 3\)"):
        frozen_tokenizer("tokenizer", tokenizer, tiny_maskgit(grid=(4, 2, 3)), "the prior")


def test_a_window_that_the_tokenizer_cannot_take_is_refused():
    with pytest.raises(ValueError, match=r"video_shape, \(6, 2, 2\), got \(7, 2, 2\)"):
        tiny_phenaki(cvivit=tiny_vqvae(), grid=(7, 2, 2))


def test_modules_that_are_no_tokenizers_are_refused_and_what_they_lack_is_named():
    with pytest.raises(TypeError, match=r"tokenizer must have encode, .*; Linear lacks \['encode', 'decode'"):
        frozen_tokenizer("tokenizer", torch.nn.Linear(1, 1), tiny_maskgit(), "maskgit")


def test_a_tokenizer_is_saved_by_its_class_and_the_users_own_is_not():
    class Own(VQVAE):
        pass

    kinds = [kind_of(each) for each in (tiny_vqgan(trained=False), tiny_vqvae(trained=False), ToyTokenizer(1, 1))]
    assert kinds == ["VQGAN", "VQVAE", Phenaki.GIVEN]
    sizes = {"video_shape": (4, 16, 16), "dim": 8, "depth": 0}
    assert kind_of(Own(**sizes)) == Phenaki.GIVEN
    assert kind_of(torch.compile(VQVAE(**sizes), backend="eager")) == "VQVAE"


@both_new
def test_an_error_leaves_the_modes_as_they_were(name):
    model = phenaki(TOKENIZERS[name]()).train()
    before = modes(model)

    def fail(passes):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        model.generate("a", num_frames=20, progress=fail, **FAST)
    assert modes(model) == before
