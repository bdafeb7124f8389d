"""Every kind of tokenizer that train_tokenizer.py trains: its sizes, its flags, how it is found again."""

import pytest
import torch

from conftest import same_state, state
from data.flags import flag_of
from data.runs import folder_of, load_tokenizer
from training.arguments import tokenizer_arguments
from training.plans import words_of
from training.tokenizer import IMAGE_WEIGHT, prepared_tokenizer
from training.tokenizers import KINDS, build_discriminator, lacking, sizes_of

CLIPS = {"cvivit": "--size 16 --frames 5", "vqvae": "--size 16 --frames 8", "vqgan": "--size 16 --frames 5"}
SIZES = {
    "cvivit": "--dim 32 --patch-size 8 --spatial-depth 1 --temporal-depth 0",
    "vqvae": "--dim 8 --depth 1 --strides 2 8 8 --heads 1 --no-axial-attention",
    "vqgan": "--dim 16 --depth 1",
}
QUANTIZERS = {"fsq": "--levels 4 4", "vq": "--codebook-size 32", "ema": "--codebook-size 32"}
every_kind = pytest.mark.parametrize("kind", KINDS)


def arguments(kind, quantizer="vq", more=""):
    words = f"--tokenizer {kind} --quantizer {quantizer} {QUANTIZERS[quantizer]} {CLIPS[kind]} {SIZES[kind]} {more}"
    return tokenizer_arguments(words.split())


@every_kind
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_the_sizes_of_a_tokenizer_are_those_of_its_arguments(kind, quantizer):
    args = arguments(kind, quantizer)
    tokenizer = prepared_tokenizer(args)
    assert type(tokenizer) is KINDS[kind].model
    sizes = sizes_of(tokenizer, kind)
    asked = {flag.strip("-").replace("-", "_") for flag in SIZES[kind].split() if flag.startswith("--")}
    assert sizes.keys() > {*asked, "quantizer", "levels", "codebook_size"}
    idle = "codebook_size" if quantizer == "fsq" else "levels"
    assert sizes == {name: getattr(args, name) for name in sizes} | {idle: None}


@every_kind
def test_a_saved_tokenizer_is_found_as_what_it_is_and_trained_further(kind, tmp_path):
    tokenizer = prepared_tokenizer(arguments(kind))
    tokenizer.save_pretrained(tmp_path / "model" / folder_of(tokenizer))
    for folder in (tmp_path / "model", tmp_path / "model" / folder_of(tokenizer)):
        loaded = load_tokenizer(folder)
        args = tokenizer_arguments(["--model", str(folder), *CLIPS[kind].split(), "--codebook-size", "32"])
        again = prepared_tokenizer(args)
        assert type(loaded) is type(again) is type(tokenizer) and args.tokenizer == kind
        assert loaded.config == again.config == tokenizer.config
        assert same_state(state(loaded), state(tokenizer)) and same_state(state(again), state(tokenizer))
    for other in KINDS.keys() - {kind}:
        with pytest.raises(
            ValueError, match=f"--model is a {type(tokenizer).__name__}: expected no --tokenizer {other}"
        ):
            tokenizer_arguments(["--model", str(folder), "--tokenizer", other])


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in KINDS for name in sorted(lacking(kind))])
def test_the_flags_of_other_kinds_are_refused(kind, name, capsys):
    value = next(each.defaults[name] for each in KINDS.values() if name in each.defaults)
    with pytest.raises(SystemExit):
        tokenizer_arguments(["--tokenizer", kind, *words_of(name, value or True)])
    assert f"{flag_of(name)} would have no effect on a {kind}" in capsys.readouterr().err


@every_kind
def test_images_are_trained_on_where_they_are_clips_of_the_tokenizer(kind):
    args = arguments(kind)
    image = prepared_tokenizer(args).num_frames(1) == 1
    assert image == (kind != "vqvae") and args.image_weight == (IMAGE_WEIGHT if image else 0)
    asked = arguments(kind, more="--image-weight 0.5")
    if image:
        prepared_tokenizer(asked)
        assert asked.image_weight == 0.5
    else:
        with pytest.raises(ValueError, match=r"--image-weight must be 0: the shortest clip .* has 2 frames, not 1"):
            prepared_tokenizer(asked)
        with pytest.raises(ValueError, match="--video-weight is 0, and there are no images"):
            prepared_tokenizer(arguments(kind, more="--video-weight 0"))


@every_kind
@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_discriminator_of_each_kind_reads_frames_of_its_size(kind, size):
    args = arguments(kind, more=f"--size {size} --adversarial 1 --discriminator-dim 8")
    real, fake = torch.rand(2, 2, 3, 3, size, size)
    losses = build_discriminator(args).losses(real, fake)
    losses.total.backward()
    assert losses.total.isfinite() and losses.adversarial > 0
