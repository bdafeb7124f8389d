"""VideoGPT: the frozen tokenizer and its codes, randomness, modes, precision, copies, saving."""

import copy
import threading
import warnings

import pytest
import torch
from torch import nn

from conftest import (
    WordEncoder,
    make_ids,
    modes,
    same_state,
    seed,
    state,
    tiny_cvivit,
    tiny_frame_encoder,
    tiny_gpt,
    tiny_videogpt,
    tiny_vqgan,
    tiny_vqvae,
    train,
)
from phenaki_pytorch import T5TextEncoder, VideoGPT
from videogpt_models import GRID, TEXTS, clips, given, videogpt


def test_training_does_not_change_the_tokenizer_or_its_eval_mode():
    model, videos, labels = videogpt("vector", "actions").train(), clips(), given("actions")
    before, others = state(model.tokenizer), {"gpt": state(model.gpt), "encoder": state(model.frame_encoder)}
    train(model, lambda: model(videos, **labels), 3, weight_decay=0.5)
    assert same_state(before, state(model.tokenizer))
    assert not same_state(others["gpt"], state(model.gpt))
    assert not same_state(others["encoder"], state(model.frame_encoder))
    assert not any(part.training for part in model.tokenizer.modules())
    assert all(part.training for part in model.gpt.modules())


def test_it_learns_videos():
    model = tiny_videogpt(grid=GRID, started=False)
    videos = clips()
    losses = train(model, lambda: model(videos), 25, lr=1e-2)
    assert losses[-1] < 0.7 * losses[0]


def test_the_codes_are_those_of_the_tokenizer_and_another_one_is_refused():
    tokenizer, gpt = tiny_vqvae(), tiny_gpt(code_dim=8)
    VideoGPT(tokenizer=tokenizer, gpt=gpt)
    ids = make_ids()
    assert torch.equal(gpt.embed[0](ids), tokenizer.code_features(ids))
    with pytest.raises(ValueError, match="codes of another tokenizer"):
        VideoGPT(tokenizer=tiny_vqvae(), gpt=gpt)


def test_codes_are_taken_once_the_tokenizer_is_trained():
    trained, model = tiny_vqvae(), tiny_videogpt(tokenizer=tiny_vqvae(trained=False))
    with pytest.raises(ValueError, match="no codes to read yet"):
        model(video_ids=make_ids())
    model.tokenizer.load_state_dict(trained.state_dict())
    ids = make_ids()
    model(video_ids=ids)
    assert torch.equal(model.gpt.embed[0](ids), trained.code_features(ids))


class Own(nn.Module):
    """A tokenizer with the members that are always needed, and no others."""

    codebook_size = 32

    def __init__(self):
        super().__init__()
        self.inside = tiny_vqvae()

    def __getattr__(self, name):
        return (
            getattr(self.inside, name)
            if name in ("encode", "decode", "grid", "num_frames")
            else super().__getattr__(name)
        )


def test_a_tokenizer_without_codes_fits_a_gpt_that_reads_none(tmp_path):
    model = VideoGPT(tokenizer=Own(), gpt=tiny_gpt(grid=GRID))
    assert model(clips()).isfinite() and model.generate(num_frames=3).shape[2] == 3
    with pytest.raises(TypeError, match="needs a tokenizer with code_dim and code_features; Own lacks"):
        VideoGPT(tokenizer=Own(), gpt=tiny_gpt(grid=GRID, code_dim=8))
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "tokenizer").exists()
    with pytest.raises(ValueError, match=r"needs \['tokenizer'\]"):
        VideoGPT.from_pretrained(tmp_path)
    assert VideoGPT.from_pretrained(tmp_path, tokenizer=model.tokenizer).tokenizer is model.tokenizer


@pytest.mark.parametrize("build", [tiny_vqgan, tiny_cvivit])
def test_other_tokenizers_fit_as_well(build):
    model = videogpt("actions", tokenizer=build())
    f = model.window
    assert model(clips(f=f), actions=torch.randn(2, f, 2)).isfinite()
    assert model.generate(num_frames=f + 2, actions=torch.randn(2, f + 2, 2)).shape == (2, 3, f + 2, 16, 16)


def test_all_randomness_comes_from_the_generator():
    model, labels = videogpt("vector", "actions"), given("actions", f=9) | {"frames": clips(f=1)}
    before = torch.get_rng_state()
    one, again, other = (model.generate(num_frames=9, generator=seed(i), **labels) for i in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_modes_of_all_parts_are_as_before_generation_also_after_an_error():
    model = videogpt("vector", ff_dropout=0.1).train()
    model.gpt.transformer.blocks[0].eval(), model.frame_encoder.stem.eval()
    before, frames = modes(model), clips(f=1)

    def fail(ids):
        assert not any(part.training for part in model.modules() if part is not model)
        raise ZeroDivisionError

    model.generate(num_frames=9, frames=frames)
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError):
        model.generate(num_frames=9, frames=frames, progress=fail)
    assert modes(model) == before


def test_generation_does_not_move_the_averages_of_the_frame_encoder():
    model, frames = videogpt("vector").train(), clips(f=1)
    before = state(model)
    model.generate(num_frames=9, frames=frames)
    assert same_state(before, state(model))
    model(clips())
    assert not same_state(before, state(model))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("encoder", ["vector", "map"])
def test_all_parts_follow_to(dtype, encoder):
    model = videogpt(encoder, "actions", "classes", "texts").to(dtype)
    assert model.tokenizer.quantizer.quantizer.codebook.dtype == torch.float32
    labels = given("actions", "classes", "texts")
    model(clips(), **labels).backward()
    assert model.generate(num_frames=6, frames=clips(f=1), **labels).shape == (2, 3, 6, 16, 16)
    assert {value.device.type for value in model.to("meta").state_dict().values()} == {"meta"}


def test_bfloat16_autocast_trains_and_generates():
    model, labels = videogpt("vector", "actions", "classes", "texts"), given("actions", "classes", "texts")
    videos = clips()
    exact = model(videos, **labels)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(videos, **labels)
        assert (
            model.generate(num_frames=9, frames=clips(f=1), **given("actions", "classes", "texts", f=9))
            .isfinite()
            .all()
        )
    loss.backward()
    assert 0 < abs(loss - exact) < 0.2
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_a_copy_is_equal_and_independent():
    model, videos = videogpt("vector"), clips()
    twin, before = copy.deepcopy(model), state(model)
    assert twin._long_video.lengths is twin.tokenizer
    train(twin, lambda: twin(videos), 1)
    assert same_state(before, state(model)) and not same_state(before, state(twin))


def test_threads_generate_without_dropout_and_leave_the_mode_as_it_was():
    model, frames = videogpt("vector", attn_dropout=0.5).train(), clips(b=1, f=1)
    expected = [model.generate(num_frames=9, frames=frames, generator=seed(k)) for k in range(3)]
    got = [None] * 3

    def generate(k):
        got[k] = model.generate(num_frames=9, frames=frames, generator=seed(k))

    threads = [threading.Thread(target=generate, args=(k,)) for k in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(*pair) for pair in zip(expected, got)) and model.gpt.training


@pytest.mark.parametrize("parts", [(), ("vector", "actions", "classes"), ("map",)], ids=str)
@pytest.mark.parametrize("build", [tiny_vqvae, tiny_vqgan])
def test_a_loaded_model_trains_and_generates_the_same(parts, build, tmp_path):
    model = videogpt(*parts, tokenizer=build())
    f = model.window
    videos, labels = clips(f=f), given(*parts, f=f)
    train(model, lambda: model(videos, **labels), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save_pretrained(tmp_path)
    loaded = VideoGPT.from_pretrained(tmp_path)
    assert same_state(state(loaded), state(model))
    assert not any(parameter.requires_grad for parameter in loaded.tokenizer.parameters())
    shown = {} if model.frame_encoder is None else {"frames": videos[:, :, 0]}

    def results(each):
        video = each.generate(num_frames=f, generator=seed(), **({"batch_size": 2} | shown | labels))
        torch.manual_seed(1)
        return video, torch.tensor(train(each.train(), lambda: each(videos, **labels), 2)), state(each)

    one, other = results(model), results(loaded)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1]) and same_state(one[2], other[2])


def test_a_model_in_half_precision_can_be_loaded(tmp_path):
    videogpt().bfloat16().save_pretrained(tmp_path)
    assert VideoGPT.from_pretrained(tmp_path)(clips()).isfinite()


def test_what_is_the_users_own_has_to_be_given_again(tmp_path):
    model = videogpt("texts")
    with pytest.warns(UserWarning, match=r"\['text_encoder'\]"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs \['text_encoder'\]"):
        VideoGPT.from_pretrained(tmp_path)
    loaded = VideoGPT.from_pretrained(tmp_path, text_encoder=WordEncoder())
    assert torch.equal(loaded.eval()(clips() * 0, texts=TEXTS), model.eval()(clips() * 0, texts=TEXTS))


def test_a_t5_encoder_is_saved_by_its_name(tmp_path):
    tiny_videogpt(dim_context=512, text_encoder="t5-small").save_pretrained(tmp_path)
    loaded = VideoGPT.from_pretrained(tmp_path)
    assert isinstance(loaded.text_encoder, T5TextEncoder) and loaded.text_encoder.name == "t5-small"


def test_compiled_parts_are_saved(tmp_path):
    parts = tiny_vqvae(), tiny_gpt(grid=GRID, code_dim=8, dim_frame_vector=12), tiny_frame_encoder()
    tokenizer, gpt, encoder = (torch.compile(part, backend="eager") for part in parts)
    VideoGPT(tokenizer=tokenizer, gpt=gpt, frame_encoder=encoder).save_pretrained(tmp_path)
    loaded = VideoGPT.from_pretrained(tmp_path)
    for part, one in zip(parts, (loaded.tokenizer, loaded.gpt, loaded.frame_encoder)):
        assert same_state(state(part), state(one))
