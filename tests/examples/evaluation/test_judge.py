"""The judge reads every drawn clip right, and reads "none" where a clip has no clear colour, shape or motion."""

import math
from itertools import product

import pytest
import torch

from data.moving_shapes import (
    BACKGROUND,
    COLOURS,
    MOTIONS,
    SHAPES,
    SPEED,
    TURN_LATEST,
    Clip,
    MovingShapes,
    cover,
    draw,
    read_caption,
    stories,
)
from evaluation.judge import NONE, Verdict, agree, judge, seam_ratio, speed, track


def clips_of(split, count, **kwargs):
    dataset = MovingShapes(split, length=count, **kwargs)
    return [dataset.clip(index) for index in range(count)]


def truth(clip):
    return Verdict(clip.colour, clip.shape, clip.motions[-1])


def steady(colour="red", shape="circle", motion="right", num_frames=9, start=(0.4, 0.3)):
    return Clip(colour, shape, (motion,) * (num_frames - 1), start, f"a {colour} {shape} moves {motion}")


def paint(shape, centres, colour="red", size=32):
    """A video (1, 3, f, size, size) of a shape at any centres (f, 2), in sides of the frame."""
    rgb = torch.tensor(COLOURS.get(colour, colour))
    background = torch.tensor(BACKGROUND)
    covered = cover(shape, torch.as_tensor(centres, dtype=torch.float32), size)
    return torch.lerp(background[:, None, None, None], rgb[:, None, None, None], covered)[None]


def path(step, frames=9, start=(0.4, 0.3)):
    return [(start[0] + step[0] * i, start[1] + step[1] * i) for i in range(frames)]


def with_noise(videos, seed=0):
    return videos + 0.05 * torch.randn(videos.shape, generator=torch.Generator().manual_seed(seed))


# drawn clips


@pytest.mark.parametrize(
    "size, num_frames, count",
    [(32, 9, 2000), (32, 45, 200), (24, 45, 100), (24, 9, 100), (64, 9, 60), (45, 6, 100)],
)
def test_every_drawn_clip_is_read_right(size, num_frames, count):
    clips = clips_of("tokenizer", count, num_frames=num_frames, size=size)
    if count == 2000:
        assert {truth(clip) for clip in clips} == set(product(COLOURS, SHAPES, MOTIONS))
    for part in range(0, count, 100):
        batch = clips[part : part + 100]
        motion_start = min(TURN_LATEST, num_frames - 2)
        assert judge(draw(batch, size), motion_start=motion_start) == [truth(clip) for clip in batch]


def test_steady_clips_are_read_right_over_all_their_frames():
    clips = [clip for clip in clips_of("seen", 200) if "moves" in clip.caption]
    for verdict, clip in zip(judge(draw(clips)), clips):
        assert agree(verdict, clip.caption).all


@pytest.mark.parametrize("size", [24, 32, 64])
def test_noise_does_not_change_the_answers(size):
    clips = clips_of("tokenizer", 3000 // size, size=size)
    videos = with_noise(draw(clips, size))
    for noisy in (videos, videos.clamp(0, 1)):
        assert judge(noisy, motion_start=TURN_LATEST) == [truth(clip) for clip in clips]


def test_images_are_read_right():
    clips = clips_of("captioned_images", 200)
    verdicts = judge(draw(clips))
    assert verdicts == [Verdict(clip.colour, clip.shape, NONE) for clip in clips]
    assert all(agree(verdict, clip.caption).all for verdict, clip in zip(verdicts, clips))


def test_drawn_stories_are_right_scene_by_scene():
    scripts = stories(80)
    clips = []
    for story in scripts:
        colour, shape, _ = read_caption(story[0])
        scenes = [read_caption(prompt)[2] for prompt in story]
        motions = tuple(motion for motion, steps in zip(scenes, (8, 4, 4)) for _ in range(steps))
        clips.append(Clip(colour, shape, motions, (0.1, 0.7), ""))
    videos = draw(clips)  # 9 frames, then twice 4 new ones after 5 shared ones
    for scene, (first, start) in enumerate([(0, 0), (4, 5), (8, 5)]):
        verdicts = judge(videos[:, :, first : first + 9], start=start)
        assert all(agree(verdict, story[scene]).all for verdict, story in zip(verdicts, scripts))
    # Over two scenes at once, no motion holds long enough.
    assert {verdict.motion for verdict in judge(videos[:, :, :13])} == {NONE}


# other clips

RIGHT = (0, SPEED)
GREY = (0.5, 0.5, 0.5)


def test_a_grey_circle_has_no_colour_and_a_blurred_one_no_shape():
    assert judge(paint("circle", path(RIGHT), GREY)) == [Verdict(NONE, "circle", "right")]
    pixels = torch.arange(32) - 16
    blob = torch.exp(-(pixels[:, None] ** 2 + pixels**2) / (2 * 5.0**2))  # h w
    video = 0.09 + (0.5 - 0.09) * blob.expand(1, 3, 9, 32, 32)
    assert judge(video) == [Verdict(NONE, NONE, NONE)]


@pytest.mark.parametrize("colour", ["red", "blue"])
@pytest.mark.parametrize("gap", [(0, 0.5), (0.5, 0.5), (0.45, 0.1)])
def test_two_objects_are_not_one(colour, gap):
    first = paint("circle", path(RIGHT))
    second = paint("circle", path(RIGHT, start=(0.4 + gap[0], 0.3 + gap[1])), colour)
    background = torch.tensor(BACKGROUND)[:, None, None, None]
    both = first + second - background
    assert judge(first) == [Verdict("red", "circle", "right")]
    assert judge(both) == [Verdict(NONE, NONE, NONE)]


def test_a_small_second_object_is_ignored_and_a_larger_one_is_not():
    video = paint("circle", path(RIGHT))
    video[..., 25:28, 2:5] = torch.tensor(COLOURS["red"])[:, None, None, None]  # 9 pixels beside about 129
    assert judge(video) == [Verdict("red", "circle", "right")]
    video[..., 25:30, 2:7] = torch.tensor(COLOURS["red"])[:, None, None, None]
    assert judge(video) == [Verdict(NONE, NONE, NONE)]


@pytest.mark.parametrize(
    "positions",
    [
        path((0, 0)),
        path((0, 0), 4) + path((0, 0), 5, (0.4, 0.7)),  # as far as eight steps, in one step
        path((0, SPEED), 4) + path((0, SPEED), 5, (0.8, 0.5)),  # right except for one jump sideways
        path((0, SPEED / 3)),
        path((0, SPEED * 2)),
        path((SPEED, SPEED)),
        path((SPEED * math.sqrt(0.5), -SPEED * math.sqrt(0.5))),
        path((0, SPEED), 5) + path((0, -SPEED), 4, (0.4, 0.45)),
    ],
    ids=["frozen", "jumps", "jumps sideways", "slow", "fast", "diagonal", "slow diagonal", "back and forth"],
)
def test_wrong_motion_is_none_and_the_object_is_still_read(positions):
    for shape in SHAPES:
        assert judge(paint(shape, positions, "green")) == [Verdict("green", shape, NONE)]


def test_an_object_that_changes_its_shape_has_none():
    positions = path(RIGHT)
    circle, square = paint("circle", positions), paint("square", positions)
    hard = torch.cat((circle[:, :, :5], square[:, :, 5:]), dim=2)
    slow = torch.lerp(circle, square, torch.linspace(0, 1, 9)[:, None, None])
    for morph in (hard, slow):
        assert judge(morph) == [Verdict("red", NONE, "right")]
    half = torch.lerp(circle, square, 0.5)
    assert judge(half) == [Verdict("red", NONE, "right")]
    assert [judge(half[:, :, [frame]])[0].shape for frame in range(9)] == [NONE] * 9


def test_a_cross_has_no_shape():
    video = torch.tensor(BACKGROUND)[:, None, None, None].repeat(1, 1, 1, 32, 32)
    red = torch.tensor(COLOURS["red"])[:, None, None, None]
    video[..., 8:24, 13:18] = video[..., 13:18, 8:24] = red  # with the area of a shape, most similar to the circle
    assert judge(video) == [Verdict("red", NONE, NONE)]


def test_an_object_that_changes_its_colour_has_none():
    positions = path(RIGHT)
    video = torch.cat((paint("circle", positions)[:, :, :4], paint("circle", positions, "blue")[:, :, 4:]), dim=2)
    assert judge(video) == [Verdict(NONE, "circle", "right")]


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, None])
def test_an_empty_clip_shows_nothing(value):
    video = torch.tensor(BACKGROUND)[:, None, None, None].expand(1, 3, 9, 32, 32)
    video = video if value is None else torch.full_like(video, value)
    assert judge(video) == [Verdict(NONE, NONE, NONE)]
    assert track(video).isnan().all() and speed(video).isnan().all()


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_an_object_of_another_size_has_no_shape(scale):
    size = 32  # pixels, cut from a larger or smaller drawing
    drawn = draw([steady(start=(0.5, 0.5), num_frames=1)], round(size * scale))[0, :, 0]
    canvas = torch.tensor(BACKGROUND)[:, None, None].repeat(1, 64, 64)
    low = 32 - drawn.shape[-1] // 2
    canvas[:, low : low + drawn.shape[-1], low : low + drawn.shape[-1]] = drawn
    assert judge(canvas[None, :, None, 16:48, 16:48])[0].shape == NONE


def test_one_bad_frame_does_not_matter_and_two_do():
    video = draw([steady(num_frames=17)])
    video[:, :, 8] = 0.09
    assert judge(video) == [Verdict("red", "circle", "right")]
    video[:, :, 9] = 0.09
    assert judge(video) == [Verdict(NONE, NONE, "right")]
    video[:, :, 3] = 0.09
    assert judge(video) == [Verdict(NONE, NONE, NONE)]


def test_only_the_changed_attribute_disagrees():
    for clip in clips_of("tokenizer", 100):
        colour, shape, motion = verdict = truth(clip)
        for other in COLOURS.keys() - {colour}:
            assert agree(verdict, f"a {other} {shape} turns {motion}") == (False, True, True, False)
        for other in SHAPES.keys() - {shape}:
            assert agree(verdict, f"a {colour} {other} moves {motion}") == (True, False, True, False)
        for other in MOTIONS.keys() - {motion}:
            assert agree(verdict, f"a {colour} {shape} moves {other}") == (True, True, False, False)
        assert agree(verdict, f"a {colour} {shape}") == (True, True, True, True)


def test_frames_before_start_do_not_count_and_before_motion_start_not_for_the_motion():
    positions = path(RIGHT, 5) + path((SPEED, 0), 4, (0.45, 0.5))
    video = torch.cat((paint("square", positions, "blue")[:, :, :5], paint("circle", positions)[:, :, 5:]), dim=2)
    assert judge(video, start=5) == [Verdict("red", "circle", "down")]
    assert judge(video, motion_start=5) == [Verdict(NONE, NONE, "down")]
    assert judge(video, start=8) == [Verdict("red", "circle", NONE)]


def test_judge_checks_its_arguments():
    with pytest.raises(ValueError, match=r"got \(1, 9, 3, 32, 32\)"):
        judge(torch.zeros(1, 9, 3, 32, 32))
    with pytest.raises(ValueError, match=r"got \(1, 3, 9, 32, 24\)"):
        judge(torch.zeros(1, 3, 9, 32, 24))
    for start, motion_start in ((9, None), (-1, None), (5, 4), (0, 9)):
        with pytest.raises(ValueError, match=r"motion_start < 9 frames, got"):
            judge(torch.zeros(1, 3, 9, 32, 32), start, motion_start)


# measures over scenes


def test_track_and_speed_follow_the_drawn_object():
    clips = clips_of("tokenizer", 50)
    positions = track(draw(clips))
    for clip, position in zip(clips, positions):
        off = (position[0] / 32 - torch.tensor(clip.start) + 0.5).remainder(1) - 0.5
        assert off.abs().max() * 32 < 0.25
    torch.testing.assert_close(speed(draw(clips)), torch.ones(50), atol=0.02, rtol=0)
    assert speed(paint("circle", path((0, SPEED / 2)))).item() == pytest.approx(0.5, abs=0.02)
    assert speed(paint("circle", path((0, 0), 5) + path(RIGHT, 4)), 5).item() == pytest.approx(1, abs=0.02)


def test_seam_ratio_is_1_without_jumps():
    video = draw([steady(num_frames=17)])
    assert seam_ratio(video, [9, 13]).item() == pytest.approx(1, abs=0.05)
    jump = torch.cat((video[:, :, :9], draw([steady(num_frames=8, start=(0.9, 0.8))])), dim=2)
    assert seam_ratio(jump, [9]).item() > 3
    assert seam_ratio(jump, [10]).item() < 1
    for seams in ([], [0], [17], list(range(1, 17))):
        with pytest.raises(ValueError, match=r"seams, got \["):
            seam_ratio(video, seams)
