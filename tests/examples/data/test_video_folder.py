"""Folders of videos and images: which files are usable, their captions, and their random clips."""

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from data.image_reader import read_image
from data.video_folder import ImageFolder, VideoFolder
from data.video_reader import read_video
from video_files import cut, grey_frames, noise, numbers, write, write_gif, write_webm


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Good files of all kinds, and one of each kind of bad file."""
    folder = tmp_path_factory.mktemp("mixed")
    sources = tmp_path_factory.mktemp("sources")
    write(folder / "tall.mp4", grey_frames(20, 96, 48), rate=24)
    write(folder / "deep" / "wide.mp4", grey_frames(30, 32, 80), rate=30, options={"g": "6"})
    write_webm(folder / "clip.webm", grey_frames(12, 48, 64))
    write_gif(folder / "loop.GIF", grey_frames(10, 40, 40))
    write(folder / "short.mp4", grey_frames(3))
    cut(folder / "cut_plain.mp4", write(sources / "plain.mp4", noise(20)))
    cut(folder / "cut_fast.mp4", write(sources / "fast.mp4", noise(20), movflags="faststart"))
    cut(folder / "cut.webm", write_webm(sources / "whole.webm", noise(20)))
    cut(folder / "cut.gif", write_gif(sources / "whole.gif", noise(20)))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video at all\n" * 100)
    (folder / "notes.md").write_text("no data")
    return folder


BAD = ["short.mp4", "cut_plain.mp4", "cut_fast.mp4", "cut.webm", "cut.gif", "empty.mp4", "text.mp4", "notes.md"]


def build(*arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return VideoFolder(*arguments, **options)


def test_exactly_the_bad_files_are_named_once_and_the_others_are_read(mixed, capfd):
    with pytest.warns(UserWarning) as caught:
        dataset = VideoFolder(mixed, size=(24, 32), num_frames=5)
    assert len(caught) == 1
    message = str(caught[0].message)
    assert sorted(path.name for path in dataset.skipped) == sorted(BAD)
    assert all(message.count(f"/{name}:") == 1 for name in BAD) and f"{len(BAD)} files" in message
    assert not any(name in message for name in ("tall", "wide", "clip.webm", "loop"))
    assert all(why in message for why in dataset.skipped.values())
    assert "3 of the 5" in dataset.skipped[mixed / "short.mp4"]
    assert len(dataset) == 4
    for item in (dataset[index] for index in range(4)):
        video = item["video"]
        assert video.shape == (3, 5, 24, 32) and video.dtype == torch.float32
        assert video.min() >= 0 and video.max() <= 1 and item["caption"] == ""
        assert np.diff(numbers(video)).tolist() == [1] * 4
    assert capfd.readouterr().err == ""


def test_files_that_are_too_short_for_a_clip_are_left_out(mixed):
    with pytest.warns(UserWarning, match="too short: 12 of the 13"):
        dataset = VideoFolder(mixed, size=16, num_frames=13)
    assert [path.name for path in dataset.paths] == ["wide.mp4", "tall.mp4"]


def test_damage_behind_an_intact_header_is_found(tmp_path):
    write(tmp_path / "good.mp4", grey_frames(8))
    path = write(tmp_path / "hole.mp4", noise(8), movflags="faststart")
    data = bytearray(path.read_bytes())
    data[len(data) // 4 :] = bytes(len(data) - len(data) // 4)
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"hole\.mp4"):
        dataset = VideoFolder(tmp_path, size=32, num_frames=8)
    assert list(dataset.skipped) == [path]


def test_a_file_that_fails_later_is_named_once_and_replaced(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.mp4", grey_frames(6))
        (tmp_path / f"{name}.txt").write_text(name)
    dataset = build(tmp_path, size=32, num_frames=5)
    (tmp_path / "b.mp4").write_bytes(b"gone bad")
    with pytest.warns(UserWarning, match=r"b\.mp4") as caught:
        assert [dataset[index]["caption"] for index in (0, 1, 1, 2, -2)] == ["a", "c", "c", "c", "c"]
    assert len(caught) == 1 and list(dataset.skipped) == [tmp_path / "b.mp4"]
    for name in "ac":
        (tmp_path / f"{name}.mp4").unlink()
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="none of the 3 files"):
        dataset[0]


def test_stride_takes_every_nth_frame(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(40), options={"g": "5"})
    dataset = build(tmp_path, size=32, num_frames=4, stride=3)
    starts = set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        clip = numbers(dataset[0]["video"])
        assert np.diff(clip).tolist() == [3] * 3
        starts.add(clip[0])
    assert min(starts) >= 0 and max(starts) <= 30 and len(starts) > 15


def test_clips_are_determined_by_seed_epoch_and_index(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.mp4", grey_frames(40))

    def first_frames(seed):
        dataset = build(tmp_path, size=32, num_frames=2, seed=seed)
        for epoch in range(6):
            dataset.set_epoch(epoch)
            yield [numbers(dataset[index]["video"])[0] for index in (1, 0)]

    first = list(first_frames(0))
    assert first == list(first_frames(0)) != list(first_frames(1))
    assert len({tuple(pair) for pair in first}) > 3 and any(a != b for a, b in first)


def test_persistent_workers_see_a_new_epoch(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(40))
    dataset = build(tmp_path, size=32, num_frames=1)
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        [batch] = loader
        assert batch["video"].shape == (1, 3, 1, 32, 32)
        assert torch.equal(batch["video"][0], dataset[0]["video"])


def test_flip_mirrors_half_of_the_clips_and_is_off_by_default(tmp_path):
    frames = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    frames[:, :, :16] = 255
    write(tmp_path / "a.mp4", frames)

    def left(dataset, epoch):
        dataset.set_epoch(epoch)
        return bool(dataset[0]["video"][..., :8].mean() > 0.5)

    assert all(left(build(tmp_path, size=32, num_frames=2), epoch) for epoch in range(12))
    flipping = build(tmp_path, size=32, num_frames=2, flip=True)
    seen = [left(flipping, epoch) for epoch in range(24)]
    assert 4 < sum(seen) < 20 and seen == [left(flipping, epoch) for epoch in range(24)]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_captions_come_from_the_table_and_from_text_files(tmp_path, mark):
    for name in ("a.mp4", "sub/b.mp4", "c.mp4", "d.mp4"):
        write(tmp_path / name, grey_frames(4))
    table = 'file,caption\na.mp4,"one, two\u2028und drei – ü"\nsub/b.mp4,two\ngone.mp4,three\n'
    (tmp_path / "captions.csv").write_text(mark + table, encoding="utf-8")
    (tmp_path / "a.txt").write_text("the table has priority")
    (tmp_path / "c.txt").write_text(f"{mark}a text – beside\n", encoding="utf-8")
    with pytest.warns(UserWarning) as caught:
        dataset = VideoFolder(tmp_path, size=32, num_frames=2)
    skipped, missing = (str(warning.message) for warning in caught)
    assert "gone.mp4: named in captions.csv but missing" in skipped and f"{tmp_path}/a.txt: " in skipped
    assert "1 of 4 files have no caption" in missing and "d.mp4" in missing
    captions = {path.name: dataset[index]["caption"] for index, path in enumerate(dataset.paths)}
    assert captions == {
        "a.mp4": "one, two\u2028und drei – ü",
        "b.mp4": "two",
        "c.mp4": "a text – beside",
        "d.mp4": "",
    }


def test_images_of_all_kinds(tmp_path):
    pixels = noise(1, 20, 40)[0]
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    assert torch.equal(read_image(tmp_path / "rgb.png"), torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    clear = np.concatenate([np.full((20, 40, 3), 255), np.full((20, 40, 1), 51)], axis=-1).astype(np.uint8)
    Image.fromarray(clear).save(tmp_path / "alpha.webp", lossless=True)
    assert torch.allclose(read_image(tmp_path / "alpha.webp"), torch.tensor(0.2), atol=0.01)
    Image.fromarray(pixels).quantize(4).save(tmp_path / "palette.png")
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((20, 40), 32768, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").mean() == pytest.approx(0.5, abs=0.01)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpeg", exif=turned)
    assert read_image(tmp_path / "turned.jpeg").shape == (3, 40, 20)
    cut(tmp_path / "cut.png", tmp_path / "rgb.png")
    (tmp_path / "text.bmp").write_text("no picture")
    (tmp_path / "rgb.txt").write_text("noise")
    write(tmp_path / "video.mp4", grey_frames(4))
    with pytest.warns(UserWarning) as caught:
        dataset = ImageFolder(tmp_path, size=(16, 24))
    assert len(caught) == 2 and "5 of 6 files have no caption" in str(caught[1].message)
    assert sorted(path.name for path in dataset.skipped) == ["cut.png", "text.bmp"]
    assert all(str(caught[0].message).count(name) == 1 for name in ("cut.png", "text.bmp"))
    assert len(dataset) == 6 and {item["caption"] for item in map(dataset.__getitem__, range(6))} == {
        "",
        "noise",
    }
    assert all(dataset[index]["video"].shape == (3, 1, 16, 24) for index in range(6))


def test_wrong_arguments_are_refused(tmp_path):
    path = write(tmp_path / "a.mp4", grey_frames(6))
    with pytest.raises(ValueError, match="fps=8 and stride=2"):
        VideoFolder(tmp_path, size=32, num_frames=2, fps=8, stride=2)
    for wrong, words in [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"fps": 0}, "fps must be above 0, got 0"),
        ({"stride": 0}, "at least 1, got 0"),
        ({"size": 0}, "size must be .* got 0"),
        ({"size": (8, 8, 8)}, "size must be"),
        ({"size": None}, "size must be"),
    ]:
        with pytest.raises(ValueError, match=words):
            VideoFolder(tmp_path, **{"size": 32, "num_frames": 2, **wrong})
    with pytest.raises(ValueError, match="6 frames from start=0, got num_frames=7"):
        read_video(path, num_frames=7)
    with pytest.raises(ValueError, match=r"from 0 to 5 .* got 6"):
        read_video(path, start=6)
    with pytest.raises(FileNotFoundError):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(IndexError, match="below 1, got 1"):
        build(tmp_path, size=32, num_frames=2)[1]


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be a directory, got .*none"):
        VideoFolder(tmp_path / "none", size=32, num_frames=2)
    with pytest.raises(ValueError, match="got 0 files"):
        VideoFolder(tmp_path, size=32, num_frames=2)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "readme.md").touch()
    with pytest.raises(ValueError, match=r"(?s)got 2 files \(.md, .mp4\).*text\.mp4: Invalid data"):
        VideoFolder(tmp_path, size=32, num_frames=2)
    with pytest.raises(ValueError, match=r"usable file \(\.png"):
        ImageFolder(tmp_path, size=32)


def files_and_warnings(folder, kind, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = kind(folder, size=16, **options)
    return dataset, [str(each.message) for each in caught]


def test_every_file_of_a_folder_is_used_or_named(tmp_path):
    for name in ("a.mp4", "deep/b.MOV", "deep/x-y.mp4", ".hidden.mp4", ".cache/c.mp4"):
        write(tmp_path / name.lower(), grey_frames(4)).rename(tmp_path / name)
    Image.fromarray(noise(1)[0]).save(tmp_path / "a.png")
    Image.fromarray(noise(1)[0]).save(tmp_path / "e.jfif", format="jpeg")
    for name in ("notes.md", "sound.mp3", "LICENSE", "deep/captions.csv", "a.txt", "lonely.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "link.mp4").symlink_to("gone.mp4")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "actions.csv").write_text("file,frame,left\n")
    (tmp_path / "captions.csv").write_text("file,caption\ndeep/b.MOV,b\na.png,p\ndeep/x-y.mp4,xy\n")
    named = {"notes.md", "sound.mp3", "LICENSE", "deep/captions.csv", "lonely.txt"}
    videos, [said] = files_and_warnings(tmp_path, VideoFolder, num_frames=2)
    assert videos.files == ["a.mp4", "deep/b.MOV", "deep/x-y.mp4"] and videos.captions == ["x", "b", "xy"]
    assert {path.relative_to(tmp_path).as_posix() for path in videos.skipped} == named | {"link.mp4"}
    images, [skipped, missing] = files_and_warnings(tmp_path, ImageFolder)
    assert images.files == ["a.png", "e.jfif"] and images.captions == ["p", ""]
    assert {path.relative_to(tmp_path).as_posix() for path in images.skipped} == named | {"pipe.png"}
    assert "1 of 2 files have no caption" in missing and "e.jfif" in missing
    for name in named:
        assert f"{tmp_path / name}: " in said and f"{tmp_path / name}: " in skipped


def test_folders_whose_files_all_have_or_all_lack_captions_give_no_warning(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.mp4", grey_frames(4))
    assert build(tmp_path, size=16, num_frames=2).captions == [""] * 3
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    assert build(tmp_path, size=16, num_frames=2).captions == ["a", "b", "c"]
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.warns(UserWarning, match=r"1 of 3 files have no caption:\n.*b\.mp4$"):
        VideoFolder(tmp_path, size=16, num_frames=2)


def test_results_in_the_folder_are_no_data(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(4))
    write(tmp_path / "runs" / "sample.mp4", grey_frames(4))
    (tmp_path / "runs" / "log.csv").write_text("step\n")
    dataset = build(tmp_path, size=16, num_frames=2, leave_out=tmp_path / "runs")
    assert dataset.files == ["a.mp4"] and not dataset.skipped
    with pytest.warns(UserWarning, match=r"log\.csv"):
        assert VideoFolder(tmp_path, size=16, num_frames=2).files == ["a.mp4", "runs/sample.mp4"]
    with pytest.raises(ValueError, match="folders of their own"):
        VideoFolder(tmp_path, size=16, num_frames=2, leave_out=tmp_path)


def test_long_lists_of_files_are_shortened(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(4))
    for number in range(100):
        (tmp_path / f"{number}.xyz").touch()
    dataset, [said] = files_and_warnings(tmp_path, VideoFolder, num_frames=2)
    assert len(dataset.skipped) == 100 and "100 files are skipped" in said
    assert said.count("\n") == 21 and said.endswith("and 80 more")
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(ValueError, match=r"got 100 files \(.xyz\)") as refused:
        VideoFolder(tmp_path, size=16, num_frames=2)
    assert str(refused.value).count("\n") == 21


def test_texts_that_cannot_be_read_are_skipped_and_their_videos_stay(tmp_path):
    for name in "abcd":
        write(tmp_path / f"{name}.mp4", grey_frames(4))
    (tmp_path / "a.txt").symlink_to("gone.txt")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "d.txt").write_text("a dog")
    dataset, [skipped, missing] = files_and_warnings(tmp_path, VideoFolder, num_frames=2)
    assert dataset.captions == ["", "", "", "a dog"] and "3 of 4 files have no caption" in missing
    assert [path.name for path in dataset.skipped] == ["a.txt", "b.txt", "c.txt"]
    assert "must be UTF-8" in dataset.skipped[tmp_path / "c.txt"] and all(f"{n}.txt: " in skipped for n in "abc")


def test_results_of_earlier_trainings_are_named_once_and_are_no_data(tmp_path):
    write(tmp_path / "a.mp4", grey_frames(4))
    for name in ("old/tokenizer/sample.gif", "old/tokenizer/more/sample.gif"):
        write_gif(tmp_path / name, grey_frames(4))
    (tmp_path / "old" / "tokenizer" / "plan.json").write_text("{}")
    dataset, [said] = files_and_warnings(tmp_path, VideoFolder, num_frames=2)
    assert dataset.files == ["a.mp4"] and list(dataset.skipped) == [tmp_path / "old" / "tokenizer"]
    assert said.count("old/tokenizer: the results of a training, as there is a plan.json") == 1
