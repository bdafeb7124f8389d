"""evaluate.py on untrained tiny models: every measure, the same figures again, and missing models."""

import json

import pytest
import torch

import evaluate
import report
from conftest import tiny_cvivit, tiny_maskgit
from data.outputs import alone
from data.word_vectors import WordVectors
from evaluation import claims
from phenaki_pytorch import Phenaki

SAMPLING = {"cond_scale": 2.0, "temperature": 2.0}

SMALL = {"prompts": 2, "others": 2, "samples": 3}


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
    only = {int(word) for word in words if word.isdigit() and "--only" in words} or {*evaluate.MEASURES}
    small = [(f"--{name}", str(value)) for name, value in SMALL.items() if evaluate.USED[name] & only]
    evaluate.main(["--model", str(model), "--out", str(out), *(word for pair in small for word in pair), *words])
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
        (("--samples", "2"), "--samples: expected at least 3, got 2"),
        (("--quick", "--prompts", "0"), "--prompts: expected at least 1, got 0"),
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


# what stays of an evaluation that fails


@pytest.mark.parametrize("error", [ValueError("too short"), KeyboardInterrupt()])
def test_the_figures_before_an_error_are_on_disk_and_the_missing_measures_are_named(
    run, tmp_path, monkeypatch, capsys, error
):
    def fails(*given, **named):
        raise error

    monkeypatch.setattr(evaluate, "variety", fails)
    with pytest.raises(SystemExit) as caught:
        evaluated(run / "model", tmp_path, "--only", "9", "1", "4", "10")
    assert caught.value.code == ("evaluate.py: too short" if isinstance(error, ValueError) else 130)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [title[0] for title in results["measures"]] == ["1", "1", "4"]
    assert results["missing"] == [9, 10] and "confusion" in results
    assert "results.json: the measures 9, 10\n" in capsys.readouterr().err
    report.filled("<!-- measures --><!-- /measures -->", report.read_results(tmp_path / "results.json"))


def test_an_error_within_a_measure_leaves_its_first_figures_and_it_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(claims.Judged, "shuffled", lambda *given: pytest.fail("no"))
    with pytest.raises(pytest.fail.Exception):
        evaluated(run / "model", tmp_path, "--only", "1")
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["measures"]) == ["1 text to video"] and results["missing"] == [1]


def test_a_new_evaluation_starts_anew(run, tmp_path):
    evaluated(run / "model", tmp_path, "--only", "1")
    assert (tmp_path / "confusion.png").exists()
    assert list(evaluated(run / "model", tmp_path, "--only", "4")["measures"]) == ["4 text to image"]
    assert not (tmp_path / "confusion.png").exists()


def test_an_evaluation_that_cannot_begin_leaves_the_results_of_the_one_before(run, tmp_path):
    evaluated(run / "model", tmp_path, "--only", "1")
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(SystemExit, match="no model in"):
        evaluated(tmp_path / "nowhere", tmp_path, "--only", "1")
    assert (tmp_path / "results.json").read_bytes() == before and (tmp_path / "confusion.png").exists()


def test_two_evaluations_with_one_out_are_refused(run, tmp_path):
    with alone(tmp_path / "out"), pytest.raises(SystemExit, match=r"evaluate\.py: another run is writing to .*out"):
        evaluated(run / "model", tmp_path / "out", "--only", "1")
    assert "1 text to video" in evaluated(run / "model", tmp_path / "out", "--only", "1")["measures"]


# what is found before anything is measured


@pytest.fixture
def unmeasured(monkeypatch):
    monkeypatch.setattr(evaluate, "measure", lambda *given: pytest.fail("measured"))


@pytest.mark.parametrize(
    "words, message",
    [
        (("--only", "0", "--others", "2"), "--others would have no effect on the measures of --only, 0"),
        (("--only", "5", "--prompts", "2"), "--prompts would have no effect on the measures of --only, 5"),
        (("--only", "1", "8", "--samples", "9"), "--samples would have no effect on the measures of --only, 1, 8"),
        (("--only", "0", "--precision", "bf16"), "--precision would have no effect on the measures of --only, 0"),
        (("--only", "9", "--quick"), "--quick would have no effect"),
        (("--only", "1", "--quick", "--prompts", "3"), "--quick would have no effect"),
    ],
)
def test_arguments_that_no_measure_uses_are_refused(capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        evaluate.parse_arguments(words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("place", ["tokenizer/curves.csv", "maskgit/curves.csv", "maskgit_curves.csv"])
def test_broken_curves_are_named_before_anything_is_measured(tmp_path, unmeasured, place):
    tiny().save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / place).write_text("epoch,loss\n1,2\n")
    with pytest.raises(SystemExit, match=rf"evaluate\.py: .*{place} holds no curves"):
        evaluated(tmp_path / "run" / "model", tmp_path / "out", "--only", "1")


@pytest.mark.parametrize("name, number, dim_context", [("without_images", 3, None), ("prediction", 6, 64)])
def test_a_second_model_that_does_not_fit_is_named_before_anything_is_measured(
    tmp_path, unmeasured, name, number, dim_context
):
    tiny().save_pretrained(tmp_path / "model")
    tiny(dim_context).save_pretrained(tmp_path / name / "model")
    with pytest.raises(SystemExit, match=rf"evaluate\.py: expected .* in .*{name}/model"):
        evaluated(tmp_path / "model", tmp_path / "out", "--only", "1", str(number))


def test_a_model_of_other_than_squares_is_refused(tmp_path, unmeasured):
    cvivit = tiny_cvivit(image_size=(16, 24))
    maskgit = tiny_maskgit(grid=cvivit.grid(9), dim_context=64)
    Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=WordVectors()).save_pretrained(tmp_path / "model")
    with pytest.raises(SystemExit, match=r"evaluate\.py: moving shapes are square: .* got 24 × 16"):
        evaluated(tmp_path / "model", tmp_path / "out", "--only", "1")


def test_empty_cells_of_the_curves_are_left_out(tmp_path):
    (tmp_path / "maskgit_curves.csv").write_text("step,loss,critic_loss\n1,2,\n2,1,0.5\n")
    rows = evaluate.curves_of(tmp_path / "model")["maskgit"]
    assert rows == [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0, "critic_loss": 0.5}]
    table = report.curves({"curves": {"maskgit": rows}})
    assert "| 1 | 2 | - |" in table and "| 2 | 1 | 0.5 |" in table


def test_a_model_that_went_on_from_its_own_folder_is_evaluated(tmp_path):
    tiny().save_pretrained(tmp_path / "run" / "model")
    arguments = {"sampling_steps": 1, "model": str(tmp_path / "run" / "model")}
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"arguments": arguments}))
    for stage in ("tokenizer", "maskgit"):
        (tmp_path / "run" / stage).mkdir()
        (tmp_path / "run" / stage / "curves.csv").write_text("step,loss\n10,2\n")
    curves = evaluated(tmp_path / "run" / "model", tmp_path / "out", "--only", "4")["curves"]
    assert curves == {stage: [{"step": 10.0, "loss": 2.0}] for stage in ("tokenizer", "maskgit")}
