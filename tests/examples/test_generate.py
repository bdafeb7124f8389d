"""generate.py with a tiny untrained model: the files have the stated frames, size and rate."""

import json
import shutil
import subprocess
from argparse import Namespace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from einops import reduce
from PIL import Image

import generate
import video_files
from conftest import ToyTokenizer, tiny_cvivit, tiny_frame_encoder, tiny_phenaki, tiny_videogpt, tiny_vqvae
from data.image_reader import read_image
from data.media import write_gif, write_mp4
from data.outputs import written
from data.video_reader import read_video
from data.word_vectors import WordVectors
from phenaki_pytorch import CViViT, MaskGit, Phenaki

SAMPLING = {"cond_scale": 3.0, "temperature": 1.0, "token_temperature": (1.2, 0.4)}


def tiny(dim_context=64, text_encoder=None):
    """A window of 9 frames of 16 × 16 pixels."""
    torch.manual_seed(0)
    small = {"heads": 2, "dim_head": 16}
    cvivit = CViViT(
        dim=32,
        image_size=16,
        patch_size=4,
        temporal_patch_size=2,
        spatial_depth=1,
        temporal_depth=1,
        codebook_size=64,
        **small,
    )
    maskgit = MaskGit(num_tokens=64, grid=cvivit.grid(9), dim=32, depth=1, dim_context=dim_context, **small)
    return Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=text_encoder or WordVectors())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder with a plan beside it, as train_prior.py leaves them."""
    out = tmp_path_factory.mktemp("run")
    tiny().save_pretrained(out / "model")
    plan = {
        "steps": 1,
        "arguments": {"text_encoder": "words", "sampling_steps": 2, **SAMPLING, "fps": None, "stride": 1},
    }
    (out / "plan.json").write_text(json.dumps(plan))
    return out / "model"


@pytest.fixture
def run(model, tmp_path):
    def run(*words, model=model):
        generate.main([*map(str, words), "--model", str(model), "--out", str(tmp_path / "out")])
        return tmp_path / "out.mp4"

    return run


def check(path, frames, size, fps):
    """Both PyAV and, where there is one, ffprobe agree."""
    video, rate = read_video(path)
    assert video.shape == (3, frames, size, size) and rate == pytest.approx(fps)
    if shutil.which("ffprobe"):
        command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
        [stream] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
        assert (stream["width"], stream["height"], int(stream["nb_read_frames"])) == (size, size, frames)
        assert Fraction(stream["avg_frame_rate"]) == Fraction(fps).limit_denominator(1001)
    return video


def test_a_prompt_gives_a_clip_of_one_window(run, tmp_path, capsys):
    path = run("a red circle moves left", "--scale", 1)
    check(path, 9, 16, 8)
    gif, rate = read_video(path.with_suffix(".gif"))
    assert gif.shape == (3, 9, 16, 16) and rate == pytest.approx(8, rel=0.01)  # a gif counts in 1/100 s
    with Image.open(path.with_suffix(".png")) as sheet:
        assert sheet.width >= 9 * 16
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.gif", "out.mp4", "out.png"]
    said = capsys.readouterr().out
    assert "9 frames, 16 × 16, 8 a second" in said and said.count("wrote") == 2


def test_pictures_are_enlarged_to_about_128_pixels(run):
    check(run("a red circle"), 9, 128, 8)


def test_prompts_give_a_story(run):
    check(run("a red circle moves left", "a red circle turns up", "and down"), 9 + 4 + 4, 128, 8)
    check(run("left", "up", "--overlap", 3), 9 + 6, 128, 8)
    check(run("left", "up", "--frames", 3, "--fps", 12.5), 6, 128, 12.5)
    check(run("left", "up", "--frames", 20, 1), 21, 128, 8)


def test_the_story_is_the_librarys(run, model):
    video = check(run("left", "up", "--seed", 3), 13, 128, 8)
    video = reduce(video, "c f (h sh) (w sw) -> c f h w", "mean", sh=8, sw=8)
    phenaki = Phenaki.from_pretrained(model, text_encoder=WordVectors())
    generator = torch.Generator().manual_seed(3)
    sampling = {"steps": 2, **SAMPLING, "generator": generator}
    expected, other = (
        phenaki.generate_story(["left", "up"], num_frames=[9, 4], overlap=5, **sampling)[0][0] for _ in range(2)
    )
    # The error of the compression is small beside the difference of two samples.
    assert (video - expected).abs().mean() < (video - other).abs().mean() / 5


def test_a_picture_is_the_first_frame(run, tmp_path):
    picture = tmp_path / "given" / "picture.png"
    picture.parent.mkdir()
    Image.radial_gradient("L").convert("RGB").resize((40, 24)).save(picture)
    video = check(run("it moves", "--image", picture, "--scale", 1), 9, 16, 8)
    assert (video[:, 0] - read_image(picture, 16)).abs().mean() < 0.03


def ramp(frames, size):
    return torch.linspace(0, 1, frames)[None, :, None, None].expand(3, frames, size, size)


def test_a_video_is_continued_at_its_own_rate(run, tmp_path):
    given = ramp(12, 32)
    write_mp4(tmp_path / "given.mp4", given, 24)
    video = check(run("it goes on", "--video", tmp_path / "given.mp4", "--scale", 1), 5 + 4, 16, 24)
    assert (video[:, :5].mean(dim=(0, 2, 3)) - given[:, 7:].mean(dim=(0, 2, 3))).abs().max() < 0.02
    check(run("on", "and on", "--video", tmp_path / "given.mp4", "--fps", 10), 5 + 4 + 4, 128, 10)


def test_a_short_video_gives_as_many_frames_as_fit(run, tmp_path):
    write_mp4(tmp_path / "given.mp4", ramp(4, 32), 24)
    check(run("it goes on", "--video", tmp_path / "given.mp4"), 3 + 6, 128, 24)


def test_a_video_is_read_at_the_rate_of_the_training(model, run, tmp_path):
    shutil.copytree(model, tmp_path / "run" / "model")
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"arguments": {"fps": 6.0, "sampling_steps": 2}}))
    given = ramp(40, 32)
    write_mp4(tmp_path / "given.mp4", given, 24)
    video = check(
        run("on", "--video", tmp_path / "given.mp4", "--scale", 1, model=tmp_path / "run" / "model"), 9, 16, 6
    )
    steps = video[0, :5].mean(dim=(1, 2)).diff()
    assert (steps - 4 / 39).abs().max() < 0.02


def test_several_samples_give_several_files(run, tmp_path):
    run("a red circle", "--count", 3, "--scale", 2)
    videos = [check(tmp_path / f"out-{number}.mp4", 9, 32, 8) for number in (1, 2, 3)]
    assert not torch.equal(videos[0], videos[1])
    assert len(list(tmp_path.iterdir())) == 7


def test_no_plan_is_needed(model, run, tmp_path):
    shutil.copytree(model, tmp_path / "alone")
    check(run("a red circle", "--steps", 2, model=tmp_path / "alone"), 9, 128, 8)


def test_an_unconditional_model_takes_no_prompts(run, tmp_path):
    tiny(dim_context=None).save_pretrained(tmp_path / "free")
    check(run("--steps", 2, "--frames", 12, model=tmp_path / "free"), 12, 128, 8)
    with pytest.raises(SystemExit, match="no prompts, as the model reads neither texts nor classes, got 1"):
        run("a red circle", model=tmp_path / "free")


def test_odd_sizes_are_enlarged_to_even_ones(run, tmp_path):
    size = {"image_size": 25, "patch_size": 5, "temporal_patch_size": 2, "spatial_depth": 1, "temporal_depth": 0}
    cvivit = CViViT(dim=32, codebook_size=64, **size)
    maskgit = MaskGit(num_tokens=64, grid=cvivit.grid(5), dim=32, depth=1, dim_context=64)
    Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=WordVectors()).save_pretrained(tmp_path / "odd")
    check(run("a", "--steps", 2, model=tmp_path / "odd"), 5, 150, 8)
    with pytest.raises(SystemExit, match="even --scale"):
        run("a", "--scale", 3, model=tmp_path / "odd")


def test_the_default_is_runs_video():
    assert generate.parse_arguments(["a red circle"]).out == Path("runs/video")
    assert generate.parse_arguments(["a red circle", "--out", "clip.mp4"]).out == Path("clip")


@pytest.mark.parametrize("first, stride, window, overlap", [(1, 2, 9, 5), (1, 4, 13, 5), (4, 4, 16, 8), (4, 4, 8, 4)])
def test_the_overlap_is_about_half_a_window_in_a_length_of_the_tokenizer(first, stride, window, overlap):
    tokenizer = ToyTokenizer(first, stride)
    grid = tokenizer.grid(window)
    args = Namespace(overlap=None, prompts=["a", "b"], image=None, video=None, frames=None)
    for model in (tiny_phenaki(cvivit=tokenizer, grid=grid), tiny_videogpt(tokenizer=tokenizer, grid=grid)):
        assert generate.check_overlap(args, model) == overlap


def test_a_window_without_room_generates_one_scene_from_nothing_only():
    phenaki = tiny_phenaki(cvivit=ToyTokenizer(4, 4), grid=(1, 2, 2))
    args = Namespace(overlap=None, prompts=["a"], image=None, video=None, frames=None)
    assert generate.check_overlap(args, phenaki) == 0
    with pytest.raises(ValueError, match="window of 4 frames has no room"):
        generate.check_overlap(Namespace(**vars(args) | {"prompts": ["a", "b"]}), phenaki)


def test_a_video_that_is_too_short_for_the_tokenizer_is_refused(tmp_path):
    write_mp4(tmp_path / "given.mp4", ramp(3, 32), 24)
    with pytest.raises(ValueError, match=r"given\.mp4 must have at least 4 frames, got 3"):
        generate.last_frames(tmp_path / "given.mp4", 8, lengths=ToyTokenizer(4, 4), size=(16, 16), rate={"stride": 1})


def test_errors_are_one_line(run, model, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    tiny(dim_context=8, text_encoder=WordVectors(8)).save_pretrained(tmp_path / "other")
    for words, message in {
        (): "expected a prompt, got none",
        ("a", "b", "--frames", 1, 2, 3): "one for each of 2 scenes",
        ("a", "b", "--overlap", 4): "--overlap must be one of [1, 3, 5, 7], got 4",
        ("a", "--overlap", 9): "--overlap must be one of [1, 3, 5, 7], got 9",
        ("a", "--scale", 1, "--image", tmp_path / "none.png"): "none.png",
        ("a", "--video", tmp_path / "text.mp4"): "text.mp4",
    }.items():
        with pytest.raises(SystemExit) as caught:
            run(*words)
        assert message in str(caught.value) and "\n" not in str(caught.value), words
    with pytest.raises(SystemExit, match="no model in"):
        run("a", model=tmp_path)
    with pytest.raises(SystemExit, match="8 wide"):
        run("a", model=tmp_path / "other")
    assert not list(tmp_path.glob("out*"))


def test_words_that_no_caption_has_are_named(model, run, tmp_path, capsys):
    run("a Red dog moves left", "--frames", 1)
    assert "no caption" not in capsys.readouterr().err  # the plan of this model has no words
    shutil.copytree(model, tmp_path / "run" / "model")
    plan = json.loads((model.parent / "plan.json").read_text())
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan | {"words": ["a", "left", "moves", "red"]}))
    run("a Red dog moves left", "--frames", 1, model=tmp_path / "run" / "model")
    assert "no caption of the training has dog; the captions' words: a, left, moves, red" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, message",
    [
        (("a", "--overlap", 5), "--overlap would have no effect on a single scene of one window"),
        (("a", "--overlap", 5, "--frames", 9), "--overlap would have no effect on a single scene of one window"),
        (("a", "--critic-scale", 2), "--critic-scale would have no effect on a model without a critic"),
        (("a", "--guide-every", 2, "--cond-scale", 1), "--guide-every would have no effect with --cond-scale 1"),
        (("a", "--steps", 1, "--temperature", 1), "--temperature would have no effect in a single step"),
        (("a", "--top-k", 3), "--top-k would have no effect on a Phenaki"),
        (("a", "--actions", "left"), "expected no --actions, got some"),
        (("a", "--scale", 2000), "at most 16384 pixels a side"),
        (("a", ""), "expected a word in every prompt, got ''"),
        (("a", " \n"), "expected a word in every prompt"),
        (("?!",), r"expected a word in every prompt, got '\?!'"),
    ],
)
def test_what_would_have_no_effect_or_no_meaning_is_refused(run, tmp_path, words, message):
    with pytest.raises(SystemExit, match=f"generate.py: .*{message}"):
        run(*words)
    assert not list(tmp_path.glob("out*"))


def test_an_overlap_has_an_effect_on_one_scene_of_several_windows(run):
    check(run("a", "--overlap", 3, "--frames", 12), 12, 128, 8)


def test_a_prompt_without_a_word_that_the_model_knows_is_refused(model, run, tmp_path):
    shutil.copytree(model, tmp_path / "run" / "model")
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"words": ["a", "caf\u00e9"]}))
    with pytest.raises(SystemExit, match=r"no caption of the training has a word of 'un chien'; .* a, caf\u00e9"):
        run("a", "un chien", model=tmp_path / "run" / "model")
    run("Cafe\u0301", "--frames", 1, "--steps", 1, model=tmp_path / "run" / "model")


@pytest.mark.parametrize("tokenizer", [tiny_cvivit, tiny_vqvae])
def test_a_picture_is_what_the_model_reads_and_the_first_frame_where_images_are_clips(tokenizer, run, tmp_path):
    tokenizer = tokenizer()
    first, grid = tokenizer.num_frames(1), (3, 2, 2)
    encoder = tiny_frame_encoder()
    tiny_videogpt(tokenizer=tokenizer, frame_encoder=encoder, grid=grid).save_pretrained(tmp_path / "model")
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    video = check(run("--image", tmp_path / "white.png", "--scale", 1, model=tmp_path / "model"), 4 + first, 16, 8)
    assert (video[:, 0].mean() > 0.95) == (first == 1)


@pytest.mark.parametrize("known", [0, 3])
def test_each_action_holds_for_its_share_of_the_new_frames(known, tmp_path):
    args = generate.parse_arguments(["--model", str(tmp_path), "--actions", "1", "0"])
    taken = generate.told_of(args, tiny_videogpt(dim_action=2), None, known=known, count=5)["actions"]
    assert taken.shape == (1, known + 5, 2) and taken.argmax(dim=-1).tolist() == [[1] * known + [1, 1, 1, 0, 0]]


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_the_given_file_is_never_replaced(run, tmp_path, name):
    (write_mp4 if name == "out.mp4" else write_gif)(tmp_path / name, ramp(9, 32), 8)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(SystemExit, match=f"{name} is the file that is given and would be replaced"):
        run("it goes on", "--video", tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.parametrize("out", [".", "..", "folder/.."])
def test_out_must_be_the_name_of_files(out, capsys):
    with pytest.raises(SystemExit):
        generate.main(["a red circle", "--out", out])
    assert "--out must be the name of files" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--model", "--out", "--image", "--video"])
@pytest.mark.parametrize("name", ["", "http://127.0.0.1:1/x"])
def test_empty_names_and_addresses_are_refused_at_their_flags(flag, name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        generate.main(["a red circle", flag, name])
    assert f"argument {flag}: expected the name of a file or folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", ["0.009", "1e-9", "1001"])
def test_rates_that_no_file_holds_are_refused_at_the_flag(run, fps, capsys):
    with pytest.raises(SystemExit):
        run("a", "--fps", fps)
    assert "argument --fps: expected at least 0.01 and at most 1000" in capsys.readouterr().err


def test_a_video_of_a_rate_that_no_file_holds_is_refused_before_sampling(run, tmp_path, monkeypatch):
    video_files.write(tmp_path / "slow.mkv", video_files.grey_frames(5), times=[0, 0.1, 0.2, 0.3, 10**6])
    monkeypatch.setattr(Phenaki, "generate", lambda *args, **kw: pytest.fail("was sampled"))
    with pytest.raises(SystemExit, match=r"slow\.mkv has .* frames a second: expected 0\.01 to 1000, or another --fps"):
        run("on", "--video", tmp_path / "slow.mkv", "--scale", 1)


def test_no_file_is_left_where_one_cannot_be_written(run, tmp_path, monkeypatch):
    def full(path, *args, **kw):
        with written(path) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device", str(temporary))

    monkeypatch.setattr(generate, "write_gif", full)
    with pytest.raises(SystemExit, match=rf"No space left on device: '{tmp_path}/out-1\.gif'"):
        run("a", "--frames", 1, "--steps", 1, "--count", 2)
    assert not list(tmp_path.iterdir())
