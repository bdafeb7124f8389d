"""Long video with any tokenizer: windows, overlaps, primes and stories, whichever lengths it takes."""

import weakref

import pytest
import torch

from conftest import ToyTokenizer, seed, tiny_phenaki
from phenaki_pytorch import Phenaki
from phenaki_pytorch.core.contracts import Tokenizer
from phenaki_pytorch.core.lengths import lengths_up_to, real_tokens, usable_frames
from phenaki_pytorch.long_video import concatenated

TEXTS = ["a red circle", "snow"]
FAST = {"steps": 2, "cond_scale": 1.0}

# Frames of the first time step and of each further one: 1 + k · 2 frames, and k · 3.
LENGTHS = [pytest.param(1, 2, id="1+2k"), pytest.param(3, 3, id="3k")]
both_tokenizers = pytest.mark.parametrize("first, stride", LENGTHS)


def toy_phenaki(first, stride, **changes):
    """A window of 4 time steps: 7 frames, or 12."""
    return tiny_phenaki(cvivit=ToyTokenizer(first, stride), grid=(4, 2, 2), depth=1, **changes)


def frames(b, f):
    return torch.rand(b, 3, f, 16, 16)


def spied(model):
    """The prime ids of each window, and the ids of each step of sampling it, kept in a list."""
    windows, generate, features = [], model.maskgit.generate, model.maskgit.features

    def spied_generate(*args, **options):
        windows.append((options["prime_ids"], []))
        ids = generate(*args, **options)
        windows[-1][1].append(ids)
        return ids

    def spied_features(ids, mask, **options):
        windows[-1][1].append(ids.masked_fill(mask, -1))
        return features(ids, mask, **options)

    model.maskgit.generate, model.maskgit.features = spied_generate, spied_features
    return windows


def assert_pinned(model, windows, known, kept):
    """The first ids of each window are those of the last frames before it, in every step and at the end.

    known  all frames, those that were given first; kept: how many of them each window begins with
    """
    end = known.shape[2] - sum(model.window - count for count in kept)  # before the first window
    assert len(windows) == len(kept)
    for (prime_ids, steps), count in zip(windows, kept):
        if count == 0:
            assert prime_ids is None
        else:
            expected = model.cvivit.encode(known[:, :, end - count : end])
            assert torch.equal(prime_ids, expected)
            assert len(steps) == FAST["steps"] + 1
            assert all(torch.equal(ids[:, : expected.shape[1]], expected) for ids in steps)
        end += model.window - count


# lengths


@both_tokenizers
def test_lengths_are_those_that_the_tokenizer_takes(first, stride):
    tokenizer = ToyTokenizer(first, stride)
    assert isinstance(tokenizer, Tokenizer)
    assert lengths_up_to(tokenizer, 9) == [n for n in range(1, 10) if n >= first and (n - first) % stride == 0]
    assert [usable_frames(tokenizer, n) for n in (0, 1, 2, 3, 8, 9)] == {1: [0, 1, 1, 3, 7, 9], 3: [0, 0, 0, 3, 6, 9]}[
        first
    ]


@both_tokenizers
def test_a_token_is_real_where_all_frames_of_its_time_step_are(first, stride):
    tokenizer = ToyTokenizer(first, stride)
    f = tokenizer.num_frames(3)
    mask = torch.arange(f) < torch.tensor([[f], [tokenizer.num_frames(1)]])
    real = real_tokens(mask, (2, 3, 2, 2), tokenizer)
    assert real.shape == (2, 3, 2, 2)
    assert real.all(dim=(2, 3)).tolist() == [[True] * 3, [True, False, False]]
    assert real.any(dim=(2, 3)).tolist() == [[True] * 3, [True, False, False]]


@both_tokenizers
def test_frame_masks_of_lengths_that_the_tokenizer_does_not_take_are_refused(first, stride):
    tokenizer = ToyTokenizer(first, stride)
    f = tokenizer.num_frames(3)
    lengths = rf"\[{first}, {first + stride}, {first + 2 * stride}\]"
    with pytest.raises(ValueError, match=rf"one of the numbers {lengths}, got \[{f}, 2\] real frames"):
        real_tokens(torch.arange(f) < torch.tensor([[f], [2]]), (2, 3, 2, 2), tokenizer)


# loss


@both_tokenizers
def test_padded_frames_do_not_change_the_loss(first, stride):
    model = toy_phenaki(first, stride)
    videos, real = frames(2, model.window), model.cvivit.num_frames(2)
    mask = torch.arange(model.window) < torch.tensor([[model.window], [real]])
    other = videos.clone()
    other[1, :, real:] = 1 - other[1, :, real:].round()

    def loss(videos, mask):
        torch.manual_seed(1)
        return model(videos, texts=TEXTS, frame_mask=mask)

    assert torch.equal(loss(videos, mask), loss(other, mask))
    assert not torch.equal(loss(videos, None), loss(other, None))
    loss(videos, mask).backward()


# windows


@both_tokenizers
def test_any_number_of_frames_after_any_number_of_prime_frames(first, stride):
    model = toy_phenaki(first, stride)
    for known in (None, *range(first, 14, 2)):
        prime_frames = None if known is None else frames(1, known)
        for num_frames in (*range(1, 14), 30) if known is None else (1, 6, 17):
            video = model.generate("snow", num_frames=num_frames, prime_frames=prime_frames, **FAST)
            assert video.shape == (1, 3, num_frames, 16, 16)
            assert video.min() >= 0 and video.max() <= 1


@pytest.mark.parametrize(
    "first, stride, overlap, kept",
    [(1, 2, 1, 1), (1, 2, 3, 3), (1, 2, 5, 5), (1, 2, None, 5), (3, 3, 3, 3), (3, 3, 9, 9), (3, 3, None, 3)],
)
def test_each_window_goes_on_from_the_last_frames_before_it(first, stride, overlap, kept):
    model = toy_phenaki(first, stride)
    windows, num_frames = spied(model), model.window + 2 * (model.window - kept)
    video = model.generate(TEXTS, num_frames=num_frames, overlap=overlap, **FAST)
    assert video.shape[2] == num_frames
    assert_pinned(model, windows, video, [0, kept, kept])


@pytest.mark.parametrize(
    "first, stride, given, kept",
    [(1, 2, 1, 1), (1, 2, 4, 3), (1, 2, 9, 5), (3, 3, 3, 3), (3, 3, 5, 3), (3, 3, 11, 9), (3, 3, 14, 3)],
)
def test_as_many_of_the_last_prime_frames_are_kept_as_the_tokenizer_takes(first, stride, given, kept):
    model = toy_phenaki(first, stride)
    primes, windows = frames(2, given), spied(model)
    overlap = 5 if first == 1 else 3
    num_frames = 2 * model.window - kept - overlap
    video = model.generate(TEXTS, num_frames=num_frames, prime_frames=primes, **FAST)
    assert_pinned(model, windows, torch.cat((primes, video), dim=2), [kept, overlap])


def test_the_default_overlap_is_5_frames_or_the_nearest_number_that_fits():
    cases = (1, 2, 6, 5), (1, 2, 3, 3), (1, 3, 4, 4), (2, 2, 5, 4), (3, 3, 4, 3), (8, 8, 3, 8)
    for first, stride, t, expected in cases:
        model = tiny_phenaki(cvivit=ToyTokenizer(first, stride), grid=(t, 2, 2))
        assert model._long_video.check_overlap(None) == expected


@pytest.mark.parametrize(
    "first, stride, overlap, message",
    [
        (1, 2, 2, r"7 frames can share \[1, 3, 5\] of them .* got an overlap of 2"),
        (1, 2, 7, r"\[1, 3, 5\] .* got an overlap of 7"),
        (1, 2, 0, "got an overlap of 0"),
        (1, 2, -3, "got an overlap of -3"),
        (3, 3, 5, r"12 frames can share \[3, 6, 9\] of them .* got an overlap of 5"),
        (3, 3, 12, r"\[3, 6, 9\] .* got an overlap of 12"),
    ],
)
def test_overlaps_that_do_not_fit_are_refused_with_the_numbers_that_do(first, stride, overlap, message):
    model = toy_phenaki(first, stride)
    model.maskgit.transformer.forward = None  # refused before anything is sampled
    with pytest.raises(ValueError, match=message):
        model.generate("snow", num_frames=20, overlap=overlap, **FAST)
    with pytest.raises(ValueError, match=message):
        model.generate_story(TEXTS, num_frames=2, overlap=overlap, **FAST)


def test_a_window_of_one_time_step_cannot_go_on():
    model = tiny_phenaki(cvivit=ToyTokenizer(3, 3), grid=(1, 2, 2))
    assert model.generate("snow", num_frames=3, **FAST).shape[2] == 3
    with pytest.raises(ValueError, match="a window of 3 frames can share none of them"):
        model.generate("snow", num_frames=4, **FAST)


def test_a_story_of_one_scene_needs_no_overlap():
    model = tiny_phenaki(cvivit=ToyTokenizer(3, 3), grid=(1, 2, 2))
    whole, [scene] = model.generate_story(["snow"], num_frames=3, **FAST)
    assert whole.shape[2] == scene.shape[2] == 3


def test_prime_frames_must_be_one_time_step_at_least():
    with pytest.raises(ValueError, match="prime_frames must be at least 3 frames, got 2"):
        toy_phenaki(3, 3).generate("snow", num_frames=4, prime_frames=frames(1, 2), **FAST)
    with pytest.raises(ValueError, match="prime_frames must be at least 3 frames, got 1"):
        toy_phenaki(3, 3).generate("snow", num_frames=4, prime_frames=frames(1, 1)[:, :, 0], **FAST)


# images


def test_images_are_generated_where_the_tokenizer_takes_one_frame():
    model = toy_phenaki(1, 2)
    images = model.generate_images(TEXTS, generator=seed(), **FAST)
    assert images.shape == (2, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    model.losses(images, texts=TEXTS).total.backward()


def test_images_are_refused_with_the_tokenizers_reason_where_it_takes_no_single_frame():
    model = toy_phenaki(3, 3)
    model.maskgit.transformer.forward = None
    with pytest.raises(ValueError, match=r"this tokenizer takes 3 \+ k · 3 frames, got 1"):
        model.generate_images(TEXTS, **FAST)


# stories


@both_tokenizers
def test_each_scene_goes_on_from_the_last_frames_of_the_one_before(first, stride):
    model = toy_phenaki(first, stride)
    overlap = 5 if first == 1 else 3
    new = model.window - overlap
    windows, counts = spied(model), [model.window, new, new]
    whole, scenes = model.generate_story(["snow falls", "a red circle", "rain"], num_frames=counts, **FAST)
    assert [scene.shape[2] for scene in scenes] == counts
    assert torch.equal(torch.cat(scenes, dim=2), whole)
    assert_pinned(model, windows, whole, [0, overlap, overlap])
    assert model.text_encoder.calls == [["snow falls"], ["a red circle"], ["rain"]]


@both_tokenizers
def test_later_scenes_may_have_any_number_of_frames_and_the_first_one_time_step_at_least(first, stride):
    model = toy_phenaki(first, stride)
    whole, _ = model.generate_story(["snow", "rain", "a circle"], num_frames=[first, 1, 20], **FAST)
    assert whole.shape[2] == first + 21
    if first > 1:
        model.maskgit.transformer.forward = None  # refused before anything is sampled
        with pytest.raises(ValueError, match="the first scene must have at least 3 frames to go on from, got 2"):
            model.generate_story(["snow", "rain"], num_frames=2, **FAST)


def test_the_scenes_of_a_story_are_views_of_the_whole():
    model = toy_phenaki(1, 2)
    whole, scenes = model.generate_story(["a", "b c", "d"], num_frames=[5, 2, 14], generator=seed(), **FAST)
    assert [scene.shape[2] for scene in scenes] == [5, 2, 14]
    assert torch.equal(torch.cat(scenes, dim=2), whole)
    assert all(scene.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for scene in scenes)


def test_several_stories_are_generated_as_one_batch():
    model = tiny_phenaki(depth=1)
    stories = [["snow", "rain"], ["a circle", "a red circle moves"], ["rain", "snow"]]
    video, scenes = model.generate_story(stories, num_frames=13, overlap=3, **FAST)
    assert video.shape == (3, 3, 26, 16, 16)
    assert [scene.shape[2] for scene in scenes] == [13, 13]
    assert model.text_encoder.calls == [["snow", "a circle", "rain"], ["rain", "a red circle moves", "snow"]]


def test_after_scenes_shorter_than_the_overlap_the_next_goes_on_from_what_there_is():
    model = tiny_phenaki(depth=1)
    windows = spied(model)
    video, _ = model.generate_story(["snow", "rain", "a circle"], num_frames=[2, 2, 1], **FAST)
    assert video.shape[2] == 5
    assert torch.equal(windows[1][0], model.cvivit.encode(video[:, :, 1:2]))
    assert torch.equal(windows[2][0], model.cvivit.encode(video[:, :, 1:4]))


def test_one_prompt_that_is_not_in_a_list_is_refused():
    with pytest.raises(TypeError, match="list"):
        tiny_phenaki(depth=1).generate_story("snow falls", num_frames=6)


# the tokenizer's members


@pytest.mark.parametrize("member", ["encode", "decode", "grid", "num_frames", "codebook_size"])
def test_a_tokenizer_without_a_member_is_refused_by_its_name(member):
    class Incomplete(ToyTokenizer):
        def __getattribute__(self, name):
            if name == member:
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(TypeError, match=rf"Incomplete lacks \['{member}'\]"):
        Phenaki(cvivit=Incomplete(1, 2), maskgit=toy_phenaki(1, 2).maskgit)


# memory


@pytest.mark.parametrize("lengths", [[4], [2, 1, 3], [1, 1, 1, 1, 1]])
def test_no_part_of_a_long_video_is_in_memory_twice(lengths):
    whole, alive = torch.rand(2, 3, sum(lengths), 4, 4), []

    def parts():
        for start, length in zip(torch.tensor([0, *lengths]).cumsum(0).tolist(), lengths):
            assert sum(ref() is not None for ref in alive) <= 1
            part = whole[:, :, start : start + length].clone()
            alive.append(weakref.ref(part))
            yield part
            del part

    assert torch.equal(concatenated(parts(), sum(lengths)), whole)
