"""The data of each stage: sizes, batches, and clips that are held out."""

from argparse import Namespace

import pytest
from accelerate import Accelerator
from PIL import Image

from data.mixture import Batches, Source
from data.moving_shapes import read_caption
from data.sources import captioned_data, held_out, mixture, sources_of, tokenizer_data
from training.tokenizer import collate_videos
from video_files import grey_frames, noise, write


def arguments(**changes):
    args = {"data": "moving_shapes", "size": 16, "other_sizes": [24, 32], "frames": 5, "seed": 0}
    return Namespace(**args | {"video_weight": 1.0, "image_weight": 0.5, "batch_size": 2} | changes)


def test_the_tokenizer_learns_from_every_size_and_the_second_stage_from_one():
    args = arguments()
    sets = tokenizer_data(args)
    mixed = [source for of_size in sets for source in sources_of(args, of_size)]
    batches = mixture(args, mixed, collate_videos, Accelerator(), steps=60)
    shapes = {tuple(batches[step]["video"].shape) for step in range(60)}
    sizes = (16, 24, 32)
    assert shapes == {*((2, 3, 5, size, size) for size in sizes), *((8, 3, 1, size, size) for size in sizes)}
    videos, images = captioned_data(args)
    assert videos.size == images.size == 16 and images.num_frames == 1
    assert videos[0]["caption"] and images[0]["caption"]


@pytest.mark.parametrize("weight, left", [("video_weight", 1), ("image_weight", 0)])
def test_a_data_set_without_weight_is_left_out(weight, left):
    args = arguments(**{weight: 0.0})
    for sets in (tokenizer_data(args)[0], captioned_data(args)):
        assert sets[1 - left] is None
        [source] = sources_of(args, sets)
        assert source.dataset is sets[left] and source.batch_size == (2, 8)[left]


def test_held_out_moving_shapes_are_others_than_those_of_the_training():
    args = arguments()
    sets = captioned_data(args)
    videos, captions = held_out(args, sets, 4)
    assert videos.shape == (4, 3, 5, 16, 16) and all(read_caption(caption)[2] for caption in captions)
    trained = tokenizer_data(args)[0][0]
    assert not any((trained[index]["video"] == video).all() for index, video in enumerate(videos))


@pytest.mark.parametrize("weights", [(-1.0, 2.0), (0.0, 0.0)])
def test_negative_weights_and_none_above_0_are_refused(weights):
    sources = [Source(range(10), weight, 2) for weight in weights]
    with pytest.raises(ValueError, match=f"at least 0, and one of them above 0, got \\[{weights[0]}"):
        Batches(sources, list, seed=0, steps=1)


def test_processes_read_disjoint_parts_of_each_epoch():
    parts = [
        [
            item
            for batch in Batches([Source(range(12), 1.0, 2)], list, seed=0, steps=3, process=i, processes=2)
            for item in batch
        ]
        for i in range(2)
    ]
    assert sorted(parts[0] + parts[1]) == list(range(12))


@pytest.mark.parametrize("images_are_in", ["runs", ".cache", "pictures"])
def test_what_lies_in_the_results_and_in_hidden_folders_is_no_data(tmp_path, images_are_in):
    write(tmp_path / "a.mp4", grey_frames(6))
    for number, name in enumerate(["runs/sample.mp4", ".cache/b.mp4"]):
        write(tmp_path / name, grey_frames(6 + number))
    (tmp_path / images_are_in).mkdir(exist_ok=True)
    Image.fromarray(noise(1)[0]).save(tmp_path / images_are_in / "picture.png")
    options = {"data": str(tmp_path), "out": tmp_path / "runs", "flip": False, "fps": None, "stride": 1}
    videos, images = captioned_data(arguments(**options))
    assert videos.files == ["a.mp4"]
    assert images is None if images_are_in != "pictures" else images.files == ["pictures/picture.png"]


def test_a_folder_of_images_alone_is_trained_on_without_videos(tmp_path):
    Image.fromarray(noise(1)[0]).save(tmp_path / "picture.png")
    options = {"data": str(tmp_path), "out": tmp_path / "runs", "flip": False, "fps": None, "stride": 1}
    with pytest.raises(ValueError, match="has images and no videos: expected --video-weight 0"):
        captioned_data(arguments(**options))
    videos, images = captioned_data(arguments(**options, video_weight=0))
    assert videos is None and images.files == ["picture.png"]
