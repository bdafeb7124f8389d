"""latte_speed.py: both models compute the same, in turn; the table; what it refuses."""

import pytest
import torch

from latte_speed import OURS, THEIRS, build_models, line, main, measured, parse_arguments, steps_of

TINY = ["--dim", "24", "--depth", "2", "--heads", "3", "--grid", "2", "4", "4", "--turns", "2", "--device", "cpu"]


def test_both_models_predict_the_same_noise():
    args = parse_arguments(TINY)
    ours, theirs = build_models(args)
    steps = steps_of(ours, theirs, args.grid)
    assert steps[OURS]().shape == (2, 2, 4, 4, 8) and steps[OURS]().abs().max() > 0.01
    torch.testing.assert_close(steps[OURS](), steps[THEIRS](), atol=1e-5, rtol=1e-4)


def test_the_models_are_timed_in_turn():
    calls = []
    steps = {name: lambda name=name: calls.append(name) or torch.ones(1) for name in "ab"}
    times = measured(steps, 3, "cpu")
    assert "".join(calls) == "ab" * 4  # the first to warm up
    assert all(len(each) == 3 for each in times.values())


def test_a_ratio_is_that_of_two_times_of_the_same_turn():
    times = {OURS: [1.0, 2.0, 4.0], THEIRS: [2.0, 2.0, 2.0]}
    assert line(THEIRS, times, 10.4) == "| diffusers | 2.00 (2.00 to 2.00) | 1.00 (0.50 to 2.00) | 10 |"
    assert line(OURS, times, 5.0) == f"| {OURS} | 2.00 (1.00 to 4.00) |  | 5 |"


@pytest.mark.parametrize("words, message", [(["--heads", "5"], "heads"), (["--grid", "2", "4", "6"], "square frames")])
def test_sizes_that_do_not_fit_end_in_one_line(words, message):
    with pytest.raises(SystemExit, match=rf"^latte_speed\.py: .*{message}"):
        main([*TINY, *words])
