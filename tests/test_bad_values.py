"""Values that are not finite, of another range or of another dtype are refused or do no harm, and no state leaks."""

import json
import math
import random
import threading
import warnings

import pytest
import torch

from conftest import (
    WordEncoder,
    make_context,
    make_ids,
    same_state,
    seed,
    state,
    tiny_cvivit,
    tiny_gpt,
    tiny_maskgit,
    tiny_phenaki,
    tiny_token_critic,
    tiny_videogpt,
    tiny_vqgan,
    tiny_vqvae,
)
from phenaki_pytorch import CViViT, GuidedTeacher, Phenaki
from phenaki_pytorch.core import saving
from phenaki_pytorch.priors.decoding import _masked_after

NAN = float("nan")


def video(b=2, f=5):
    return torch.rand(b, 3, f, 16, 16)


@pytest.mark.parametrize(
    "change", [lambda v: 255 * v, lambda v: 2 * v - 1, lambda v: v.index_fill(2, torch.tensor(1), NAN)]
)
def test_pixels_of_another_range_are_refused(change):
    model = tiny_cvivit()
    for call in (model, model.encode, model.encoder_stream(), lambda v: tiny_phenaki()(v, texts=["a", "b"])):
        with pytest.raises(ValueError, match=r"finite and in \[0, 1\]"):
            call(change(video()))


@pytest.mark.parametrize("change", [lambda v: 255 * v, lambda v: v.index_fill(2, torch.tensor(1), NAN)])
def test_pixels_of_another_range_are_refused_by_the_tokenizers_that_are_not_causal(change):
    vqvae, vqgan = tiny_vqvae(), tiny_vqgan()
    before = state(vqvae), state(vqgan)
    for model, frames in ((vqvae, 6), (vqgan, 5), (tiny_videogpt(tokenizer=vqvae), 6)):
        calls = (model,) if model not in (vqvae, vqgan) else (model.train(), model.encode, model.features)
        for call in calls:
            with pytest.raises(ValueError, match=r"finite and in \[0, 1\]"):
                call(change(video(f=frames)))
    assert same_state(before[0], state(vqvae)) and same_state(before[1], state(vqgan))


@pytest.mark.parametrize("bad", [NAN, math.inf])
@pytest.mark.parametrize("build", [tiny_vqvae, tiny_vqgan])
def test_features_that_are_not_finite_leave_the_codebook_of_averages_as_it_was(build, bad):
    quantizer = build().quantizer.train()
    before, features = state(quantizer), torch.randn(2, 64, 8)
    features[1, 3, 0] = bad
    quantizer(features)
    assert same_state(before, state(quantizer))
    quantizer(features.nan_to_num(0, 0, 0))
    assert not same_state(before, state(quantizer))


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_features_that_are_not_finite_leave_the_codebook_as_it_was(bad):
    quantizer = tiny_cvivit(quantizer_kwargs={"threshold_ema_dead_code": 2}).quantizer.train()
    quantizer(torch.randn(2, 6, 8))
    before = state(quantizer)
    features = torch.randn(2, 6, 8)
    features[1, 3, 0] = bad
    quantizer(features)
    assert same_state(before, state(quantizer))
    quantizer(features.nan_to_num(0, 0, 0))
    assert not same_state(before, state(quantizer))


def test_what_is_masked_may_hold_anything():
    model, ids = tiny_maskgit().eval(), make_ids()
    context, context_mask = make_context()
    masked = torch.rand(ids.shape) < 0.5
    expected = model.logits(ids, masked, context, context_mask)
    context = context.masked_fill(~context_mask[..., None], NAN)
    assert torch.equal(model.logits(ids, masked, context, context_mask), expected)

    gpt, context = tiny_gpt(dim_context=12).eval(), context.nan_to_num(0)
    expected = gpt.logits(ids, context, context_mask)
    padded = context.masked_fill(~context_mask[..., None], NAN)
    assert torch.equal(gpt.logits(ids, padded, context_mask), expected)
    assert torch.equal(
        *(gpt.generate(context=c, context_mask=context_mask, generator=seed()) for c in (context, padded))
    )

    tokenizer, clip = tiny_cvivit().eval(), video()
    frame_mask = torch.arange(5) < torch.tensor([[5], [3]])
    expected = tokenizer.losses(clip * frame_mask[:, None, :, None, None], frame_mask).total
    clip = clip.masked_fill(~frame_mask[:, None, :, None, None], NAN)
    assert torch.equal(tokenizer.losses(clip, frame_mask).total, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_context_of_any_dtype_is_cast_to_the_models(dtype):
    context, context_mask = make_context()
    for model in (tiny_maskgit(), tiny_gpt(dim_context=12)):
        loss = model(make_ids(), context.to(dtype), context_mask)
        assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize("quantizer", ["vq", "lfq", "simvq"])
def test_quantizers_are_float32_under_another_default_dtype(quantizer):
    torch.set_default_dtype(torch.float64)
    try:
        model = tiny_cvivit(quantizer=quantizer, code_dim=5 if quantizer == "lfq" else 8)
        assert {value.dtype for value in model.quantizer.state_dict().values() if value.is_floating_point()} <= {
            torch.float32
        }
        model(video()).backward()
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_number_of_masked_ids_is_rounded_down_in_double_precision():
    for masked in range(1, 300):
        for steps in (3, 6, 24):
            for step in range(1, steps):
                share = min(1.0, max(1e-6, math.cos(math.pi / 2 * (step / steps))))
                got = _masked_after(torch.tensor([masked]), torch.ones(1, 10_000), step / steps, "cosine")
                exact = masked * share
                assert got.item() in {max(1, math.floor(exact)), max(1, math.floor(exact + 1e-12))}


def test_pythons_random_numbers_are_left_alone():
    model = tiny_phenaki()
    random.seed(0)
    before = random.getstate()
    model.generate(["a", "b"], num_frames=5, steps=2, token_temperature=[1.0, 0.5], generator=seed())
    model.generate_story([["a", "b"], ["c", "d"]], num_frames=[5, 4], steps=1, generator=seed())
    tiny_cvivit(image_size=[16, 16], patch_size=[8, 8])
    tiny_videogpt(grid=(2, 2, 2)).generate(num_frames=3, generator=seed())
    assert random.getstate() == before


@pytest.mark.parametrize("texts", [["a", 1], [1, "a"], ["a"] * 9 + [None]])
def test_every_item_of_a_sequence_is_looked_at(texts):
    with pytest.raises(TypeError, match="texts must hold str"):
        tiny_phenaki().generate(texts, num_frames=5, steps=1)


def test_threads_generate_without_dropout_and_leave_the_mode_as_it_was():
    model = Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_maskgit(attn_dropout=0.5), text_encoder=WordEncoder()).train()
    expected = [model.generate("a", num_frames=5, steps=6, generator=seed(k)) for k in range(3)]
    got = [None] * 3

    def generate(k):
        got[k] = model.generate("a", num_frames=5, steps=6, generator=seed(k))

    threads = [threading.Thread(target=generate, args=(k,)) for k in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(torch.equal(*pair) for pair in zip(expected, got)) and model.maskgit.training


def test_a_text_encoder_without_a_mask_is_refused_by_name():
    with pytest.raises(TypeError, match="embeddings and mask"):
        tiny_phenaki(text_encoder=lambda texts: torch.randn(len(texts), 3, 12))(video(), texts=["a", "b"])


def test_a_save_that_fails_leaves_the_old_model_whole(tmp_path, monkeypatch):
    old = tiny_cvivit()
    old.save_pretrained(tmp_path)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "save_model", full)
    with pytest.raises(OSError, match="no space"):
        tiny_cvivit(dim=16, heads=1).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert same_state(state(CViViT.from_pretrained(tmp_path)), state(old))


@pytest.mark.parametrize("build", [tiny_cvivit, tiny_gpt])
@pytest.mark.parametrize("change", [{"dim": 10**9}, {"depths": 10**9}, {"nope": 1}, {"heads": 0}, {"dim": 64}])
def test_a_config_that_does_not_fit_its_weights_is_refused_before_it_is_built(tmp_path, build, change):
    model = build()
    model.save_pretrained(tmp_path)
    if "depths" in change:
        change = {name: change["depths"] for name in model.config if "depth" in name}
    (tmp_path / "config.json").write_text(json.dumps(model.config | change))
    with pytest.raises(ValueError, match=r"config\.json"):
        type(model).from_pretrained(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    tiny_cvivit().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        CViViT.from_pretrained(tmp_path)


def test_compiled_modules_are_saved_and_what_is_left_out_is_named(tmp_path):
    cvivit, maskgit = (torch.compile(part, backend="eager") for part in (tiny_cvivit(), tiny_maskgit()))
    model = Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=WordEncoder())
    with pytest.warns(UserWarning, match=r"left out .* \['text_encoder'\]"):
        model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = Phenaki.from_pretrained(tmp_path, text_encoder=WordEncoder())
    assert same_state(state(loaded.cvivit), state(cvivit._orig_mod))


# features, ids and texts


@pytest.mark.parametrize(
    "change, kind, message",
    [
        (lambda ids: ids + 32, ValueError, r"\[0, 32\), got values from"),
        (lambda ids: ids - 32, ValueError, r"\[0, 32\), got values from"),
        (lambda ids: ids.int(), ValueError, "int64"),
        (lambda ids: ids[0], ValueError, r"\(b, t, h, w\)"),
        (lambda ids: ids[:0], ValueError, "none empty"),
    ],
)
def test_code_features_refuses_what_decode_refuses(change, kind, message):
    model = tiny_cvivit()
    for call in (model.decode, model.code_features):
        with pytest.raises(kind, match=message):
            call(change(make_ids()))


@pytest.mark.parametrize(
    "change, kind, message",
    [
        (lambda x: x.index_fill(1, torch.tensor(1), NAN), ValueError, "features must be finite, got nan"),
        (lambda x: x.index_fill(1, torch.tensor(1), math.inf), ValueError, "features must be finite, got inf"),
        (lambda x: x[..., :7], ValueError, r"\(b, t, h, w, 8\).*got \(2, 3, 2, 2, 7\)"),
        (lambda x: x[0], ValueError, r"\(b, t, h, w, 8\).*got \(3, 2, 2, 8\)"),
        (lambda x: x[:0], ValueError, "none empty"),
        (lambda x: x.long(), TypeError, "floating point, got torch.int64"),
    ],
)
def test_wrong_features_are_refused_both_ways(change, kind, message):
    model = tiny_cvivit()
    for call in (model.nearest, model.decode_features):
        with pytest.raises(kind, match=message):
            call(change(torch.randn(2, 3, 2, 2, 8)))


def test_a_loss_that_is_not_finite_is_returned_for_the_caller_to_see():
    model = tiny_cvivit()
    with torch.no_grad():
        model.encoder.embed_first.weight.fill_(NAN)
    assert not model(video()).isfinite()


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_text_that_is_not_finite_is_refused(bad):
    model, critic, ids = tiny_maskgit(), tiny_token_critic(), make_ids()
    context, context_mask = make_context()
    text = context.index_fill(1, torch.tensor(1), bad), context_mask
    system = tiny_phenaki()
    encoder = tiny_phenaki(text_encoder=lambda texts: text)
    for name, call in (
        ("context", lambda: model(ids, *text)),
        ("context", lambda: model.logits(ids, ids > 3, *text)),
        ("context", lambda: model.generate(context=text[0], context_mask=text[1], steps=1)),
        ("context", lambda: critic(ids, ids > 3, *text)),
        ("context", lambda: critic.critic_logits((6, 2, 2), *text)),
        ("text_embeds", lambda: system(video_ids=ids, text_embeds=text[0], text_mask=text[1])),
        ("the encoder's embeddings", lambda: encoder(video_ids=ids, texts=["a", "b"])),
        ("the encoder's embeddings", lambda: encoder.generate(["a", "b"], num_frames=1, steps=1)),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be finite"):
            call()


@pytest.mark.parametrize(
    "encoded, message",
    [
        (lambda embeds, mask: (embeds.numpy(), mask), "floating point, got ndarray"),
        (lambda embeds, mask: (embeds.long(), mask), "floating point, got torch.int64"),
        (lambda embeds, mask: (None, mask), "floating point, got NoneType"),
        (lambda embeds, mask: (embeds, mask.numpy()), "a tensor or None, got ndarray"),
    ],
)
def test_embeddings_of_another_kind_are_refused(encoded, message):
    model = tiny_phenaki(text_encoder=lambda texts: encoded(*make_context(len(texts))))
    for call in (lambda: model(video(), texts=["a", "b"]), lambda: model.generate("a", num_frames=1, steps=1)):
        with pytest.raises(TypeError, match=message):
            call()


def test_integer_embeddings_are_refused_by_every_model():
    context, context_mask = make_context()
    for call in (
        lambda: tiny_maskgit()(make_ids(), context.long(), context_mask),
        lambda: tiny_phenaki()(video_ids=make_ids(), text_embeds=context.long(), text_mask=context_mask),
    ):
        with pytest.raises(TypeError, match=r"floating point, got torch\.int64"):
            call()


def test_an_encoder_may_give_no_mask_where_all_tokens_are_real():
    context, _ = make_context()
    model = tiny_phenaki(text_encoder=lambda texts: (context, None))
    all_real = {"text_embeds": context, "text_mask": torch.ones(2, 3, dtype=torch.bool)}
    options = {"num_frames": 1, "steps": 2}
    expected = model.generate(**all_real, **options, generator=seed())
    assert torch.equal(model.generate(["a", "b"], **options, generator=seed()), expected)


@pytest.mark.parametrize("scale", [NAN, -1.0, math.inf])
def test_a_guidance_scale_is_refused_wherever_one_is_given(scale):
    model, critic, ids = tiny_maskgit(), tiny_token_critic(), make_ids()
    context, _ = make_context()
    for call in (
        lambda: model.logits(ids, ids > 3, context, cond_scale=scale),
        lambda: critic.critic_logits((6, 2, 2), context, cond_scale=scale),
        lambda: model.generate(context=context, steps=1, cond_scale=scale),
        lambda: GuidedTeacher(model, cond_scale=scale),
    ):
        with pytest.raises(ValueError, match="cond_scale must be finite and at least 0"):
            call()
