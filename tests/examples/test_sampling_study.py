"""sampling_study.py: its count of forward passes, what it writes, and what it refuses."""

import csv
import json
import re

import pytest
from PIL import Image

import sampling_study
from conftest import tiny_cvivit, tiny_maskgit
from data.word_vectors import WordVectors
from phenaki_pytorch import Phenaki, SelfCritic
from phenaki_pytorch.priors.decoding import parallel_decode
from phenaki_pytorch.priors.token_transformer import TokenTransformer
from sampling_study import COLUMNS, lines_of


@pytest.fixture
def model(tmp_path):
    """An untrained model of clips of 9 frames with a critic."""
    cvivit = tiny_cvivit()
    maskgit = tiny_maskgit(grid=cvivit.grid(9), dim_context=64)
    parts = {"text_encoder": WordVectors(), "critic": SelfCritic(maskgit)}
    Phenaki(cvivit=cvivit, maskgit=maskgit, **parts).save_pretrained(tmp_path / "run" / "model")
    plan = {"arguments": {"token_temperature": [1.2, 0.5]}}
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    return tmp_path / "run" / "model"


def test_the_written_passes_are_those_that_the_model_computes(model, tmp_path, monkeypatch):
    passes, decode, features = [], parallel_decode, TokenTransformer.features

    def counted(model, ids, mask=None, *, context=None, **options):
        passes[-1] += len(context) // len(ids)  # with guidance, two contexts for each sample
        return features(model, ids, mask, context=context, **options)

    monkeypatch.setattr(TokenTransformer, "features", counted)
    monkeypatch.setattr(sampling_study, "parallel_decode", lambda *args, **kw: passes.append(0) or decode(*args, **kw))
    options = ["--steps", "3", "8", "--guidance", "2", "1", "1:3", "--prompts", "2"]
    options += ["--csv", str(tmp_path / "study.csv")]
    inline = "critic,critic_inline=1,guide_every=3"
    ways = ["--ways", "confidence", "critic", "random", "halton", inline]
    sampling_study.main([str(model), *options, *ways, "--plot", str(tmp_path / "study.png")])
    assert passes == [6, 16, 5, 14, 6, 16, 6, 16, 6, 16, 8, 15, 7, 13, 8, 15, 8, 15, 8, 15]
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["passes"]) for row in rows] == passes
    assert [(row["way"], row["budget"], row["steps"]) for row in rows[:4]] == [
        *(("confidence", "3", "3"), ("confidence", "8", "8"), ("critic", "3", "2"), ("critic", "8", "5")),
    ]
    assert {row["model"] for row in rows} == {"run"} and all(0 <= float(row["all"]) <= 1 for row in rows)
    assert [row["guidance"] for row in rows[10:]] == ["1", "1:3"] * 5
    assert Image.open(tmp_path / "study.png").size == (1000, 450)  # a legend of five below two panels


def test_the_points_of_a_line_are_sorted():
    rows = [{"model": "a", "way": "critic", "passes": p, "all": p / 10} for p in (8, 1, 4)]
    assert lines_of(rows, "passes") == {"a, critic": [(1, 0.1), (4, 0.4), (8, 0.8)]}


@pytest.mark.parametrize(
    "words, message",
    [
        (("--steps", "0"), "at least 1"),
        (("--prompts", "0"), "at least 1"),
        (("--guidance", "2", "1:-3"), "cond_scale must be finite and at least 0, got -3"),
        (("--guidance", "much"), "argument --guidance: expected a scale, such as 2, or two, such as 1:3: .*much"),
        (("--ways", "luck"), "argument --ways: a way begins with one of"),
        (("--ways", "confidence,temperature=hot"), "temperature in a way is a number, got 'hot'"),
        (("--ways", "confidence,temperature"), "temperature in a way is a number, got ''"),
        (("--ways", "confidence,guide_every=1.5"), "guide_every in a way is a whole number, got '1.5'"),
        (("--ways", "confidence,token_temperature=1:a"), "token_temperature in a way is a number, or two as in 1:0.4"),
        (("--ways", "critic,critic_inline=yes"), "critic_inline in a way is 0 or 1, got 'yes'"),
        (("--plot", "study.jpg"), "argument --plot: expected the name of a .png file, got 'study.jpg'"),
        (("--ways", "critic", "critic,guide_every=0"), "guide_every must be at least 1, got 0"),
        (("--ways", "critic", "critic,critic_inline=1,critic_scale=2"), "critic_scale must be 1, got 2"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(model, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        sampling_study.main([str(model), *words, "--csv", str(tmp_path / "study.csv")])
    assert caught.value.code == 2 and re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "study.csv").exists()


@pytest.mark.parametrize("held", [b"name,salary\n1,2\n", b"\xff\xd8\xff", b"model,way\n"])
def test_a_file_that_is_no_study_is_not_replaced(tmp_path, monkeypatch, held):
    monkeypatch.setattr(sampling_study, "load_models", lambda *given: pytest.fail("loaded"))
    (tmp_path / "mine.csv").write_bytes(held)
    with pytest.raises(SystemExit, match=r"--csv: .*mine\.csv would be replaced"):
        sampling_study.main(["--csv", str(tmp_path / "mine.csv")])
    assert (tmp_path / "mine.csv").read_bytes() == held


@pytest.mark.parametrize("held", ["", ",".join(COLUMNS) + "\r\nold\r\n"])
def test_an_earlier_study_is_replaced(model, tmp_path, monkeypatch, held):
    shares = {"all": 0.5, "low": 0.1, "high": 0.9, "colour": 1.0, "shape": 1.0, "motion": 0.5}
    monkeypatch.setattr(sampling_study, "judged", lambda *given: shares)
    (tmp_path / "study.csv").write_text(held, newline="")
    sampling_study.main([str(model), "--ways", "halton", "--steps", "3", "--csv", str(tmp_path / "study.csv")])
    text = (tmp_path / "study.csv").read_text()
    assert len(text.splitlines()) == 2 and "old" not in text


def test_one_file_for_two_outputs_is_refused(tmp_path):
    same = ["--csv", str(tmp_path / "a.png"), "--plot", str(tmp_path / "new" / ".." / "a.png")]
    with pytest.raises(SystemExit, match="--csv and --plot would write the same file"):
        sampling_study.main(same)


def test_a_folder_without_a_model_is_named(model, tmp_path):
    with pytest.raises(SystemExit, match=r"sampling_study.py: no model in .*nowhere"):
        sampling_study.main([str(model), str(tmp_path / "nowhere"), "--csv", str(tmp_path / "study.csv")])
    assert not (tmp_path / "study.csv").exists()


def test_what_is_measured_before_an_interruption_is_in_the_table(model, tmp_path, monkeypatch):
    def judged(phenaki, way, steps, *given):
        if steps == 8:
            raise KeyboardInterrupt
        return {"all": 0.5, "low": 0.1, "high": 0.9, "colour": 1.0, "shape": 1.0, "motion": 0.5}

    monkeypatch.setattr(sampling_study, "judged", judged)
    options = ["--ways", "confidence", "--steps", "3", "8", "--csv", str(tmp_path / "study.csv")]
    with pytest.raises(SystemExit, match="130"):
        sampling_study.main([str(model), *options])
    assert len((tmp_path / "study.csv").read_text().splitlines()) == 2


def test_models_that_cannot_be_compared_are_refused(model, tmp_path, capsys):
    options = ["--csv", str(tmp_path / "study.csv")]
    cvivit = tiny_cvivit()
    for name, dim_context in (("free", None), ("plain", 64)):
        maskgit = tiny_maskgit(grid=cvivit.grid(9), dim_context=dim_context)
        encoder = {} if dim_context is None else {"text_encoder": WordVectors()}
        Phenaki(cvivit=cvivit, maskgit=maskgit, **encoder).save_pretrained(tmp_path / name / "model")
    with pytest.raises(SystemExit, match=r"sampling_study\.py: .*free/model is unconditional"):
        sampling_study.main([str(tmp_path / "free" / "model"), *options])
    with pytest.raises(SystemExit, match=r"sampling_study\.py: expected a model with a critic"):
        sampling_study.main([str(tmp_path / "plain" / "model"), "--ways", "critic", *options])
    assert "left out: critic, for which the model in" in capsys.readouterr().err
    same = tmp_path / "other" / "run" / "model"
    Phenaki.from_pretrained(model, text_encoder=WordVectors()).save_pretrained(same)
    with pytest.raises(SystemExit, match=r"sampling_study\.py: expected models of runs with different names"):
        sampling_study.main([str(model), str(same), *options])
    assert not (tmp_path / "study.csv").exists()


def test_a_way_that_the_plan_makes_impossible_is_refused_before_anything_is_measured(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling_study, "judged", lambda *given: pytest.fail("measured"))
    (model.parent / "plan.json").write_text(json.dumps({"arguments": {"critic_inline": True}}))
    with pytest.raises(SystemExit, match=r"sampling_study\.py: with critic_inline, critic_scale must be 1, got 2"):
        sampling_study.main(
            [str(model), "--ways", "confidence", "critic,critic_scale=2", "--csv", str(tmp_path / "a.csv")]
        )
