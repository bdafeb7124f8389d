"""sampling_study.py: its orders are what they say, its passes are counted, and it writes what it found."""

import csv
import json
import sys
from itertools import pairwise

import pytest
import torch
from PIL import Image

import sampling_study
from conftest import seed, tiny_cvivit, tiny_maskgit
from phenaki_pytorch import Phenaki, SelfCritic
from phenaki_pytorch.sampling import parallel_decode
from phenaki_pytorch.token_transformer import TokenTransformer
from sampling_study import by_chance, by_halton, guided, halton, lines_of, passes_of, scales, steps_within
from word_vectors import WordVectors


def test_the_halton_sequence_is_that_of_its_bases():
    torch.testing.assert_close(halton(6, 2), torch.tensor([0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8]))
    torch.testing.assert_close(halton(5, 3), torch.tensor([0, 1 / 3, 2 / 3, 1 / 9, 4 / 9]))


def kept_by(trust, *, steps=5, grid=(2, 4, 4)):
    """Which tokens are kept after each step, (b, n)."""
    n, seen = grid[0] * grid[1] * grid[2], []

    def logits(ids, masked, places):
        seen.append(~masked)
        return torch.zeros(3, n if places is None else places.shape[1], 7)

    ids = torch.zeros(3, n, dtype=torch.int64)
    parallel_decode(logits, ids, ids == 0, trust=trust, steps=steps, generator=seed())
    return seen


@pytest.mark.parametrize("order", ["random", "halton"])
def test_what_was_kept_stays(order):
    trust = by_chance(seed(1)) if order == "random" else by_halton((2, 4, 4), torch.device("cpu"))
    kept = kept_by(trust)
    assert all(not (now & ~later).any() for now, later in pairwise(kept)) and kept[-1].any()
    alike = all(torch.equal(each, each[:1].expand_as(each)) for each in kept)
    assert alike == (order == "halton")


def test_a_low_discrepancy_order_spreads_over_every_time_step_alike():
    for kept in kept_by(by_halton((2, 8, 8), torch.device("cpu")), grid=(2, 8, 8))[1:]:
        first, second = kept[0].view(2, 8, 8)
        assert abs(int(first.sum()) - int(second.sum())) <= 1
        quarters = first.view(2, 4, 2, 4).sum(dim=(1, 3))
        assert quarters.max() - quarters.min() <= 3


@pytest.fixture
def model(tmp_path):
    """A model with a critic, of clips of 9 frames that have learnt nothing."""
    torch.manual_seed(0)
    cvivit = tiny_cvivit()
    maskgit = tiny_maskgit(grid=cvivit.grid(9), dim_context=64)
    parts = {"text_encoder": WordVectors(), "critic": SelfCritic(maskgit)}
    Phenaki(cvivit=cvivit, maskgit=maskgit, **parts).save_pretrained(tmp_path / "run" / "model")
    plan = {"arguments": {"token_temperature": [1.2, 0.5]}}
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    return tmp_path / "run" / "model"


def test_forward_passes_are_counted_alike_and_what_was_found_is_written(model, tmp_path, monkeypatch):
    passes, inside, one = [], parallel_decode, TokenTransformer.features

    def counted(model, ids, hidden, *, keys_values, **options):
        passes[-1] += len(keys_values[0][0]) // len(ids)  # guided, two contexts for each sample
        return one(model, ids, hidden, keys_values=keys_values, **options)

    monkeypatch.setattr(TokenTransformer, "features", counted)
    monkeypatch.setattr(sampling_study, "parallel_decode", lambda *args, **kw: passes.append(0) or inside(*args, **kw))
    options = ["--steps", "3", "8", "--guidance", "2", "1", "1:3", "--prompts", "2"]
    options += ["--csv", str(tmp_path / "study.csv")]
    orders = ["--orders", "confidence", "critic", "random", "halton"]
    monkeypatch.setattr(sys, "argv", ["", str(model), *options, *orders, "--plot", str(tmp_path / "study.png")])
    sampling_study.main()
    assert passes == [6, 16, 5, 14, 6, 16, 6, 16, 8, 15, 7, 13, 8, 15, 8, 15]
    with (tmp_path / "study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["passes"]) for row in rows] == passes
    assert [(row["order"], row["budget"], row["steps"]) for row in rows[:4]] == [
        *(("confidence", "3", "3"), ("confidence", "8", "8"), ("critic", "3", "2"), ("critic", "8", "5")),
    ]
    assert {row["model"] for row in rows} == {"run"} and all(0 <= float(row["all"]) <= 1 for row in rows)
    assert [row["guidance"] for row in rows[8:]] == ["1", "1:3"] * 4
    assert Image.open(tmp_path / "study.png").size == (1000, 350)


def test_guidance_goes_from_its_first_scale_to_its_last():
    model, text = tiny_maskgit(), (torch.randn(2, 3, 12), None)
    ids, masked = torch.zeros(2, 24, dtype=torch.int64), torch.ones(2, 24, dtype=torch.bool)
    rising = guided(model, text, scales("1:3"), steps=3)
    for scale in (1.0, 2.0, 3.0):
        expected = model.guided_logits(model.grid, *text, scale)(ids, masked, None)
        torch.testing.assert_close(rising(ids, masked, None), expected)
    steady = guided(model, text, scales("2"), steps=3)
    assert torch.equal(steady(ids, masked, None), steady(ids, masked, None))


@pytest.mark.parametrize("budget", [1, 2, 8, 24])
@pytest.mark.parametrize("of_critic", [1, 2])
def test_a_critic_gets_as_many_steps_as_fit(budget, of_critic):
    for guidance in ((1, 1), (2.0, 2.0), (1.0, 3.0)):
        passes = passes_of(budget, guidance)
        steps = steps_within(passes, guidance, of_critic)
        taken = [passes_of(count, guidance, of_critic) for count in (steps, steps + 1)]
        assert taken[0] <= passes < taken[1]


def test_lines_go_along_their_axis():
    rows = [{"model": "a", "order": "critic", "passes": p, "all": p / 10} for p in (8, 1, 4)]
    assert lines_of(rows, "passes") == {"a, critic": [(1, 0.1), (4, 0.4), (8, 0.8)]}
