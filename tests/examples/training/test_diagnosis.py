"""Warnings of a training: given once where a row of the curves shows a failure, never where training succeeds."""

import csv
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training import loop
from training.diagnosis import Diagnosis, check_loss
from training.loop import Recipe, fit

RESULTS = Path(__file__).parent.parent.parent.parent / "examples" / "results"
TOKENIZER = {"step": 500, "loss": 0.01, "entropy": 2.2}
PRIOR = {"step": 500, "loss": 1.0, "blank_loss": 1.5, "blank_loss_no_text": 1.7}


def warnings(*rows, done=0.5):
    texts = []
    diagnose = Diagnosis(texts.append)
    for row in rows:
        diagnose(row, done)
    return texts


@pytest.mark.parametrize(
    "row, words",
    [
        (TOKENIZER | {"entropy": 0.6}, "codebook collapse"),
        (PRIOR | {"blank_loss": 1.69}, "the text is ignored"),
        (PRIOR | {"blank_loss": 1.75}, "the text is ignored"),
    ],
)
def test_each_failure_is_reported_once_with_its_step(row, words):
    [text] = warnings(row, row | {"step": 700})
    assert words in text and "step 500" in text


@pytest.mark.parametrize("row", [TOKENIZER, PRIOR])
def test_a_row_without_a_failure_gives_no_warning(row):
    assert warnings(row) == []


def test_at_first_there_is_no_warning():
    early = (TOKENIZER | {"entropy": 0.0}, PRIOR | {"blank_loss": 1.7})
    assert warnings(*early, done=0.19) == []
    assert len(warnings(*early, done=0.2)) == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_an_error(loss):
    check_loss(1e30, 7)
    with pytest.raises(ValueError, match="the loss is not a finite number, step 7: lower --lr, or use --precision no"):
        check_loss(loss, 7)


@pytest.mark.parametrize("name", ["cvivit32", "vit32", "mixed", "loss_terms_pixels", "loss_terms_full"])
def test_successful_trainings_give_no_warning(name):
    with (RESULTS / f"{name}.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    texts = []
    diagnose = Diagnosis(texts.append)
    for row in rows:
        diagnose(row, row["step"] / rows[-1]["step"])
    assert len(rows) > 10 and all("entropy" in row for row in rows) and texts == []


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (self.weight * x).square().mean()


@pytest.mark.parametrize("entropy, times", [(0.1, 1), (2.0, 0)])
def test_a_training_warns_while_it_runs(tmp_path, capsys, monkeypatch, entropy, times):
    monkeypatch.setattr(loop, "write_curves", lambda *_: None)
    recipe = Recipe(steps=4, lr=0.1, seed=0, log_every=1)
    batches = [{"x": torch.ones(2, 3)}] * 4
    watch = {"evaluate": lambda model: {"entropy": entropy}, "resume": False}
    fit("tokenizer", Accelerator(cpu=True), (model := Loss()), model, batches, recipe, tmp_path, **watch)
    assert capsys.readouterr().out.count("warning, step 1: codebook collapse") == times
