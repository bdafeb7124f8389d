"""The measures of the claims: a model that draws what it is told is right in all, and each fault lowers its own."""

import random
from argparse import Namespace
from dataclasses import dataclass

import pytest
import torch

from claims import OVERLAP, animation, length, mean_distance, prediction, story, text_to_image, text_to_video, variety
from moving_shapes import MOTIONS, Clip, another_motion, draw, read_caption
from moving_shapes_judge import judge, track

SIZE = 32


@dataclass
class Drawn:
    """Stands where a `Phenaki` does, and draws: each fault is an argument."""

    pace: int = 1  # steps of the world in each of its own; 0 is frozen
    colour: str | None = None
    start: tuple[float, float] | None = None
    forgets: bool = False  # goes on from anywhere
    window: int = 9

    cvivit = Namespace(image_size=(SIZE, SIZE))
    maskgit = Namespace(to_logits=Namespace(weight=torch.zeros(())))

    def generate(self, texts=None, *, num_frames, batch_size=1, prime_frames=None, generator=None, overlap=5, **_):
        if texts is None:
            texts = [f"a {v.colour} {v.shape} moves {v.motion}" for v in judge(prime_frames, motion_start=OVERLAP - 2)]
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

    def generate_story(self, told, *, num_frames, overlap, generator, **_):
        whole = None
        for texts, count in zip(zip(*told), num_frames):
            recent = None if whole is None else whole[:, :, -overlap:]
            new = self.generate(list(texts), num_frames=count, prime_frames=recent, generator=generator)
            whole = new if whole is None else torch.cat((whole, new), dim=2)
        return whole, list(whole.split(num_frames, dim=2))


def test_a_model_that_draws_what_it_is_told_is_right_in_everything():
    model = Drawn()
    for split in ("seen", "held_out", "unseen", "image_only"):
        assert set(text_to_video(model, 20, seed=0, split=split).shares().values()) == {1.0}
    assert set(text_to_image(model, 20, seed=0).shares().values()) == {1.0}
    assert set(animation(model, 20, seed=0).values()) == {1.0}
    assert set(length(model, 6, seed=0, windows=4).values()) == {1.0}
    for verb in ("moves", "turns"):
        told = story(model, 6, seed=0, verb=verb)
        assert told.pop("seam ratio") == pytest.approx(1, abs=0.1)
        assert told.pop("speed over the drawn one") == pytest.approx(1, abs=0.05)
        assert set(told.values()) == {1.0}


@pytest.mark.parametrize(
    "fault, wrong", [(Drawn(colour="white"), "colour"), (Drawn(pace=0), "motion"), (Drawn(pace=2), "motion")]
)
def test_a_fault_lowers_its_own_attribute_and_no_other(fault, wrong):
    shares = text_to_video(fault, 20, seed=0).shares()
    assert {name for name in ("colour", "shape", "motion") if shares[name] < 1} == {wrong}
    assert shares["all"] == shares["all, moves"] == shares["all, turns"] == 0 == shares[wrong]
    assert shares["all, moves"].trials + shares["all, turns"].trials == shares["all"].trials == 20


def test_the_same_seed_asks_and_draws_the_same():
    one, same, other = (text_to_video(Drawn(), 30, seed=seed) for seed in (0, 0, 1))
    assert one == same and one.captions != other.captions


def test_under_other_captions_clips_are_right_by_chance_alone():
    judged = text_to_video(Drawn(), 60, seed=0)
    shuffled = judged.shuffled(seed=0)
    assert sorted(shuffled.captions) == sorted(judged.captions) and shuffled.verdicts == judged.verdicts
    shares = shuffled.shares()
    assert shares["all"] < 0.15 and shares["colour"] < 0.5 and shares["motion"] < 0.5


def test_confusion_counts_what_was_read_in_place_of_what_was_asked():
    right = text_to_video(Drawn(), 40, seed=0).confusion()
    assert set(right["motion"]) == set(MOTIONS)
    assert all(set(read) == {asked} for table in right.values() for asked, read in table.items())
    wrong = text_to_video(Drawn(colour="white"), 40, seed=0).confusion()
    assert all(set(read) == {"white"} for read in wrong["colour"].values())
    assert sum(sum(read.values()) for read in wrong["colour"].values()) == 40
    assert set(text_to_image(Drawn(), 10, seed=0).confusion()["motion"]) == set()


def test_animation_sees_a_frozen_object_a_changed_one_and_one_that_does_not_start_from_the_frame():
    frozen, changed, elsewhere = (animation(model, 20, seed=0) for model in FAULTY)
    assert frozen["motion"] == 0 and frozen["object kept"] == frozen["first frame kept"] == 1
    assert changed["object kept"] == 0 and changed["motion"] == changed["first frame kept"] == 1
    assert elsewhere["first frame kept"] < 0.3 and elsewhere["object kept"] == 1


FAULTY = (Drawn(pace=0), Drawn(colour="white"), Drawn(forgets=True))


def test_stories_and_long_videos_see_their_faults():
    frozen, changed, jumping = (story(model, 6, seed=0) for model in FAULTY)
    assert frozen["scenes with motion right"] == 0 and frozen["object kept"] == 1
    assert frozen["speed over the drawn one"] == pytest.approx(0, abs=0.01)
    assert changed["object kept"] == changed["every scene right"] == 0 and changed["motion right in every scene"] == 1
    assert jumping["seam ratio"] > 2 and jumping["object kept"] == 1
    assert story(Drawn(pace=2), 6, seed=0)["speed over the drawn one"] == pytest.approx(2, rel=0.05)
    windows = length(Drawn(pace=0), 4, seed=0, windows=3)
    assert list(windows) == ["window 1", "window 2", "window 3"] and set(windows.values()) == {0.0}


def test_prediction_stands_between_its_two_baselines():
    exact = prediction(Drawn(), 12, seed=0)
    assert exact["error"] == pytest.approx(0, abs=0.15)
    assert exact["error, constant velocity"] == pytest.approx(0, abs=0.4)  # what is misread grows over four steps
    step = 0.05 * SIZE
    assert exact["error, standing still"] == pytest.approx(2.5 * step, rel=0.05)  # the mean of 1 to 4 steps
    frozen = prediction(Drawn(pace=0), 12, seed=0)
    assert frozen["error"] == pytest.approx(frozen["error, standing still"], rel=0.02)
    assert exact["error"].trials == 12


def test_variety_is_that_of_the_data_or_none():
    assert variety(Drawn(), 64, seed=0)["spread over the data's"] == pytest.approx(1, abs=0.1)
    assert variety(Drawn(start=(0.3, 0.6)), 64, seed=0)["spread over the data's"] == pytest.approx(0, abs=0.01)


def test_the_mean_distance_is_that_of_all_pairs_the_short_way_round():
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(12, 2, generator=generator)
    pairs = []
    for i in range(12):
        for j in range(i):
            apart = (places[i] - places[j]).abs()
            pairs.append(torch.minimum(apart, 1 - apart).norm())
    mean = mean_distance(places)
    assert mean == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert mean_distance(places, unit=0.5) == pytest.approx(2 * mean, rel=1e-5)
    # over many draws, the interval holds the expected distance about as often as it says
    held = 0
    for _ in range(100):
        low, high = mean_distance(0.2 * torch.rand(30, 2, generator=generator)).interval()
        held += low <= 0.2 * 0.5214 <= high
    assert held >= 85
