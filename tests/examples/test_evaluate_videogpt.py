"""evaluate_videogpt.py: bits of the ids, steady motion and turns are measured right, for what a model is told."""

import json
import math

import pytest
import torch

import evaluate_videogpt
from data.actions import write_actions
from data.conditions import Conditions
from data.encoded import Encoded
from data.moving_shapes import MovingShapes
from evaluation import conditional
from evaluation.conditional import millibits_per_dimension, steady_motion, steered
from video_files import grey_frames, write
from videogpt_models import videogpt

ACTIONS = ["turn_right", "turn_left", "move_forward"]


def told(names, **options):
    return Conditions(names, actions=ACTIONS if "actions" in names else (), **options)


def encoded(count=8, **others):
    ids = torch.randint(0, 32, (count, 3, 2, 2))
    return Encoded(ids, [["a"] * 3] * count, told=others)


def steering_model(**changes):
    """A model of 6 frames that is told the first frame and three actions."""
    return videogpt("vector", "actions", dim_action=3, **changes).eval()


def test_an_untrained_model_needs_the_bits_of_equally_likely_ids():
    model = videogpt().eval()
    model.gpt.to_logits.weight.data.zero_()
    [(name, bits)] = millibits_per_dimension(model, encoded(), told(set()), seed=0).items()
    assert name == "millibits per dimension, true"
    assert bits == pytest.approx(1000 * 3 * 2 * 2 * math.log2(32) / (3 * 6 * 16 * 16)) and bits.trials == 8


def test_only_the_condition_that_is_shuffled_changes_the_bits():
    model = steering_model()
    model.gpt.to_logits.weight.data.normal_()
    pictures, still = torch.randint(0, 255, (8, 3, 1, 16, 16), dtype=torch.uint8), torch.zeros(8, 6, 3)
    for frames, actions, changed in (
        (pictures, still, {"frames"}),
        (pictures[:1].expand_as(pictures), torch.rand_like(still), {"actions"}),
    ):
        clips, conditions = encoded(frames=frames, actions=actions), told({"frames", "actions"})
        bits = millibits_per_dimension(model, clips, conditions, seed=0)
        true = bits["millibits per dimension, true"]
        for name in ("frames", "actions"):
            assert (bits[f"millibits per dimension, {name} shuffled"] != pytest.approx(true, rel=1e-6)) == (
                name in changed
            )


def test_drawn_objects_move_steadily_and_others_do_not(monkeypatch):
    model = videogpt("vector", grid=(6, 2, 2)).eval()
    drawn, _ = MovingShapes("seen", size=16, num_frames=12, length=6, seed=0).told(6)
    still, jerky = torch.zeros(12, dtype=torch.int64), torch.arange(12) // 2 * 2
    for frames, share in ((torch.arange(12), 1.0), (still, 0.0), (jerky, 0.0)):
        videos = drawn[:, :, frames]
        monkeypatch.setattr(conditional, "sample", lambda *given, videos=videos, **options: videos)
        measured = steady_motion(model, 6, seed=0, sampling={})
        assert measured["within 0.5 pixels of constant velocity"] == share
        assert (measured["distance from constant velocity"] < 0.1) == (share == 1)


def test_turns_are_judged_by_their_side(monkeypatch):
    scene = torch.rand(1, 3, 1, 16, 64)

    def sample(model, first, told, **options):
        """The camera turns to the left, whatever it is told."""
        assert told["actions"].shape == (2, 6, 3) and (told["actions"].sum(dim=-1) == 1).all()
        views = [scene[..., 20 - 2 * frame : 36 - 2 * frame] for frame in range(6)]
        return torch.cat(views, dim=2).expand(2, -1, -1, -1, -1)

    monkeypatch.setattr(conditional, "sample", sample)
    videos, measured = steered(steering_model(), torch.rand(2, 3, 16, 16), ACTIONS, seed=0, sampling={})
    assert list(videos) == ACTIONS
    assert {name: float(value) for name, value in measured.items()} == {
        "turn_right: clips to the right side": 0.0,
        "turn_right: steps to the right side": 0.0,
        "turn_right: shift of a step": -2.0,
        "turn_left: clips to the right side": 1.0,
        "turn_left: steps to the right side": 1.0,
        "turn_left: shift of a step": -2.0,
        "move_forward: shift of a step": -2.0,
    }


def test_the_program_measures_a_model_of_frames_and_actions(tmp_path, capsys):
    model, data = steering_model(), tmp_path / "clips"
    model.save_pretrained(tmp_path / "run" / "model")
    plan = {"actions": ACTIONS, "arguments": {"prior": "gpt", "top_k": 5}}
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    for name in ("a.mp4", "b.mp4"):
        write(data / name, grey_frames(7))
    write_actions(data, ACTIONS, {name: ["turn_left"] * 7 for name in ("a.mp4", "b.mp4")})
    words = ["--model", str(tmp_path / "run" / "model"), "--data", str(data), "--clips", "10", "--count", "2"]
    evaluate_videogpt.main([*words, "--sheet", str(tmp_path / "sheet.png")])
    printed = capsys.readouterr().out
    for row in (
        "millibits per dimension, true",
        "actions shuffled",
        "turn_left: clips to the right side",
        "move_forward: shift",
    ):
        assert row in printed
    assert (tmp_path / "sheet.png").is_file()
    with pytest.raises(SystemExit, match="--steps would have no effect on a VideoGPT"):
        evaluate_videogpt.main([*words, "--steps", "5"])
