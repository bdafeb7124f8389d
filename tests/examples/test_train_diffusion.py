"""train_diffusion.py: what it is told reaches the model, it resumes, and generate.py samples what it leaves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import PRIOR_RUN, assert_same_weights, run, run_stopped

import generate
import train_diffusion
import video_files
from conftest import same_state, state, tiny_cvivit, tiny_vqvae
from data.runs import load_model, read_plan, tokenizer_of
from phenaki_pytorch import Latte
from training import loop, results, second_stage

CAPTIONS, FRAMES = ("it flickers", "all is still"), 7
SMALL = [*PRIOR_RUN, "--depth", "2", "--sampling-steps", "2", "--frames", str(FRAMES)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A picture, a tokenizer that is not trained, and a folder of four clips with captions."""
    folder = tmp_path_factory.mktemp("folder")
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = np.repeat(random.integers(0, 256, (FRAMES + 3, 4, 4, 3), dtype=np.uint8), 4, axis=1).repeat(4, axis=2)
        video_files.write(folder / "data" / f"{number}.mp4", pixels)
        (folder / "data" / f"{number}.txt").write_text(CAPTIONS[number % 2])
    Image.fromarray(pixels[0]).save(folder / "picture.png")
    tiny_cvivit().save_pretrained(folder / "tokenizer")
    return folder


def arguments(folder, condition, out, *more):
    where = ["--data", str(folder / "data"), "--tokenizer", str(folder / "tokenizer"), "--out", str(out)]
    return [*SMALL, *where, "--condition", condition, *more]


@pytest.fixture(scope="module", params=["text", "classes", "none"])
def begun(request, folder, tmp_path_factory):
    """The condition, --out, model and held-out batch of a training that ends before its first step.

    All weights are random, as those that are 0 at first would hide what the model is told.
    """
    out, kept = tmp_path_factory.mktemp("out"), []

    def not_trained(args, accelerator, model, mixed, conditions, held_out, steps):
        for weight in model.transformer.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        kept.extend((model.eval(), held_out))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_stage, "trained_stage", not_trained)
        patch.setattr(second_stage, "timed", lambda *given: 1.0)
        run(train_diffusion.main, arguments(folder, request.param, out))
    return request.param, out, *kept


def test_the_model_that_is_left_generates_what_it_is_told(begun, folder, tmp_path, monkeypatch):
    condition, out, model, batch = begun
    told = {"text": {"text_embeds", "text_mask"}, "classes": {"classes"}, "none": set()}[condition]
    assert batch.keys() == {"latents", *told} and batch["latents"].shape[1:] == (4, 2, 2, 8)
    saved, made = load_model(out / "model"), []
    assert isinstance(saved, Latte) and same_state(state(saved), state(model))
    monkeypatch.setattr(generate, "write", lambda args, scenes, fps: made.append(scenes))
    words = ["--model", str(out / "model"), "--out", str(tmp_path / "clip")]
    prompts = [[]] if condition == "none" else [[caption] for caption in CAPTIONS]
    for prompt in [*prompts, prompts[0]]:
        generate.main([*prompt, *words])
    same = [torch.equal(scenes[0][1], made[0][0][1]) for scenes in made[1:]]
    assert same == ([True] if condition == "none" else [False, True])
    assert made[0][0][1].shape == (1, 3, FRAMES, 16, 16)


def test_the_model_goes_on_from_a_picture_a_video_and_from_scene_to_scene(begun, folder, monkeypatch):
    condition, out, *_ = begun
    made, prompts = [], [] if condition == "none" else [*CAPTIONS]
    monkeypatch.setattr(generate, "write", lambda args, scenes, fps: made.append(scenes))
    words = [*prompts, "--model", str(out / "model"), "--sampler", "ddim", "--resamples", "2"]
    generate.main([*words, "--image", str(folder / "picture.png")])
    generate.main([*words, "--video", str(folder / "data" / "0.mp4")])
    counts = [[frames.shape[2] for _, frames in scenes] for scenes in made]
    further = [4] * (len(prompts) - 1 if prompts else 0)
    assert counts == [[1, 6, *further], [3, 4, *further]]


@pytest.mark.parametrize(
    "words",
    [
        *("--steps 0", "--steps 1001", "--top-k 3", "--temperature 1", "--eta 1 --sampler ddpm", "--image no"),
        "--resamples 2",  # nothing is given
    ],
)
def test_what_does_not_go_with_the_model_is_refused_in_one_line(begun, tmp_path, words):
    condition, out, *_ = begun
    prompt = [] if condition == "none" else [CAPTIONS[0]]
    with pytest.raises(SystemExit) as caught:
        generate.main([*prompt, *words.split(), "--model", str(out / "model"), "--out", str(tmp_path / "clip")])
    assert caught.value.code == 2 or "\n" not in str(caught.value.code)
    assert not list(tmp_path.iterdir())


def test_a_stopped_and_resumed_training_with_joint_images_ends_with_the_same_weights(folder, tmp_path, capsys):
    whole, broken, joint = tmp_path / "whole", tmp_path / "broken", ["--joint-images", "2"]
    run(train_diffusion.main, arguments(folder, "text", whole, *joint))
    run_stopped(train_diffusion.main, arguments(folder, "text", broken, *joint), after=2)
    assert not (broken / "model").exists()
    run(train_diffusion.main, ["--resume", "--out", str(broken)])
    assert "latte: going on from step 2" in capsys.readouterr().out
    for part in ("transformer", "standardisation"):
        assert_same_weights(whole / "model" / part, broken / "model" / part)
    assert_same_weights(folder / "tokenizer", whole / "model" / "codec")
    model = load_model(whole / "model")
    assert model.transformer.final.linear.weight.any()  # it was 0 before training
    assert model.standardisation.statistics.batches == 4
    assert (whole / "latte" / "curves.csv").read_text() == (broken / "latte" / "curves.csv").read_text()
    assert read_plan(whole / "model")["joint_images"] == 2
    again = ["--model", str(whole / "model"), "--out", str(tmp_path / "again"), "--data", str(folder / "data")]
    run(train_diffusion.main, [*SMALL, *again, "--steps", "1"])
    assert read_plan(tmp_path / "again" / "model")["heads"] == 1
    assert same_state(state(tokenizer_of(load_model(tmp_path / "again" / "model"))), state(tokenizer_of(model)))


def test_on_moving_shapes_the_samples_of_texts_are_judged(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MEASURED", 2)
    monkeypatch.setattr(loop, "write_curves", lambda *given: None)
    words = [*SMALL, "--steps", "1", "--prompts", "2", "--joint-images", "1", "--out", str(tmp_path)]
    train_diffusion.main([*words, "--frames", "9", "--tokenizer", str(folder / "tokenizer")])
    measured = json.loads((tmp_path / "results.json").read_text())
    assert {"text to video all", "psnr_first", "reconstructed all"} <= measured.keys()
    assert all((tmp_path / "latte" / name).is_file() for name in ("samples.png", "samples.gif", "curves.csv"))


def test_an_image_vae_is_named_in_the_plan_and_loaded_again(folder, tmp_path, monkeypatch):
    diffusers, made = pytest.importorskip("diffusers"), []
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "latent_channels": 4, "norm_num_groups": 4, "layers_per_block": 1}
    diffusers.AutoencoderKL(**blocks, **sizes).save_pretrained(tmp_path / "vae")
    words = [*SMALL, "--vae", str(tmp_path / "vae"), "--size", "16", "--frames", "3", "--condition", "none"]
    run(train_diffusion.main, [*words, "--data", str(folder / "data"), "--out", str(tmp_path / "out")])
    model = load_model(tmp_path / "out" / "model")
    assert model.window == 3 and tokenizer_of(model).image_size == (16, 16)
    assert not (tmp_path / "out" / "model" / "codec").exists()
    monkeypatch.setattr(generate, "write", lambda args, scenes, fps: made.extend(scenes))
    generate.main(["--model", str(tmp_path / "out" / "model")])
    assert made[0][1].shape == (1, 3, 3, 16, 16)


def test_a_tokenizer_that_takes_no_single_frames_has_no_joint_images(tmp_path):
    tiny_vqvae().save_pretrained(tmp_path / "tokenizer")
    words = ["--tokenizer", str(tmp_path / "tokenizer"), "--out", str(tmp_path / "out"), "--joint-images", "1"]
    with pytest.raises(SystemExit, match="--joint-images must be 0: the shortest clip of the tokenizer has 2 frames"):
        train_diffusion.main([*SMALL, *words])
