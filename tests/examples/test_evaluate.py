"""evaluate.py on untrained tiny models: every measure, the same figures again, and missing models."""

import json

import pytest
import torch

import evaluate
import report
from conftest import tiny_cvivit, tiny_maskgit
from data.word_vectors import WordVectors
from evaluation import claims
from phenaki_pytorch import Phenaki

SAMPLING = {"cond_scale": 2.0, "temperature": 2.0}

SMALL = ("--prompts", "2", "--others", "2", "--samples", "3")


def tiny(dim_context=64):
    """An untrained model of clips of 9 frames."""
    cvivit = tiny_cvivit()
    encoder = {} if dim_context is None else {"text_encoder": WordVectors()}
    return Phenaki(cvivit=cvivit, maskgit=tiny_maskgit(grid=cvivit.grid(9), dim_context=dim_context), **encoder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training, with the folders of two others in it."""
    out = tmp_path_factory.mktemp("run")
    for folder, dim_context in (("", 64), ("without_images", 64), ("prediction", None)):
        tiny(dim_context).save_pretrained(out / folder / "model")
        (out / folder / "plan.json").write_text(json.dumps({"arguments": {"sampling_steps": 1, **SAMPLING}}))
    return out


def evaluated(model, out, *words):
    evaluate.main(["--model", str(model), "--out", str(out), *SMALL, *words])
    return json.loads((out / "results.json").read_text())


def test_every_measure_is_written_and_gives_the_same_figures_again(run, tmp_path, capsys):
    first = evaluated(run / "model", tmp_path / "first")
    titles = list(first["measures"])
    assert [title.split()[0] for title in titles] == [*"0011223345677", "8", "9", "10", "10"]
    printed = capsys.readouterr().out
    assert all(f"\n{title}\n" in printed for title in titles)
    assert first["measures"]["1 text to video"]["all"]["of"] == 2
    assert list(first["measures"]["10 steps"]) == ["1", "2", "4", "8", "12", "24", "48"]
    assert len(first["measures"]["8 ten windows"]) == 10
    assert set(first["confusion"]) == {"colour", "shape", "motion"}
    for key in report.CLAIMS.values():
        measure, _, name = key.partition(" / ")
        assert first["measures"][measure][name]["kind"] in ("share", "mean"), key
    for name in ("curves.png", "confusion.png"):
        assert (tmp_path / "first" / name).stat().st_size > 5000
    again = evaluated(run / "model", tmp_path / "again", "--only", "1", "6", "9")
    assert again["measures"] == {title: first["measures"][title] for title in again["measures"]}
    assert list(again["measures"]) == [title for title in titles if title[0] in "69" or title.startswith("1 ")]


def test_measures_of_missing_models_are_left_out(tmp_path, capsys):
    tiny().save_pretrained(tmp_path / "model")
    measures = evaluated(tmp_path / "model", tmp_path / "out", "--only", "3", "6")["measures"]
    assert list(measures) == ["3 white objects"]
    printed = capsys.readouterr().err
    assert all(f"left out what needs the model {name}: " in printed for name in ("without_images", "prediction"))
    assert not (tmp_path / "out" / "curves.png").exists()


def test_rows_of_the_training_curves_are_written(run, tmp_path):
    assert evaluated(run / "model", tmp_path, "--only", "6")["curves"] == {}
    rows = "".join(f"{step},{1 / step}\n" for step in range(100, 4100, 100))
    rows = rows.replace("\n500,0.002\n", "\n500,nan\n")
    for path, stage in ((run / "tokenizer" / "curves.csv", "tokenizer"), (run / "maskgit_curves.csv", "maskgit")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"step,loss\n{rows}")
        [*_, last] = evaluated(run / "model", tmp_path, "--only", "6")["curves"][stage]
        assert last == {"step": 4000.0, "loss": 1 / 4000}
    rows = evaluated(run / "model", tmp_path, "--only", "6")["curves"]["maskgit"]
    assert [row["step"] for row in rows] == [100, 200, 500, 1000, 2000, 3000, 4000]
    assert rows[1]["loss"] == 1 / 200 and rows[2]["loss"] is None


def test_quick_takes_a_tenth_of_the_prompts(run, tmp_path):
    args = evaluate.parse_arguments(["--quick"])
    assert (args.prompts, args.others, args.samples) == (50, 20, 64)
    quick = evaluated(run / "model", tmp_path, "--quick", "--only", "1", "10")
    assert quick["measures"]["1 text to video"]["all"]["of"] == 2  # given numbers do not change
    assert list(quick["measures"]["10 steps"]) == ["1", "4", "12", "48"]
    assert list(quick["measures"]["10 cond_scale"]) == ["1", "2", "4"]


def test_only_generation_is_under_autocast(run, tmp_path, monkeypatch):
    generating, judging, generates, reads = [], [], Phenaki.generate, claims.read_each

    def generate(*args, **options):
        generating.append(torch.is_autocast_enabled("cpu"))
        return generates(*args, **options)

    def read(*clips):
        judging.append(torch.is_autocast_enabled("cpu"))
        return reads(*clips)

    monkeypatch.setattr(Phenaki, "generate", generate)
    monkeypatch.setattr(claims, "read_each", read)
    for precision in ("no", "bf16"):
        evaluated(run / "model", tmp_path, "--only", "1", "--precision", precision)
    assert generating == [False, True] and judging == [False, False]
    assert json.loads((tmp_path / "results.json").read_text())["asked"]["precision"] == "bf16"


@pytest.mark.parametrize(
    "words, message",
    [
        (("--samples", "2"), "at least 3 for --samples"),
        (("--quick", "--prompts", "0"), "at least 1 for --prompts"),
        (("--only", "11"), "invalid choice"),
    ],
)
def test_wrong_arguments_are_refused(run, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        evaluated(run / "model", tmp_path, *words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_an_unconditional_model_has_only_the_measures_without_texts(run, tmp_path):
    free = run / "prediction" / "model"
    assert "0 reconstructions" in evaluated(free, tmp_path, "--only", "0")["measures"]
    with pytest.raises(SystemExit, match="the model is unconditional"):
        evaluated(free, tmp_path, "--only", "0", "1")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"evaluate.py: no model in .*nowhere"):
        evaluated(tmp_path / "nowhere", tmp_path / "out")
