"""The measures of the claims: a perfect model is right in all, and each fault lowers the figures that it should."""

import random
from argparse import Namespace
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from data.moving_shapes import MOTIONS, Clip, another_motion, draw, read_caption
from evaluation import claims
from evaluation.claims import (
    animation,
    length,
    mean_distance,
    overlap_of,
    prediction,
    story,
    text_to_image,
    text_to_video,
    variety,
)
from evaluation.judge import judge, track

SIZE = 32


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """The stand-ins for models have no weights that would tell their device."""
    monkeypatch.setattr(claims, "device_of", lambda model: torch.device("cpu"))
    monkeypatch.setattr(claims, "tokenizer_of", lambda model: model.cvivit)


class Frames(nn.Module):
    """A tokenizer that takes `first` + k · `stride` frames."""

    image_size = (SIZE, SIZE)

    def __init__(self, first=1, stride=2):
        super().__init__()
        self.first, self.stride = first, stride

    def num_frames(self, t):
        return self.first + (t - 1) * self.stride

    def grid(self, num_frames, height=None, width=None):
        return (num_frames - self.first) // self.stride + 1, 8, 8


@dataclass
class Drawn:
    """A stand-in for a `Phenaki` that draws the prompts; each argument is a fault, except for the tokenizer."""

    pace: int = 1  # drawn steps in each step; 0 does not move
    colour: str | None = None
    start: tuple[float, float] | None = None
    forgets: bool = False  # continues from a random position
    cvivit: Frames = field(default_factory=Frames)

    maskgit = Namespace(to_logits=Namespace(weight=torch.zeros(())), grid=(5, 8, 8))

    @property
    def window(self):
        return self.cvivit.num_frames(5)

    def generate(self, texts=None, *, num_frames, batch_size=1, prime_frames=None, generator=None, **_):
        if prime_frames is not None and texts is None:
            start = prime_frames.shape[2] - 2
            texts = [f"a {v.colour} {v.shape} moves {v.motion}" for v in judge(prime_frames, motion_start=start)]
        seed = torch.randint(2**31, (), generator=generator).item()
        clips = [
            self.clip(text, row, num_frames, prime_frames, random.Random(seed + row)) for row, text in enumerate(texts)
        ]
        videos = draw(clips, SIZE)[:, :, :: max(1, self.pace)]
        if self.pace == 0:
            videos = videos[:, :, :1].expand_as(videos)
        return videos if prime_frames is None else videos[:, :, 1:]

    def clip(self, text, row, num_frames, prime_frames, rng):
        colour, shape, motion = read_caption(text)
        steps = num_frames - (prime_frames is None)
        motions = (motion or "left",) * (steps * max(1, self.pace))
        start = self.start or (rng.random(), rng.random())
        if prime_frames is not None and not self.forgets:
            start = tuple((track(prime_frames[row : row + 1])[0, -1] / SIZE).tolist())
        elif "turns" in text and prime_frames is None and steps > 2:
            motions = (another_motion(rng, motion),) * 2 + motions[2:]
        return Clip(self.colour or colour, shape, motions, start, text)

    def generate_story(self, scenes, *, num_frames, overlap, generator, **_):
        whole = None
        for texts, count in zip(zip(*scenes), num_frames):
            recent = None if whole is None else whole[:, :, -overlap:]
            new = self.generate(list(texts), num_frames=count, prime_frames=recent, generator=generator)
            whole = new if whole is None else torch.cat((whole, new), dim=2)
        return whole, list(whole.split(num_frames, dim=2))


@pytest.mark.parametrize("lengths", [(1, 2), (2, 2)], ids=["1 + 2k frames", "2k frames"])
def test_a_perfect_model_is_right_in_everything(lengths):
    model = Drawn(cvivit=Frames(*lengths))
    assert overlap_of(model) == {1: 5, 2: 4}[lengths[0]]
    for split in ("seen", "held_out", "unseen", "image_only"):
        assert set(text_to_video(model, 20, seed=0, split=split).shares().values()) == {1.0}
    assert set(text_to_image(model, 20, seed=0).shares().values()) == {1.0}
    assert set(animation(model, 20, seed=0).values()) == {1.0}
    assert set(length(model, 6, seed=0, windows=4).values()) == {1.0}
    for verb in ("moves", "turns"):
        measured = story(model, 6, seed=0, verb=verb)
        assert measured.pop("seam ratio") == pytest.approx(1, abs=0.1)
        assert measured.pop("speed over the drawn one") == pytest.approx(1, abs=0.05)
        assert set(measured.values()) == {1.0}


@pytest.mark.parametrize(
    "fault, wrong", [(Drawn(colour="white"), "colour"), (Drawn(pace=0), "motion"), (Drawn(pace=2), "motion")]
)
def test_a_fault_lowers_its_own_attribute_and_no_other(fault, wrong):
    shares = text_to_video(fault, 20, seed=0).shares()
    assert {name for name in ("colour", "shape", "motion") if shares[name] < 1} == {wrong}
    assert shares["all"] == shares["all, moves"] == shares["all, turns"] == 0 == shares[wrong]
    assert shares["all, moves"].trials + shares["all, turns"].trials == shares["all"].trials == 20


def test_the_same_seed_gives_the_same_prompts_and_clips():
    one, same, other = (text_to_video(Drawn(), 30, seed=seed) for seed in (0, 0, 1))
    assert one == same and one.captions != other.captions


def test_with_shuffled_captions_clips_are_right_by_chance():
    judged = text_to_video(Drawn(), 60, seed=0)
    shuffled = judged.shuffled(seed=0)
    assert sorted(shuffled.captions) == sorted(judged.captions) and shuffled.verdicts == judged.verdicts
    shares = shuffled.shares()
    assert shares["all"] < 0.15 and shares["colour"] < 0.5 and shares["motion"] < 0.5


def test_confusion_counts_the_values_read_for_each_value_in_the_captions():
    right = text_to_video(Drawn(), 40, seed=0).confusion()
    assert set(right["motion"]) == set(MOTIONS)
    assert all(set(read) == {expected} for table in right.values() for expected, read in table.items())
    wrong = text_to_video(Drawn(colour="white"), 40, seed=0).confusion()
    assert all(set(read) == {"white"} for read in wrong["colour"].values())
    assert sum(sum(read.values()) for read in wrong["colour"].values()) == 40
    assert set(text_to_image(Drawn(), 10, seed=0).confusion()["motion"]) == set()


def test_animation_detects_each_fault():
    frozen, changed, elsewhere = (animation(model, 20, seed=0) for model in FAULTY)
    assert frozen["motion"] == 0 and frozen["object kept"] == frozen["first frame kept"] == 1
    assert changed["object kept"] == 0 and changed["motion"] == changed["first frame kept"] == 1
    assert elsewhere["first frame kept"] < 0.3 and elsewhere["object kept"] == 1


FAULTY = (Drawn(pace=0), Drawn(colour="white"), Drawn(forgets=True))


def test_stories_and_long_videos_detect_each_fault():
    frozen, changed, jumping = (story(model, 6, seed=0) for model in FAULTY)
    assert frozen["scenes with motion right"] == 0 and frozen["object kept"] == 1
    assert frozen["speed over the drawn one"] == pytest.approx(0, abs=0.01)
    assert changed["object kept"] == changed["every scene right"] == 0 and changed["motion right in every scene"] == 1
    assert jumping["seam ratio"] > 2 and jumping["object kept"] == 1
    assert story(Drawn(pace=2), 6, seed=0)["speed over the drawn one"] == pytest.approx(2, rel=0.05)
    windows = length(Drawn(pace=0), 4, seed=0, windows=3)
    assert list(windows) == ["window 1", "window 2", "window 3"] and set(windows.values()) == {0.0}


def test_prediction_is_exact_for_a_perfect_model_and_standing_still_for_a_frozen_one():
    exact = prediction(Drawn(), 12, seed=0)
    assert exact["error"] == pytest.approx(0, abs=0.15)
    assert exact["error, constant velocity"] == pytest.approx(0, abs=0.4)  # the error of one step, four times
    step = 0.05 * SIZE
    assert exact["error, standing still"] == pytest.approx(2.5 * step, rel=0.05)  # the mean of 1 to 4 steps
    frozen = prediction(Drawn(pace=0), 12, seed=0)
    assert frozen["error"] == pytest.approx(frozen["error, standing still"], rel=0.02)
    assert exact["error"].trials == 12


def test_prediction_needs_two_given_frames():
    with pytest.raises(ValueError, match="at least 2 given frames, a window of 61 has 1"):
        prediction(Drawn(cvivit=Frames(1, 15)), 4, seed=0)


def test_variety_is_1_for_random_starts_and_0_for_one_start():
    assert variety(Drawn(), 64, seed=0)["spread over the data's"] == pytest.approx(1, abs=0.1)
    assert variety(Drawn(start=(0.3, 0.6)), 64, seed=0)["spread over the data's"] == pytest.approx(0, abs=0.01)


def test_mean_distance_is_that_of_all_pairs_on_the_torus():
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(12, 2, generator=generator)
    pairs = []
    for i in range(12):
        for j in range(i):
            apart = (positions[i] - positions[j]).abs()
            pairs.append(torch.minimum(apart, 1 - apart).norm())
    mean = mean_distance(positions)
    assert mean == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert mean_distance(positions, unit=0.5) == pytest.approx(2 * mean, rel=1e-5)
    # About 95 % of the intervals hold the expected distance.
    held = 0
    for _ in range(100):
        low, high = mean_distance(0.2 * torch.rand(30, 2, generator=generator)).interval()
        held += low <= 0.2 * 0.5214 <= high
    assert held >= 85
