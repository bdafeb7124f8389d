"""evaluate_latte.py: which settings are measured, with which options, and what it refuses."""

import csv
import json

import pytest

import evaluate_latte
from conftest import tiny_cvivit, tiny_latte, tiny_phenaki
from data.moving_shapes import read_caption
from evaluate_latte import main, panels_of, parse_arguments, settings_of
from evaluation.claims import Judged
from evaluation.judge import Verdict
from evaluation.measures import share_of

PLAN = {"sampler": "ddim", "sampling_steps": 3, "cond_scale": 2.0}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The folder of a model of 9 frames, whose text encoder is that of the programs, and the calls of its measures."""
    latte = tiny_latte(codec=tiny_cvivit(image_size=16), grid=(5, 2, 2), dim_context=300)
    calls = []

    def judged(model, count, **options):
        calls.append((count, options))
        captions = ["a red circle moves left", "a red circle moves up"]
        return Judged(captions, [Verdict(*read_caption(captions[0]))] * 2)

    def animated(model, count, **options):
        calls.append("animation")
        return {"all": share_of([True] * count)}

    monkeypatch.setattr(evaluate_latte, "load_model", lambda folder: latte)
    monkeypatch.setattr(evaluate_latte, "text_to_video", judged)
    monkeypatch.setattr(evaluate_latte, "animation", animated)
    (tmp_path / "plan.json").write_text(json.dumps({"arguments": PLAN}))
    return tmp_path / "model", calls


def test_the_first_guidance_is_measured_at_all_steps_and_the_others_at_those_of_the_plan():
    args = parse_arguments(["--model", "x", "--steps", "10", "3", "--guidance", "4", "1"])
    assert settings_of(args, {"steps": 3, "cond_scale": 2.0}) == [(10, 4.0), (3, 4.0), (3, 1.0)]
    assert settings_of(parse_arguments(["--model", "x"]), {"steps": 3, "cond_scale": 2.0}) == [(3, 2.0)]


def test_every_setting_is_measured_with_its_options_and_written(saved, tmp_path):
    folder, calls = saved
    files = ["--csv", str(tmp_path / "out.csv"), "--plot", str(tmp_path / "out.png")]
    main(["--model", str(folder), "--prompts", "2", "--steps", "10", "3", "--guidance", "4", "1", *files])
    options = [options for _, options in calls[:-1]]
    assert [(each["steps"], each["cond_scale"]) for each in options] == [(10, 4.0), (3, 4.0), (3, 1.0)]
    assert {(each["sampler"], each["seed"]) for each in options} == {("ddim", 1)} and calls[-1] == "animation"
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [float(row["all"]) for row in rows] == [0.5] * 3 and float(rows[0]["low"]) < 0.5 < float(rows[0]["high"])
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_steps_that_cannot_be_taken_are_refused_before_anything_is_measured(saved):
    folder, calls = saved
    with pytest.raises(SystemExit, match=r"evaluate_latte\.py: steps must be from 1 to 1000, got 1001"):
        main(["--model", str(folder), "--steps", "3", "1001"])
    assert not calls


def test_each_panel_has_the_rows_of_its_axis_alone():
    rows = [{"steps": s, "guidance": g, "all": s * g} for s, g in ((10, 4.0), (3, 4.0), (3, 1.0))]
    assert panels_of(rows, {"steps": 3}) == {
        "steps": {"all right": [(3, 12.0), (10, 40.0)]},
        "guidance": {"all right": [(1.0, 3.0), (4.0, 12.0)]},
    }


@pytest.mark.parametrize(
    "build, message",
    [
        (tiny_phenaki, "holds a Phenaki, expected a Latte: see evaluate.py"),
        (lambda: tiny_latte(num_classes=3), "expected a model that reads prompts"),
        (lambda: tiny_latte(grid=(2, 2, 2), dim_context=12), "clips of at least .* frames, the model has 3"),
    ],
)
def test_models_that_cannot_be_judged_are_refused_in_one_line(build, message, monkeypatch):
    monkeypatch.setattr(evaluate_latte, "load_model", lambda folder: build())
    with pytest.raises(SystemExit, match=message):
        main(["--model", "x"])
