"""A model that was saved and loaded has the same next training step, bit for bit."""

import inspect
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from conftest import (
    QUANTIZERS,
    WordEncoder,
    same_state,
    state,
    tiny_cvivit,
    tiny_frame_encoder,
    tiny_frame_map_encoder,
    tiny_gpt,
    tiny_latte_transformer,
    tiny_maskgit,
    tiny_phenaki,
    tiny_token_critic,
    tiny_vqgan,
    tiny_vqvae,
    train,
)
from phenaki_pytorch import GPT, CViViT, MaskGit, Phenaki, T5TextEncoder, TokenCritic

METHODS = ("encode", "decode", "grid", "num_frames")


def test_files_have_the_mode_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        tiny_gpt().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}


def next_step(module, loss):
    """The loss of one training step, and the weights after it."""
    torch.manual_seed(5)
    module.train()
    losses = train(module, loss, 1)
    return losses, state(module)


def assert_same_next_step(one, other, *batch, **options):
    (losses, weights), (losses_2, weights_2) = (next_step(m, lambda m=m: m(*batch, **options)) for m in (one, other))
    assert losses == losses_2
    assert same_state(weights, weights_2)


def own_quantizer():
    return VectorQuantize(dim=8, codebook_size=32, use_cosine_sim=True)


class OwnTokenizer(torch.nn.Module):
    """A tokenizer of the user's own, which calls the tiny CViViT."""

    codebook_size = 32

    def __init__(self):
        super().__init__()
        self.inside = tiny_cvivit()

    def __getattr__(self, name):
        return getattr(self.inside, name) if name in METHODS else super().__getattr__(name)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_loaded_tokenizer_trains_on_the_same(quantizer, tmp_path):
    model = tiny_cvivit(quantizer=quantizer, quantizer_kwargs=QUANTIZERS[quantizer])
    clip = torch.rand(2, 3, 5, 16, 16)
    train(model, lambda: model(clip), 3)
    model.save_pretrained(tmp_path)
    loaded = CViViT.from_pretrained(tmp_path)
    assert same_state(model.state_dict(), loaded.state_dict())
    assert torch.equal(model.encode(clip), loaded.encode(clip))
    assert_same_next_step(model, loaded, clip)
    assert not same_state(loaded.state_dict(), CViViT.from_pretrained(tmp_path).state_dict())  # the step did change it


@pytest.mark.filterwarnings("ignore:.*tokens a step are few:UserWarning")
@pytest.mark.parametrize("quantizer", ["ema", *QUANTIZERS])
@pytest.mark.parametrize("build, frames", [(tiny_vqvae, 6), (tiny_vqgan, 5)])
def test_a_loaded_tokenizer_that_is_not_causal_trains_on_the_same(build, frames, quantizer, tmp_path):
    model = build(quantizer=quantizer, quantizer_kwargs=QUANTIZERS.get(quantizer))
    clip = torch.rand(2, 3, frames, 16, 16)
    train(model, lambda: model(clip), 2)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert same_state(model.state_dict(), loaded.state_dict()) and loaded.config == json.loads(json.dumps(model.config))
    assert torch.equal(model.encode(clip), loaded.encode(clip))
    assert_same_next_step(model, loaded, clip)
    assert not same_state(loaded.state_dict(), type(model).from_pretrained(tmp_path).state_dict())


@pytest.mark.parametrize("positions, axes", [("learned", "both"), ("sincos", "time"), ("learned", "space")])
def test_a_loaded_gpt_trains_on_the_same(positions, axes, tmp_path):
    widths = {"dim_context": 12, "dim_frame_vector": 5, "dim_frame_map": 6, "dim_condition": 4, "dim_head": 8}
    model = tiny_gpt(**widths, ff_dropout=0.1, positions=positions, axes=axes)
    given = {"context": torch.randn(2, 3, 12), "frame_vector": torch.randn(2, 5), "frame_map": torch.randn(2, 7, 6)}
    given["condition"] = torch.randn(2, 6, 4)
    ids = torch.randint(0, 32, (2, 6, 2, 2))
    train(model, lambda: model(ids, **given), 3)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert_same_next_step(model, loaded, ids, **given)


@pytest.mark.parametrize("dim_context", [None, 12])
def test_a_loaded_maskgit_trains_on_the_same(dim_context, tmp_path):
    model = tiny_maskgit(dim_context=dim_context, ff_dropout=0.1, schedule="linear", label_smoothing=0.1)
    batch = (torch.randint(0, 32, (2, 6, 2, 2)), *((torch.randn(2, 3, 12),) if dim_context else ()))
    train(model, lambda: model(*batch), 3)
    model.save_pretrained(str(tmp_path / "new" / "directory"))
    loaded = MaskGit.from_pretrained(tmp_path / "new" / "directory")
    assert loaded.config == model.config
    assert_same_next_step(model, loaded, *batch)


def test_a_loaded_phenaki_trains_on_the_same(tmp_path):
    model, videos = tiny_phenaki(), torch.rand(2, 3, 11, 16, 16)
    train(model, lambda: model(videos, texts=["a", "b"]), 2)
    model.save_pretrained(tmp_path)
    encoder = WordEncoder()
    loaded = Phenaki.from_pretrained(tmp_path, text_encoder=encoder)
    assert loaded.text_encoder is encoder
    assert not any(parameter.requires_grad for parameter in loaded.cvivit.parameters())
    assert_same_next_step(model, loaded, videos, texts=["a", "b"])


def test_the_directory_holds_json_and_safetensors_only(tmp_path):
    tiny_phenaki().save_pretrained(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    parts = ("cvivit", "maskgit")
    assert files == sorted(
        ["config.json", *(f"{part}/{name}" for part in parts for name in ("config.json", "model.safetensors"))]
    )


def test_config_json_holds_the_constructors_arguments(tmp_path):
    maskgit = tiny_maskgit(cond_drop_prob=0.25, schedule="linear")
    maskgit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["grid"] == [6, 2, 2] and config["cond_drop_prob"] == 0.25 and config["schedule"] == "linear"
    assert MaskGit(**config).config == maskgit.config
    cvivit = tiny_cvivit(image_size=(16, 24), quantizer="fsq", quantizer_kwargs={"levels": (8, 4)})
    cvivit.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["image_size"] == [16, 24] and config["quantizer_kwargs"] == {"levels": [8, 4]}
    assert CViViT(**config).image_size == (16, 24)


@pytest.mark.parametrize(
    "build",
    [
        tiny_cvivit,
        tiny_vqvae,
        tiny_vqgan,
        tiny_maskgit,
        tiny_gpt,
        tiny_latte_transformer,
        tiny_token_critic,
        tiny_frame_encoder,
        tiny_frame_map_encoder,
    ],
)
def test_every_argument_of_the_constructor_is_in_the_config(build):
    module = build()
    arguments = inspect.signature(type(module).__init__).parameters
    assert sorted(module.config) == sorted(name for name in arguments if name != "self")


def test_a_t5_encoder_is_saved_by_its_name_and_is_not_loaded(tmp_path):
    maskgit = tiny_maskgit(dim_context=512)
    Phenaki(
        cvivit=tiny_cvivit(), maskgit=maskgit, text_encoder=T5TextEncoder("t5-small", max_length=7)
    ).save_pretrained(tmp_path)
    loaded = Phenaki.from_pretrained(tmp_path)
    assert isinstance(loaded.text_encoder, T5TextEncoder) and loaded.text_encoder.name == "t5-small"
    assert loaded.text_encoder.max_length == 7


def test_an_unconditional_model_has_no_text_encoder_after_loading(tmp_path):
    tiny_phenaki(dim_context=None).save_pretrained(tmp_path)
    assert Phenaki.from_pretrained(tmp_path).text_encoder is None


def test_the_users_own_text_encoder_has_to_be_given_again(tmp_path):
    tiny_phenaki().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs \['text_encoder'\].*got nothing"):
        Phenaki.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs \['text_encoder'\].*got \['cvivit', 'text_encoder'\]"):
        Phenaki.from_pretrained(tmp_path, text_encoder=WordEncoder(), cvivit=tiny_cvivit())


def test_the_users_own_tokenizer_has_to_be_given_again(tmp_path):
    tokenizer = OwnTokenizer()
    tiny_phenaki(cvivit=tokenizer).save_pretrained(tmp_path)
    assert not (tmp_path / "cvivit").exists()
    with pytest.raises(ValueError, match=r"\['cvivit', 'text_encoder'\]"):
        Phenaki.from_pretrained(tmp_path, text_encoder=WordEncoder())
    given = {"text_encoder": WordEncoder(), "cvivit": tokenizer}
    loaded = Phenaki.from_pretrained(tmp_path, **given)
    assert loaded.cvivit is tokenizer
    with pytest.raises(ValueError, match="quantizer"):
        Phenaki.from_pretrained(tmp_path, **given, quantizer=own_quantizer())


def test_the_users_own_critic_has_to_be_given_again(tmp_path):
    class Own(TokenCritic):
        pass

    critic = Own(num_tokens=32, grid=(6, 2, 2), dim=16, depth=1, heads=2, dim_head=16)
    tiny_phenaki(critic=lambda _: critic, dim_context=None).save_pretrained(tmp_path)
    assert Phenaki.from_pretrained(tmp_path, critic=critic).critic is critic
    with pytest.raises(ValueError, match=r"needs \['critic'\] passed"):
        Phenaki.from_pretrained(tmp_path)


def test_the_users_own_quantizer_has_to_be_given_again(tmp_path):
    model, clip = tiny_cvivit(quantizer=own_quantizer()), torch.rand(2, 3, 5, 16, 16)
    train(model, lambda: model(clip), 2)
    model.save_pretrained(tmp_path / "cvivit")
    with pytest.raises(ValueError, match=r"\['quantizer'\]"):
        CViViT.from_pretrained(tmp_path / "cvivit")
    loaded = CViViT.from_pretrained(tmp_path / "cvivit", quantizer=own_quantizer())
    assert torch.equal(loaded.encode(clip), model.encode(clip))
    assert_same_next_step(model, loaded, clip)
    tiny_phenaki(cvivit=model).save_pretrained(tmp_path / "phenaki")
    with pytest.raises(ValueError, match=r"\['quantizer'\]"):
        Phenaki.from_pretrained(tmp_path / "phenaki", text_encoder=WordEncoder())
    loaded = Phenaki.from_pretrained(tmp_path / "phenaki", text_encoder=WordEncoder(), quantizer=own_quantizer())
    assert torch.equal(loaded.cvivit.encode(clip), model.encode(clip))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("build", [tiny_cvivit, tiny_vqvae, tiny_vqgan, tiny_maskgit, tiny_gpt, tiny_latte_transformer])
def test_the_error_names_the_missing_file(build, missing, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    Path(tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        type(model).from_pretrained(tmp_path)


def test_the_error_names_a_missing_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Phenaki.from_pretrained(tmp_path / "nowhere")


def test_weights_of_another_model_are_refused(tmp_path):
    tiny_maskgit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(ValueError, match=r"blocks\.2"):
        MaskGit.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cvivit": None}, "as cvivit, got None"),
        ({"critic": ["TokenCritic"]}, "as critic"),
        ({"critic": "Critic"}, "as critic, got 'Critic'"),
        ({"text_encoder": 3}, "as text_encoder, got 3"),
        ({"text_encoder": {"size": 3}}, "no arguments of T5TextEncoder"),
        ({"steps": 3}, "holds steps, which no such system has"),
    ],
)
def test_a_config_that_is_no_systems_is_named(tmp_path, changes, message):
    tiny_phenaki(dim_context=None).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=rf"config\.json .*{message}"):
        Phenaki.from_pretrained(tmp_path)


@pytest.mark.parametrize("missing", ["cvivit", "text_encoder"])
def test_what_the_config_of_a_system_lacks_is_named(tmp_path, missing):
    tiny_phenaki(dim_context=None).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config[missing]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json lacks {missing}"):
        Phenaki.from_pretrained(tmp_path)
