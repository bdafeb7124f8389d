"""train_prior.py --prior gpt: what it is told reaches the model, it resumes, and generate.py samples what it leaves."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import PRIOR_RUN, assert_same_weights, run, run_stopped

import generate
import train_prior
import video_files
from conftest import same_state, state, tiny_cvivit, tiny_vqgan, tiny_vqvae
from data.actions import write_actions
from data.conditions import CONDITIONS
from data.runs import load_model, read_plan, tokenizer_of
from data.video_reader import read_video
from phenaki_pytorch import FrameEncoder, FrameMapEncoder, VideoGPT
from training import loop, results, second_stage

ACTIONS, CAPTIONS, FRAMES = ("left", "right"), ("it flickers", "all is still"), 8
GPT = [*PRIOR_RUN, "--prior", "gpt", "--frames", "4"]
CASES = [[name] for name in (*CONDITIONS, "none")] + [list(CONDITIONS)]
TOLD = {  # of generate.py, for each condition
    "text": [CAPTIONS[0]],
    "classes": [CAPTIONS[0]],
    "frames": ["--image", "FOLDER/picture.png"],
    "actions": ["--actions", "right", "left"],
    "none": [],
}
TENSORS = {  # in a batch
    "text": ("text_embeds", "text_mask"),
    "frames": ("frames",),
    "actions": ("actions",),
    "classes": ("classes",),
}
OTHERS = {
    "text": [CAPTIONS[1]],
    "classes": [CAPTIONS[1]],
    "frames": ["--image", "FOLDER/other.png"],
    "actions": ["--actions", "left"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures, a tokenizer that is not trained, and a folder of four clips with captions and actions."""
    folder = tmp_path_factory.mktemp("folder")
    torch.manual_seed(0)
    random, taken = np.random.default_rng(0), {}
    for number in range(4):
        pixels = np.repeat(random.integers(0, 256, (FRAMES, 4, 4, 3), dtype=np.uint8), 4, axis=1).repeat(4, axis=2)
        video_files.write(folder / "data" / f"{number}.mp4", pixels)
        taken[f"{number}.mp4"] = [ACTIONS[each] for each in random.integers(0, 2, FRAMES)]
        (folder / "data" / f"{number}.txt").write_text(CAPTIONS[number % 2])
    write_actions(folder / "data", ACTIONS, taken)
    Image.fromarray(pixels[0]).save(folder / "picture.png")
    Image.new("RGB", (16, 16), "white").save(folder / "other.png")
    tiny_vqvae(video_shape=(8, 16, 16)).save_pretrained(folder / "tokenizer")
    return folder


def arguments(folder, condition, out):
    where = ["--data", str(folder / "data"), "--tokenizer", str(folder / "tokenizer"), "--out", str(out)]
    return [*GPT, *where, "--condition", *condition]


def frame_reader(condition):
    """Which of the two networks reads the frames: a map of features beside other conditions, else a vector."""
    return ["--frame-encoder", "map"] if len(condition) > 1 else []


def told(condition, folder, given=TOLD):
    """The words of generate.py for a model that is told these."""
    words = dict.fromkeys(tuple(given[name]) for name in condition)
    return [word.replace("FOLDER", str(folder)) for each in words for word in each]


@pytest.fixture(scope="module", params=CASES, ids="+".join)
def begun(request, folder, tmp_path_factory):
    """The conditions, --out, model and held-out batch of a training that ends before its first step.

    All weights of the prior are random, as those that are 0 at first would hide what the model is told.
    """
    condition, out, kept = request.param, tmp_path_factory.mktemp("out"), []

    def not_trained(args, accelerator, model, mixed, conditions, held_out, steps):
        torch.manual_seed(0)
        for weight in model.gpt.parameters():
            torch.nn.init.normal_(weight, std=0.5)
        kept.extend((model.eval(), held_out))
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_stage, "trained_stage", not_trained)
        patch.setattr(second_stage, "timed", lambda *given: 1.0)
        run(train_prior.main, [*arguments(folder, condition, out), *frame_reader(condition)])
    return condition, out, *kept


def test_each_condition_changes_the_loss_of_the_clips_for_which_it_is_exchanged(begun):
    condition, _, model, batch = begun
    tensors = [TENSORS[name] for name in condition if name in TENSORS]
    assert batch.keys() == {"video_ids", *(name for names in tensors for name in names)}
    with torch.no_grad():
        nats = model.losses(**batch).nats
        for names in tensors:
            exchanged = {name: batch[name].roll(1, dims=0) for name in names}
            others = [not torch.equal(*pair) for pair in zip(exchanged[names[0]], batch[names[0]])]
            changes = (model.losses(**batch | exchanged).nats - nats).abs().flatten(1).amax(dim=1)
            assert any(others) and (changes > 1e-3).tolist() == others, names


def test_the_model_that_is_left_generates_what_it_is_told(begun, folder, tmp_path, monkeypatch):
    condition, out, model, _ = begun
    saved, made = load_model(out / "model"), []
    assert isinstance(saved, VideoGPT) and same_state(state(saved), state(model))
    write = generate.write
    monkeypatch.setattr(generate, "write", lambda args, scenes, fps: made.append(scenes) or write(args, scenes, fps))
    words = ["--model", str(out / "model"), "--out", str(tmp_path / "clip"), "--scale", "1"]
    generate.main([*told(condition, folder), *words])
    assert read_video(tmp_path / "clip.mp4")[0].shape == (3, 4, 16, 16)
    monkeypatch.setattr(generate, "write", lambda args, scenes, fps: made.append(scenes))
    for name in condition:
        other = TOLD if name == "none" else TOLD | {each: OTHERS[each] for each in TOLD if TOLD[each] == TOLD[name]}
        generate.main([*told(condition, folder, other), *words])
    same = [torch.equal(scenes[0][1], made[0][0][1]) for scenes in made[1:]]
    assert same == [name == "none" for name in condition]


def test_a_further_training_begins_with_the_weights_and_the_frame_encoder_of_the_model(begun, folder, tmp_path):
    condition, out, model, _ = begun
    words = [*GPT, "--model", str(out / "model"), "--data", str(folder / "data")]
    if "frames" in condition:
        assert type(model.frame_encoder) is (FrameMapEncoder if frame_reader(condition) else FrameEncoder)
        kinds = ["vector", "map"] if frame_reader(condition) else ["map", "vector"]
        with pytest.raises(SystemExit, match="expected no --frame-encoder, or {1}, got {0}".format(*kinds)):
            run(train_prior.main, [*words, "--frame-encoder", kinds[0], "--out", str(tmp_path / "refused")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second_stage, "trained_stage", lambda args, accelerator, model, *more: model)
        patch.setattr(second_stage, "timed", lambda *given: 1.0)
        run(train_prior.main, [*words, "--out", str(tmp_path / "on")])
    assert same_state(state(load_model(tmp_path / "on" / "model")), state(model))


def test_the_model_goes_on_from_a_video_and_from_scene_to_scene(begun, folder, tmp_path, monkeypatch):
    condition, out, *_ = begun
    made, scenes = [], [CAPTIONS[1]] if {"text", "classes"} & {*condition} else []
    monkeypatch.setattr(generate, "write", lambda args, scenes, fps: made.extend(scenes))
    words = [*scenes, *told([name for name in condition if name != "frames"], folder), "--model", str(out / "model")]
    generate.main([*words, "--video", str(folder / "data" / "0.mp4")])
    # Windows of 4 frames begin with 2 of the frames before.
    assert [frames.shape[2] for _, frames in made] == [2, 2, *[2 for _ in scenes]]
    assert [label for label, _ in made] == ["given", *scenes, CAPTIONS[0] if scenes else ""]


def test_what_does_not_go_with_the_model_is_refused_in_one_line(begun, folder, tmp_path):
    condition, out, *_ = begun
    right = told(condition, folder)
    lacking = [told([each for each in condition if each != name], folder) for name in condition]
    more = [told([*condition, name], folder) for name in CONDITIONS if name not in condition]
    wrong = [words for words in [*lacking, *more] if words != right]
    foreign = {"classes": ["it jumps"], "actions": ["--actions", "up"], "text": ["a zebra"]}
    wrong += [told(condition, folder, TOLD | {name: foreign[name]}) for name in condition if name in foreign]
    wrong += [
        [*right, *words.split()] for words in ("--steps 3", "--critic-scale 2", "--temperature 0", "--scale 3000")
    ]
    wrong += [[*right, "--actions", *ACTIONS, "left", "--frames", "2"]] if "actions" in condition else []
    assert len(wrong) >= 7
    for words in wrong:
        with pytest.raises(SystemExit) as caught:
            generate.main([*words, "--model", str(out / "model"), "--out", str(tmp_path / "clip")])
        message = str(caught.value.code)
        assert message.startswith("generate.py: ") and "\n" not in message, words
    assert not list(tmp_path.iterdir())


def test_a_stopped_and_resumed_training_ends_with_the_same_weights_and_names(folder, tmp_path, capsys):
    whole, broken, every = tmp_path / "whole", tmp_path / "broken", [*CONDITIONS]
    run(train_prior.main, arguments(folder, every, whole))
    run_stopped(train_prior.main, arguments(folder, every, broken), after=2)
    assert not (broken / "model").exists()
    run(train_prior.main, ["--resume", "--out", str(broken)])
    assert "gpt: going on from step 2" in capsys.readouterr().out
    assert_same_weights(whole / "model" / "gpt", broken / "model" / "gpt")
    assert_same_weights(whole / "model" / "frame_encoder", broken / "model" / "frame_encoder")
    assert_same_weights(folder / "tokenizer", whole / "model" / "tokenizer")
    assert load_model(whole / "model").gpt.to_logits.weight.any()  # it was 0 before training
    assert (whole / "gpt" / "curves.csv").read_text() == (broken / "gpt" / "curves.csv").read_text()
    plan = json.loads((whole / "plan.json").read_text())
    assert plan["classes"] == sorted(CAPTIONS) and plan["actions"] == [*ACTIONS]
    assert plan["arguments"]["condition"] == every and "all" in plan["words"]


# A maskgit over a CViViT and a gpt over a VQVAE are those of the other tests.
@pytest.mark.parametrize(
    "kind, build", [("maskgit", tiny_vqvae), ("maskgit", tiny_vqgan), ("gpt", tiny_cvivit), ("gpt", tiny_vqgan)]
)
def test_any_prior_is_trained_over_any_tokenizer(kind, build, tmp_path, monkeypatch):
    made, tokenizer = [], build()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(generate, "write", lambda args, scenes, fps: made.extend(scenes))
    monkeypatch.setattr(second_stage, "trained_stage", lambda args, accelerator, model, *more: model)
    monkeypatch.setattr(second_stage, "timed", lambda *given: 1.0)
    words = [*PRIOR_RUN, "--prior", kind, "--condition", "none", "--tokenizer", str(tmp_path / "tokenizer")]
    run(train_prior.main, [*words, "--out", str(tmp_path)])
    assert same_state(state(tokenizer_of(load_model(tmp_path / "model"))), state(tokenizer))
    frames = read_plan(tmp_path / "model")["frames"]
    assert frames == (12 if build is tiny_vqvae else 9)
    generate.main(["--model", str(tmp_path / "model"), *(["--steps", "1"] if kind == "maskgit" else [])])
    assert made[0][1].shape == (1, 3, frames, 16, 16)


@pytest.mark.parametrize("kind, other", [("gpt", "maskgit"), ("maskgit", "gpt")])
def test_a_training_of_another_prior_is_replaced_only_if_asked_for(folder, tmp_path, kind, other):
    (tmp_path / "model" / other).mkdir(parents=True)
    with pytest.raises(SystemExit, match=f"{other} is of another training: expected another --out, or --overwrite"):
        train_prior.main(["--prior", kind, "--tokenizer", str(folder / "tokenizer"), "--out", str(tmp_path)])


def test_on_moving_shapes_the_samples_of_texts_are_judged(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MEASURED", 2)
    monkeypatch.setattr(loop, "write_curves", lambda *given: None)
    words = [*PRIOR_RUN, "--prior", "gpt", "--steps", "1", "--prompts", "2", "--out", str(tmp_path)]
    train_prior.main([*words, "--tokenizer", str(folder / "tokenizer")])
    measured = json.loads((tmp_path / "results.json").read_text())
    assert "text to video all" in measured and not any("story" in name for name in measured)
    assert all((tmp_path / "gpt" / name).is_file() for name in ("samples.png", "samples.gif", "curves.csv"))
    assert load_model(tmp_path / "model").window == 8 and not (tmp_path / "story.gif").exists()
