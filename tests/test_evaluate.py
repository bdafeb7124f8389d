"""evaluate.py on tiny models that have learned nothing: every measure, twice the same, and what is missing left out."""

import json

import pytest
import torch

import claims
import evaluate
import report
from phenaki_pytorch import Phenaki
from test_generate import SAMPLING, tiny

SMALL = ("--prompts", "2", "--others", "2", "--samples", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What train.py leaves of three trainings."""
    out = tmp_path_factory.mktemp("run")
    for folder, dim_context in (("", 64), ("without_images", 64), ("prediction", None)):
        tiny(dim_context).save_pretrained(out / folder / "model")
        (out / folder / "plan.json").write_text(json.dumps({"arguments": {"sampling_steps": 1, **SAMPLING}}))
    return out


def evaluated(model, out, *words):
    evaluate.main(["--model", str(model), "--out", str(out), *SMALL, *words])
    return json.loads((out / "results.json").read_text())


def test_every_measure_is_there_and_comes_out_the_same_again(run, tmp_path, capsys):
    first = evaluated(run / "model", tmp_path / "first")
    titles = list(first["measures"])
    assert [title.split()[0] for title in titles] == [*"0011223345677", "8", "9", "10", "10"]
    printed = capsys.readouterr().out
    assert all(f"\n{title}\n" in printed for title in titles)
    assert first["measures"]["1 text to video"]["all"]["of"] == 2
    assert list(first["measures"]["10 steps"]) == ["1", "2", "4", "8", "12", "24", "48"]
    assert len(first["measures"]["8 ten windows"]) == 10
    assert set(first["confusion"]) == {"colour", "shape", "motion"}
    for place in report.CLAIMS.values():
        measure, _, name = place.partition(" / ")
        assert first["measures"][measure][name]["kind"] in ("share", "mean"), place
    for name in ("curves.png", "confusion.png"):
        assert (tmp_path / "first" / name).stat().st_size > 5000
    again = evaluated(run / "model", tmp_path / "again", "--only", "1", "6", "9")
    assert again["measures"] == {title: first["measures"][title] for title in again["measures"]}
    assert list(again["measures"]) == [title for title in titles if title[0] in "69" or title.startswith("1 ")]


def test_what_needs_another_model_is_left_out_where_there_is_none(tmp_path, capsys):
    tiny().save_pretrained(tmp_path / "model")
    measures = evaluated(tmp_path / "model", tmp_path / "out", "--only", "3", "6")["measures"]
    assert list(measures) == ["3 white objects"]
    said = capsys.readouterr().err
    assert all(f"left out what asks the model {name}: " in said for name in ("without_images", "prediction"))
    assert not (tmp_path / "out" / "curves.png").exists()


def test_how_the_training_went_is_noted_whoever_left_the_curves(run, tmp_path):
    assert evaluated(run / "model", tmp_path, "--only", "6")["curves"] == {}
    rows = "".join(f"{step},{1 / step}\n" for step in range(100, 4100, 100))
    rows = rows.replace("\n500,0.002\n", "\n500,nan\n")
    for left, stage in ((run / "tokenizer" / "curves.csv", "tokenizer"), (run / "maskgit_curves.csv", "maskgit")):
        left.parent.mkdir(exist_ok=True)
        left.write_text(f"step,loss\n{rows}")
        [*_, last] = evaluated(run / "model", tmp_path, "--only", "6")["curves"][stage]
        assert last == {"step": 4000.0, "loss": 1 / 4000}
    noted = evaluated(run / "model", tmp_path, "--only", "6")["curves"]["maskgit"]
    assert [row["step"] for row in noted] == [100, 200, 500, 1000, 2000, 3000, 4000]
    assert noted[1]["loss"] == 1 / 200 and noted[2]["loss"] is None


def test_quick_asks_a_tenth(run, tmp_path):
    asked = evaluate.parse_arguments(["--quick"])
    assert (asked.prompts, asked.others, asked.samples) == (50, 20, 64)
    quick = evaluated(run / "model", tmp_path, "--quick", "--only", "1", "10")
    assert quick["measures"]["1 text to video"]["all"]["of"] == 2  # a number that is given stays
    assert list(quick["measures"]["10 steps"]) == ["1", "4", "12", "48"]
    assert list(quick["measures"]["10 cond_scale"]) == ["1", "2", "4"]


def test_what_draws_may_be_in_bfloat16_what_judges_is_not(run, tmp_path, monkeypatch):
    drawing, judging, draws, reads = [], [], Phenaki.generate, claims.read_each

    def generate(*args, **asked):
        drawing.append(torch.is_autocast_enabled("cpu"))
        return draws(*args, **asked)

    def read(*clips):
        judging.append(torch.is_autocast_enabled("cpu"))
        return reads(*clips)

    monkeypatch.setattr(Phenaki, "generate", generate)
    monkeypatch.setattr(claims, "read_each", read)
    for precision in ("no", "bf16"):
        evaluated(run / "model", tmp_path, "--only", "1", "--precision", precision)
    assert drawing == [False, True] and judging == [False, False]
    assert json.loads((tmp_path / "results.json").read_text())["asked"]["precision"] == "bf16"


@pytest.mark.parametrize(
    "words, message",
    [
        (("--samples", "2"), "at least 3 samples"),
        (("--quick", "--prompts", "0"), "expected prompts"),
        (("--only", "11"), "invalid choice"),
    ],
)
def test_bad_arguments_are_refused(run, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        evaluated(run / "model", tmp_path, *words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_an_unconditional_model_is_measured_without_texts_alone(run, tmp_path):
    free = run / "prediction" / "model"
    assert "0 reconstructions" in evaluated(free, tmp_path, "--only", "0")["measures"]
    with pytest.raises(SystemExit, match="the model is unconditional"):
        evaluated(free, tmp_path, "--only", "0", "1")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"evaluate.py: no model in .*nowhere"):
        evaluated(tmp_path / "nowhere", tmp_path / "out")
