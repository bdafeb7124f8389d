"""The moving shapes and their judge: it reads every drawn clip and refuses what only resembles one."""

import math
from itertools import product

import pytest
import torch
from moving_shapes import (
    BACKGROUND,
    COLOURS,
    HELD_OUT_PAIRS,
    IMAGE_ONLY_COLOUR,
    MOTIONS,
    SHAPES,
    SPEED,
    SPLITS,
    TURN_LATEST,
    UNSEEN_PAIR,
    Clip,
    MovingShapes,
    cover,
    draw,
    prompts,
    read_caption,
    stories,
)
from moving_shapes_judge import NONE, Verdict, agree, judge, seam_ratio, speed, track
from torch.utils.data import DataLoader


def clips_of(split, count, **kwargs):
    dataset = MovingShapes(split, length=count, **kwargs)
    return [dataset.clip(index) for index in range(count)]


def steady(colour="red", shape="circle", motion="right", num_frames=9, start=(0.4, 0.3)):
    return Clip(colour, shape, (motion,) * (num_frames - 1), start, f"a {colour} {shape} moves {motion}")


def paint(shape, centres, colour="red", size=32):
    """(f, 2) centres in sides of the frame -> one video (1, 3, f, size, size), which no clip need allow."""
    rgb = torch.tensor(COLOURS.get(colour, colour))
    background = torch.tensor(BACKGROUND)
    covered = cover(shape, torch.as_tensor(centres, dtype=torch.float32), size)
    return torch.lerp(background[:, None, None, None], rgb[:, None, None, None], covered)[None]


def path(step, frames=9, start=(0.4, 0.3)):
    return [(start[0] + step[0] * i, start[1] + step[1] * i) for i in range(frames)]


def truth(clip):
    return Verdict(clip.colour, clip.shape, clip.motions[-1])


def with_noise(videos, seed=0):
    return videos + 0.05 * torch.randn(videos.shape, generator=torch.Generator().manual_seed(seed))


# The judge accepts what is drawn


@pytest.mark.parametrize(
    "size, num_frames, count",
    [(32, 9, 2000), (32, 45, 2000), (24, 45, 100), (24, 9, 100), (64, 9, 60), (45, 6, 100)],
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
    clips = [clip for clip in clips_of("seen", 300) if "moves" in clip.caption]
    for verdict, clip in zip(judge(draw(clips)), clips):
        assert agree(verdict, clip.caption).all


@pytest.mark.parametrize("size", [24, 32, 64])
def test_noise_does_not_change_the_answers(size):
    clips = clips_of("tokenizer", 3000 // size, size=size)
    videos = with_noise(draw(clips, size))
    for noisy in (videos, videos.clamp(0, 1)):
        assert judge(noisy, motion_start=TURN_LATEST) == [truth(clip) for clip in clips]


def test_images_are_read_right():
    clips = clips_of("captioned_images", 300)
    verdicts = judge(draw(clips))
    assert verdicts == [Verdict(clip.colour, clip.shape, NONE) for clip in clips]
    assert all(agree(verdict, clip.caption).all for verdict, clip in zip(verdicts, clips))


def test_drawn_stories_are_right_scene_by_scene():
    told = stories(150)
    clips = []
    for story in told:
        colour, shape, _ = read_caption(story[0])
        scenes = [read_caption(prompt)[2] for prompt in story]
        motions = tuple(motion for motion, steps in zip(scenes, (8, 4, 4)) for _ in range(steps))
        clips.append(Clip(colour, shape, motions, (0.1, 0.7), ""))
    videos = draw(clips)  # 9 frames, then twice 4 new ones after 5 shared ones
    for scene, (first, start) in enumerate([(0, 0), (4, 5), (8, 5)]):
        verdicts = judge(videos[:, :, first : first + 9], start=start)
        assert all(agree(verdict, story[scene]).all for verdict, story in zip(verdicts, told))
    # over two scenes at once, no motion holds for long enough
    assert {verdict.motion for verdict in judge(videos[:, :, :13])} == {NONE}


# The judge refuses the rest

RIGHT = (0, SPEED)
GREY = (0.5, 0.5, 0.5)


def test_grey_blob_has_no_colour_and_a_blurred_one_no_shape():
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


def test_small_speck_is_forgiven_and_a_large_one_not():
    video = paint("circle", path(RIGHT))
    video[..., 25:28, 2:5] = torch.tensor(COLOURS["red"])[:, None, None, None]  # 9 pixels beside about 129
    assert judge(video) == [Verdict("red", "circle", "right")]
    video[..., 25:30, 2:7] = torch.tensor(COLOURS["red"])[:, None, None, None]
    assert judge(video) == [Verdict(NONE, NONE, NONE)]


@pytest.mark.parametrize(
    "places",
    [
        path((0, 0)),
        path((0, 0), 4) + path((0, 0), 5, (0.4, 0.7)),  # as far as eight steps, but at once
        path((0, SPEED), 4) + path((0, SPEED), 5, (0.8, 0.5)),  # lawful but for a jump aside
        path((0, SPEED / 3)),
        path((0, SPEED * 2)),
        path((SPEED, SPEED)),
        path((SPEED * math.sqrt(0.5), -SPEED * math.sqrt(0.5))),
        path((0, SPEED), 5) + path((0, -SPEED), 4, (0.4, 0.45)),
    ],
    ids=["frozen", "jumps", "jumps aside", "slow", "fast", "diagonal", "slow diagonal", "to and fro"],
)
def test_unlawful_motion_is_none_and_the_object_still_read(places):
    for shape in SHAPES:
        assert judge(paint(shape, places, "green")) == [Verdict("green", shape, NONE)]


def test_morph_has_no_shape():
    places = path(RIGHT)
    circle, square = paint("circle", places), paint("square", places)
    hard = torch.cat((circle[:, :, :5], square[:, :, 5:]), dim=2)
    slow = torch.lerp(circle, square, torch.linspace(0, 1, 9)[:, None, None])
    for morph in (hard, slow):
        assert judge(morph) == [Verdict("red", NONE, "right")]
    half = torch.lerp(circle, square, 0.5)
    assert judge(half) == [Verdict("red", NONE, "right")]
    assert [judge(half[:, :, [frame]])[0].shape for frame in range(9)] == [NONE] * 9


def test_cross_has_no_shape():
    video = torch.tensor(BACKGROUND)[:, None, None, None].repeat(1, 1, 1, 32, 32)
    red = torch.tensor(COLOURS["red"])[:, None, None, None]
    video[..., 8:24, 13:18] = video[..., 13:18, 8:24] = red  # of lawful area, nearest to the circle
    assert judge(video) == [Verdict("red", NONE, NONE)]


def test_change_of_colour_has_no_colour():
    places = path(RIGHT)
    video = torch.cat((paint("circle", places)[:, :, :4], paint("circle", places, "blue")[:, :, 4:]), dim=2)
    assert judge(video) == [Verdict(NONE, "circle", "right")]


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, None])
def test_empty_clip_shows_nothing(value):
    video = torch.tensor(BACKGROUND)[:, None, None, None].expand(1, 3, 9, 32, 32)
    video = video if value is None else torch.full_like(video, value)
    assert judge(video) == [Verdict(NONE, NONE, NONE)]
    assert track(video).isnan().all() and speed(video).isnan().all()


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_object_of_another_size_has_no_shape(scale):
    size = 32  # the middle of a larger or smaller drawing, on as many pixels
    drawn = draw([steady(start=(0.5, 0.5), num_frames=1)], round(size * scale))[0, :, 0]
    canvas = torch.tensor(BACKGROUND)[:, None, None].repeat(1, 64, 64)
    low = 32 - drawn.shape[-1] // 2
    canvas[:, low : low + drawn.shape[-1], low : low + drawn.shape[-1]] = drawn
    assert judge(canvas[None, :, None, 16:48, 16:48])[0].shape == NONE


def test_one_bad_frame_is_forgiven_and_two_are_not():
    video = draw([steady(num_frames=17)])
    video[:, :, 8] = 0.09
    assert judge(video) == [Verdict("red", "circle", "right")]
    video[:, :, 9] = 0.09
    assert judge(video) == [Verdict(NONE, NONE, "right")]
    video[:, :, 3] = 0.09
    assert judge(video) == [Verdict(NONE, NONE, NONE)]


def test_exactly_the_changed_attribute_fails():
    for clip in clips_of("tokenizer", 100):
        colour, shape, motion = verdict = truth(clip)
        for other in COLOURS.keys() - {colour}:
            assert agree(verdict, f"a {other} {shape} turns {motion}") == (False, True, True, False)
        for other in SHAPES.keys() - {shape}:
            assert agree(verdict, f"a {colour} {other} moves {motion}") == (True, False, True, False)
        for other in MOTIONS.keys() - {motion}:
            assert agree(verdict, f"a {colour} {shape} moves {other}") == (True, True, False, False)
        assert agree(verdict, f"a {colour} {shape}") == (True, True, True, True)


def test_start_leaves_out_the_given_frames_and_motion_start_only_their_motion():
    places = path(RIGHT, 5) + path((SPEED, 0), 4, (0.45, 0.5))
    video = torch.cat((paint("square", places, "blue")[:, :, :5], paint("circle", places)[:, :, 5:]), dim=2)
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


# Measures over scenes


def test_track_and_speed_follow_the_drawn_object():
    clips = clips_of("tokenizer", 50)
    places = track(draw(clips))
    for clip, place in zip(clips, places):
        off = (place[0] / 32 - torch.tensor(clip.start) + 0.5).remainder(1) - 0.5
        assert off.abs().max() * 32 < 0.25
    torch.testing.assert_close(speed(draw(clips)), torch.ones(50), atol=0.02, rtol=0)
    assert speed(paint("circle", path((0, SPEED / 2)))).item() == pytest.approx(0.5, abs=0.02)
    assert speed(paint("circle", path((0, 0), 5) + path(RIGHT, 4)), 5).item() == pytest.approx(1, abs=0.02)


def test_seam_ratio_is_one_where_nothing_jumps():
    video = draw([steady(num_frames=17)])
    assert seam_ratio(video, [9, 13]).item() == pytest.approx(1, abs=0.05)
    jump = torch.cat((video[:, :, :9], draw([steady(num_frames=8, start=(0.9, 0.8))])), dim=2)
    assert seam_ratio(jump, [9]).item() > 3
    assert seam_ratio(jump, [10]).item() < 1
    for seams in ([], [0], [17], list(range(1, 17))):
        with pytest.raises(ValueError, match=r"seams, got \["):
            seam_ratio(video, seams)


# The world


def test_splits_hold_exactly_the_specified_pairs():
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


def test_captions_say_what_the_clips_do():
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
    assert {clip.caption for clip in clips_of("tokenizer", 100)} == {""}
    assert all(read_caption(clip.caption) == (*clip[:2], None) for clip in clips_of("captioned_images", 100))


@pytest.mark.parametrize("num_frames, latest", [(1, 0), (2, 0), (3, 1), (5, 3), (7, 5), (20, 5)])
def test_short_clips_turn_where_there_is_room(num_frames, latest):
    clips = clips_of("captioned_video", 500, num_frames=num_frames)
    found = {i for clip in clips for i in range(1, num_frames - 1) if clip.motions[i] != clip.motions[i - 1]}
    assert found == set(range(1, latest + 1))
    assert any("turns" in clip.caption for clip in clips) == (latest > 0)
    assert all((read_caption(clip.caption)[2] is None) == (num_frames == 1) for clip in clips)


def test_items_depend_on_split_seed_and_index_alone():
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
    # the same in every process and on every machine
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
def test_what_leaves_on_one_side_comes_in_on_the_other(shape):
    # a whole number of pixels a step makes every frame a rolled copy of the first
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


def test_triangle_stands_upright():
    widths = (cover("triangle", torch.tensor([0.5, 0.5]), 64) > 0.5).sum(dim=1)
    widths = widths[widths > 0]
    assert (widths.diff() >= 0).all() and widths[0] <= 3 and widths[-1] > 24


def test_prompts_and_stories_are_lawful():
    asked = prompts("held_out", 500)
    assert len(asked) == 500 and asked == prompts("held_out", 500)
    assert asked != prompts("held_out", 500, seed=1)
    assert {read_caption(prompt)[:2] for prompt in asked} == set(HELD_OUT_PAIRS)
    assert 0.2 < sum("turns" in prompt for prompt in asked) / 500 < 0.4
    for verb in ("turns", "moves"):
        for story in stories(100, verb=verb):
            objects, motions = zip(*[(read_caption(prompt)[:2], read_caption(prompt)[2]) for prompt in story])
            assert len(set(objects)) == 1 and objects[0] in SPLITS["seen"]
            assert motions[0] != motions[1] != motions[2]
            assert [prompt.split()[3] for prompt in story] == ["moves", verb, verb]


def test_world_checks_its_arguments():
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
