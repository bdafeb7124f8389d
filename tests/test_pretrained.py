"""The trained model that comes along: what it draws is judged, and what is said of it is what was measured."""

import json
import re
from pathlib import Path

import pytest
import torch
from einops import reduce

import generate
import report
from measures import judge_each
from moving_shapes import prompts
from moving_shapes_judge import agree, judge
from video_folder import read_video

ROOT = Path(__file__).parent.parent
PRETRAINED = ROOT / "examples" / "pretrained"
CARD = (PRETRAINED / "README.md").read_text(encoding="utf-8")


def test_the_first_command_tells_its_story(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate.main([])
    assert {path.name for path in tmp_path.iterdir()} == {"video.mp4", "video.gif", "video.png"}
    video, _ = read_video(tmp_path / "video.mp4")
    frames = reduce(video, "c f (h sh) (w sw) -> 1 c f h w", "mean", sh=2, sw=2)
    assert frames.shape == (1, 3, 17, 64, 64)
    for first, last, prompt in zip((0, 9, 13), (9, 13, 17), generate.STORY):
        [verdict] = judge(frames[:, :, :last], start=first)
        assert agree(verdict, prompt).all, (prompt, verdict)


def test_words_it_never_read_are_named_with_those_it_knows(tmp_path, capsys):
    asked = ["a red dog moves left", "--frames", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    generate.main(asked)
    said = capsys.readouterr().err
    assert "never read dog;" in said and all(word in said for word in ("circle", "purple", "turns", "up"))
    generate.main(["a red circle moves left", *asked[1:]])
    assert "never read" not in capsys.readouterr().err


def test_the_snippet_of_its_card_draws_what_it_asks_for():
    [snippet] = re.findall(r"^```python\n(.*?)^```", CARD, re.MULTILINE | re.DOTALL)
    ran = {}
    exec(snippet, ran)
    [verdict] = judge(ran["video"])
    assert agree(verdict, "a red circle moves left").all, verdict


def test_the_distilled_one_draws_what_it_is_asked_for_in_one_pass_a_step():
    folder = PRETRAINED / "distilled" / "model"
    phenaki, settings = generate.load_model(folder), generate.planned_sampling(generate.read_plan(folder))
    passes = []
    phenaki.maskgit.transformer.blocks[-1].register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    asked = [*prompts("seen", 10), *prompts("image_only", 10)]
    generator = torch.Generator(phenaki.maskgit.to_logits.weight.device).manual_seed(0)
    videos = phenaki.generate(asked, num_frames=9, generator=generator, **settings | {"steps": 16})
    assert passes == [20] * 16
    right = [agreement.all for agreement in judge_each(videos, asked)]
    assert sum(right[:10]) >= 8 and sum(right[10:]) >= 8, right


@pytest.mark.parametrize("path", [ROOT / "README.md", PRETRAINED / "README.md"], ids=["README", "model card"])
def test_the_figures_are_those_of_the_results(path):
    results = json.loads((PRETRAINED / "results.json").read_text())
    text = path.read_text(encoding="utf-8")
    assert report.filled(text, results) == text


def test_the_files_are_small():
    sizes = [path.stat().st_size for path in PRETRAINED.rglob("*") if path.is_file()]
    assert max(sizes) <= 12e6 and sum(sizes) <= 25e6
