"""The moving shapes: splits, captions, drawings, prompts and stories."""

import math

import pytest
import torch
from torch.utils.data import DataLoader

from data.moving_shapes import (
    BACKGROUND,
    COLOURS,
    HELD_OUT_PAIRS,
    IMAGE_ONLY_COLOUR,
    MOTIONS,
    SHAPES,
    SPLITS,
    UNSEEN_PAIR,
    Clip,
    MovingShapes,
    cover,
    draw,
    prompts,
    read_caption,
    stories,
)
from evaluation.judge import Verdict


def clips_of(split, count, **kwargs):
    dataset = MovingShapes(split, length=count, **kwargs)
    return [dataset.clip(index) for index in range(count)]


def truth(clip):
    return Verdict(clip.colour, clip.shape, clip.motions[-1])


def steady(colour="red", shape="circle", motion="right", num_frames=9, start=(0.4, 0.3)):
    return Clip(colour, shape, (motion,) * (num_frames - 1), start, f"a {colour} {shape} moves {motion}")


def test_splits_have_exactly_their_pairs():
    held_out, white = set(HELD_OUT_PAIRS), {(IMAGE_ONLY_COLOUR, shape) for shape in SHAPES}
    every = {(colour, shape) for colour in COLOURS for shape in SHAPES}
    assert held_out == {("green", "triangle"), ("yellow", "circle"), ("purple", "square")}
    assert UNSEEN_PAIR == ("red", "triangle") and IMAGE_ONLY_COLOUR == "white" and len(every) == 18
    seen = every - held_out - white - {UNSEEN_PAIR}
    expected = {
        "tokenizer": every,
        "captioned_video": seen,
        "captioned_images": every - {UNSEEN_PAIR},
        "seen": seen,
        "held_out": held_out,
        "unseen": {UNSEEN_PAIR},
        "image_only": white,
    }
    assert SPLITS.keys() == expected.keys()
    for split, pairs in expected.items():
        clips = clips_of(split, 2000)
        assert {(clip.colour, clip.shape) for clip in clips} == pairs
        assert {len(clip.motions) for clip in clips} == {0 if split == "captioned_images" else 8}


def test_captions_describe_the_clips():
    turns = set()
    clips = clips_of("captioned_video", 3000)
    for clip in clips:
        assert read_caption(clip.caption) == truth(clip)
        changes = [i for i in range(1, 8) if clip.motions[i] != clip.motions[i - 1]]
        assert len(changes) == (" turns " in clip.caption)
        turns.update(changes)
    assert turns == {1, 2, 3, 4, 5}
    assert 0.27 < sum("turns" in clip.caption for clip in clips) / 3000 < 0.33
    starts = torch.tensor([clip.start for clip in clips])
    assert starts.min() >= 0 and starts.max() < 1
    assert (starts.mean(dim=0) - 0.5).abs().max() < 0.03 and (starts.std(dim=0) - 12**-0.5).abs().max() < 0.02
    assert {item["caption"] for item in MovingShapes("tokenizer").__getitems__(range(100))} == {""}
    assert all(read_caption(clip.caption) == truth(clip) for clip in clips_of("tokenizer", 100))
    assert all(read_caption(clip.caption) == (*clip[:2], None) for clip in clips_of("captioned_images", 100))


@pytest.mark.parametrize("num_frames", [1, 2, 3, 9])
@pytest.mark.parametrize("split", SPLITS)
def test_every_caption_is_one_that_occurs_and_no_other_does(split, num_frames):
    dataset = MovingShapes(split, num_frames=num_frames, length=3000)
    found = {""} if split == "tokenizer" else {dataset.clip(index).caption for index in range(len(dataset))}
    every = dataset.every_caption()
    assert set(every) == found and len(every) == len(found)


@pytest.mark.parametrize("num_frames, latest", [(1, 0), (2, 0), (3, 1), (5, 3), (7, 5), (20, 5)])
def test_short_clips_turn_only_if_they_have_enough_steps(num_frames, latest):
    clips = clips_of("captioned_video", 500, num_frames=num_frames)
    found = {i for clip in clips for i in range(1, num_frames - 1) if clip.motions[i] != clip.motions[i - 1]}
    assert found == set(range(1, latest + 1))
    assert any("turns" in clip.caption for clip in clips) == (latest > 0)
    assert all((read_caption(clip.caption)[2] is None) == (num_frames == 1) for clip in clips)


def test_items_are_determined_by_split_seed_and_index():
    dataset = MovingShapes("captioned_video", length=50)
    batch = dataset.__getitems__(list(range(50)))
    torch.manual_seed(1)
    for index in (49, 3, 3, 17, 0):
        item = dataset[index]
        assert torch.equal(item["video"], batch[index]["video"])
        assert item["caption"] == batch[index]["caption"]
    for other in (MovingShapes("captioned_video", seed=1), MovingShapes("seen")):
        assert all(other.clip(index).start != dataset.clip(index).start for index in range(50))
    assert MovingShapes("captioned_video", size=64).clip(7) == dataset.clip(7)
    with pytest.raises(IndexError, match="got 50"):
        dataset[50]
    # The same in every process and on every machine.
    assert dataset.clip(0).caption == "a blue square moves right"
    assert dataset.clip(0).start == pytest.approx((0.5249371505224609, 0.6745508546602017))


def test_data_loader_batches_videos_and_captions():
    dataset = MovingShapes("captioned_video", size=24, num_frames=5, length=8)
    [batch] = DataLoader(dataset, batch_size=8)
    assert batch["video"].shape == (8, 3, 5, 24, 24) and batch["video"].dtype == torch.float32
    assert batch["video"].min() >= 0 and batch["video"].max() <= 1
    assert batch["caption"] == [dataset.clip(index).caption for index in range(8)]
    assert MovingShapes("captioned_images")[0]["video"].shape == (3, 1, 32, 32)


@pytest.mark.parametrize("shape", SHAPES)
def test_objects_that_leave_on_one_side_enter_on_the_other(shape):
    # With steps of whole pixels, every frame is a rolled copy of the first.
    video = draw([steady("yellow", shape, motion, 45, (0.13, 0.97)) for motion in MOTIONS], size=40)
    for clip, (dy, dx) in zip(video, MOTIONS.values()):
        for frame in range(45):
            rolled = clip[:, 0].roll((2 * frame * dy, 2 * frame * dx), dims=(1, 2))
            torch.testing.assert_close(clip[:, frame], rolled, atol=2e-4, rtol=0)
    at_edge = draw([Clip("red", shape, (), (0.5, 0.0), "")])[0, 0, 0]
    assert at_edge[16, 0] > 0.8 and at_edge[16, -1] > 0.8 and at_edge[16, 16] < 0.1


@pytest.mark.parametrize("size", [24, 32, 64])
def test_shapes_have_their_areas_colours_and_soft_edges(size):
    areas = {"circle": math.pi * 0.2**2, "square": 0.36**2, "triangle": 0.75 * math.sqrt(3) * 0.25**2}
    for shape, area in areas.items():
        covered = cover(shape, torch.rand(50, 2), size)
        assert (covered.mean(dim=(1, 2)) / area - 1).abs().max() < 0.04
        assert ((covered > 0) & (covered < 1)).any(dim=(1, 2)).all()
    for colour, rgb in COLOURS.items():
        frame = draw([Clip(colour, "square", (), (0.5, 0.5), "")], size)[0, :, 0]
        assert torch.equal(frame[:, size // 2, size // 2], torch.tensor(rgb))
        assert torch.equal(frame[:, 0, 0], torch.tensor(BACKGROUND))


def test_the_triangle_points_up():
    widths = (cover("triangle", torch.tensor([0.5, 0.5]), 64) > 0.5).sum(dim=1)
    widths = widths[widths > 0]
    assert (widths.diff() >= 0).all() and widths[0] <= 3 and widths[-1] > 24


def test_prompts_and_stories_have_the_right_objects_and_motions():
    captions = prompts("held_out", 500)
    assert len(captions) == 500 and captions == prompts("held_out", 500)
    assert captions != prompts("held_out", 500, seed=1)
    assert {read_caption(prompt)[:2] for prompt in captions} == set(HELD_OUT_PAIRS)
    assert 0.2 < sum("turns" in prompt for prompt in captions) / 500 < 0.4
    for verb in ("turns", "moves"):
        for story in stories(100, verb=verb):
            objects, motions = zip(*[(read_caption(prompt)[:2], read_caption(prompt)[2]) for prompt in story])
            assert len(set(objects)) == 1 and objects[0] in SPLITS["seen"]
            assert motions[0] != motions[1] != motions[2]
            assert [prompt.split()[3] for prompt in story] == ["moves", verb, verb]


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"captioned_video.*got 'train'"):
        MovingShapes("train")
    for name in ("size", "num_frames", "length"):
        with pytest.raises(ValueError, match=f"{name} of at least 1, got 0"):
            MovingShapes("seen", **{name: 0})
    with pytest.raises(ValueError, match=r"got lengths \[5, 9\]"):
        draw([steady(), steady(num_frames=5)])
    with pytest.raises(ValueError, match=r"got lengths \[\]"):
        draw([])
    with pytest.raises(ValueError, match="got 'jumps'"):
        stories(1, verb="jumps")
    for caption in ("", "red circle", "a pink circle", "a red disc moves up", "a red circle flies up"):
        with pytest.raises(ValueError, match=f"got '{caption}'"):
            read_caption(caption)


def test_captions_after_the_turn_say_moves():
    dataset, seen = MovingShapes("captioned_video"), set()
    for index in range(200):
        clip = dataset.clip(index)
        *_, verb, motion = clip.caption.split()
        for frames in range(1, 9):
            later = clip.motions[frames - 1 :]
            expected = "moves" if set(later) == {motion} else "turns"
            assert clip.caption_after(frames) == clip.caption.replace(verb, expected)
            seen.add((verb, expected))
        assert dataset[index]["captions_after"] == [clip.caption_after(frames) for frames in range(1, 9)]
    assert seen == {("moves", "moves"), ("turns", "turns"), ("turns", "moves")}
    assert "captions_after" not in MovingShapes("seen")[0]
