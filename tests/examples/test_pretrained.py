"""The pretrained models: what they generate is judged right, and the figures in the texts are those of the results."""

import json
import re
from pathlib import Path

import torch
from einops import reduce

import generate
import report
from data.moving_shapes import prompts
from data.runs import device_of, load_model, read_plan
from data.sampling import planned_sampling
from data.video_reader import read_video
from evaluation.judge import agree, judge
from evaluation.measures import judge_each

ROOT = Path(__file__).parent.parent.parent
PRETRAINED = ROOT / "examples" / "pretrained"
QUICK = ["--steps", "12", "--guide-every", "3", "--critic-inline"]  # 16 passes per window
CARD = (PRETRAINED / "README.md").read_text(encoding="utf-8")


def test_generate_without_prompts_makes_the_story_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate.main(QUICK)
    assert {path.name for path in Path("runs").iterdir()} == {"video.mp4", "video.gif", "video.png"}
    video, _ = read_video("runs/video.mp4")
    frames = reduce(video, "c f (h sh) (w sw) -> 1 c f h w", "mean", sh=2, sw=2)
    assert frames.shape == (1, 3, 17, 64, 64)
    for first, last, prompt in zip((0, 9, 13), (9, 13, 17), generate.STORY):
        [verdict] = judge(frames[:, :, :last], start=first)
        assert agree(verdict, prompt).all, (prompt, verdict)


def test_unknown_words_are_named_with_the_known_ones(tmp_path, capsys):
    options = ["--frames", "1", "--steps", "1", "--out", str(tmp_path / "out")]
    generate.main(["a red dog moves left", *options])
    printed = capsys.readouterr().err
    assert "dog" in printed and all(word in printed for word in ("circle", "purple", "turns", "up"))
    generate.main(["a red circle moves left", *options])
    assert "warning" not in capsys.readouterr().err


def test_the_snippet_of_the_model_card_makes_its_prompt_right():
    [snippet] = re.findall(r"^```python\n(.*?)^```", CARD, re.MULTILINE | re.DOTALL)
    names = {}
    exec(snippet, names)
    [verdict] = judge(names["video"])
    assert agree(verdict, "a red circle moves left").all, verdict


def test_the_distilled_model_is_right_with_one_pass_per_step():
    folder = PRETRAINED / "distilled" / "model"
    phenaki, options = load_model(folder), planned_sampling(read_plan(folder)) | {"steps": 12}
    passes = []
    phenaki.maskgit.transformer.blocks[-1].register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    captions = [*prompts("seen", 10), *prompts("image_only", 10)]
    generator = torch.Generator(device_of(phenaki)).manual_seed(0)
    videos = phenaki.generate(captions, num_frames=9, generator=generator, **options)
    assert passes == [20] * 12
    right = [agreement.all for agreement in judge_each(videos, captions)]
    assert sum(right[:10]) >= 9 and sum(right[10:]) >= 9, right


def test_latte_draws_what_its_prompts_say():
    folder = PRETRAINED / "latte" / "model"
    latte, options = load_model(folder), planned_sampling(read_plan(folder)) | {"steps": 10}
    captions = prompts("seen", 10)
    generator = torch.Generator(device_of(latte)).manual_seed(0)
    videos = latte.generate(captions, num_frames=9, generator=generator, **options)
    right = [agreement.all for agreement in judge_each(videos, captions)]
    assert sum(right) >= 7, right


def test_the_tables_hold_the_figures_of_the_results():
    results = json.loads((PRETRAINED / "results.json").read_text())
    texts = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("examples/**/*.md")]}
    with_tables = {path: text for path, text in texts.items() if "<!-- /" in text}
    assert PRETRAINED / "README.md" in with_tables
    for path, text in with_tables.items():
        assert report.filled(text, results) == text, path


def test_the_files_are_small():
    sizes = [path.stat().st_size for path in PRETRAINED.rglob("*") if path.is_file()]
    assert max(sizes) <= 12e6 and sum(sizes) <= 25e6
