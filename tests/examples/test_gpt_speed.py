"""gpt_speed.py: what each sampler draws, the order of the turns, the table, and what it refuses."""

import pytest
import torch

import gpt_speed
from benchmarks import turns
from gpt_speed import OURS, build_models, draw, line, measured, parse_arguments, samplers_of

SIZES = ["--dim", "24", "--depth", "2", "--heads", "2", "--num-tokens", "32", "--grid", "3", "2", "2"]
TINY = [*SIZES, "--device", "cpu", "--turns", "2"]


@pytest.fixture(scope="module")
def models():
    gpt, gpt2 = build_models(parse_arguments(TINY))
    torch.nn.init.normal_(gpt.to_logits.weight, std=0.2)  # 0 before training: any sampler would draw the same ids
    return gpt, gpt2


def test_all_samplers_draw_the_same_number_of_ids(models):
    shapes = [sample().flatten(1).shape for sample in samplers_of(*models, 3, 1000).values()]
    assert shapes == [(3, 12)] * 3


def test_without_a_cache_the_same_ids_are_drawn(models):
    drawn = []
    for name in (OURS, "GPT, no cache"):
        torch.manual_seed(0)
        drawn.append(samplers_of(*models, 3, 1000)[name]().flatten(1))
    assert torch.equal(*drawn)


def test_gpt2_draws_each_id_given_all_ids_before_it(models, monkeypatch):
    seen = []
    monkeypatch.setattr(gpt_speed, "draw", lambda logits: seen.append(logits) or draw(logits))
    ids = samplers_of(*models, 3, 2)["GPT-2, cache"]()
    inputs = torch.cat((torch.zeros_like(ids[:, :1]), ids[:, :-1]), dim=1)
    torch.testing.assert_close(torch.stack(seen, dim=1), models[1](inputs).logits)


def test_few_ids_without_a_cache_are_spread_over_the_whole_grid(models, monkeypatch):
    read, logits = [], models[0].logits
    monkeypatch.setattr(models[0], "logits", lambda ids: read.append(ids.shape[1]) or logits(ids))
    assert samplers_of(*models, 3, 3)["GPT, no cache"]().shape == (3, 3)
    assert read == [1, 2, 3]  # time steps


def test_both_models_have_about_as_many_parameters():
    args = parse_arguments(["--depth", "1"])
    args.device = "meta"
    counts = [sum(weight.numel() for weight in model.parameters()) for model in build_models(args)]
    assert counts[1] == pytest.approx(counts[0], rel=0.05)


def test_the_samplers_are_timed_in_turn(monkeypatch):
    calls = []
    monkeypatch.setattr(turns, "seconds", lambda sample, device: sample() and 2.0)
    samplers = {name: lambda name=name: calls.append(name) or torch.ones(1) for name in "abc"}
    assert measured(samplers, 3, "cpu") == {name: [0.5] * 3 for name in "abc"}
    assert "".join(calls) == "abc" * 4  # the first to warm up


def test_a_ratio_is_that_of_two_speeds_of_the_same_turn():
    speeds = {OURS: [100.0, 60.0, 90.0], "other": [50.0, 20.0, 10.0]}
    assert line(4, "other", speeds) == "| 4 | other | 20 (10 to 50) | 3.00 (2.00 to 9.00) |"
    assert line(4, OURS, speeds) == f"| 4 | {OURS} | 90 (60 to 100) |  |"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_is_printed_for_each_batch_size_and_sampler(precision, capsys):
    gpt_speed.main([*TINY, "--batch-sizes", "1", "2", "--precision", precision])
    [about, _, _, _, *rows] = capsys.readouterr().out.splitlines()
    assert about.endswith(f"cpu, {precision}")
    samplers = (OURS, "GPT-2, cache", "GPT, no cache")
    assert [row.split(" | ")[:2] for row in rows] == [[f"| {b}", name] for b in (1, 2) for name in samplers]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--heads", "5"], r"gpt_speed\.py: heads must divide dim where no dim_head is given, got 5 heads for 24"),
        (["--dim", "2"], r"gpt_speed\.py: .* 2"),
    ],
)
def test_sizes_that_do_not_fit_end_in_one_line(words, message):
    with pytest.raises(SystemExit, match=f"^{message}$"):
        gpt_speed.main([*TINY, *words])


def test_a_device_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        gpt_speed.main(["--device", "cuda"])
    assert capsys.readouterr().err.endswith("--device cuda needs a GPU that torch finds\n")
