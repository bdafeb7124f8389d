"""GPT: wrong arguments raise the right kind of error, with what was got and what was expected."""

import pytest
import torch

from conftest import tiny_gpt


def refused(call, message, kind=ValueError):
    with pytest.raises(kind, match=message):
        call()


def video(b=2, c=3, f=11, h=16, w=16):
    return torch.rand(b, c, f, h, w)


def ids(b=2, t=6, h=2, w=2):
    return torch.zeros(b, t, h, w, dtype=torch.int64)


def text(b=2, m=3, d=12):
    return torch.randn(b, m, d)


def mask(*rows):
    return torch.tensor(rows, dtype=torch.bool)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_tokens": 0}, "num_tokens must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"heads": 5}, "heads must divide dim where no dim_head is given, got 5 heads for 24"),
        ({"dim": 2, "heads": 1}, "3 axes need a width of at least 3, got 2"),
        ({"code_dim": 0}, "code_dim must be at least 1, got 0"),
        ({"dim_context": 0}, "dim_context must be at least 1, got 0"),
        ({"dim_frame_vector": 0}, "dim_frame_vector must be at least 1, got 0"),
        ({"dim_frame_map": -1}, "dim_frame_map must be at least 1, got -1"),
        ({"dim_condition": 0}, "dim_condition must be at least 1, got 0"),
        ({"cond_drop_prob": 1.5}, r"cond_drop_prob must lie in \[0, 1\], got 1.5"),
        ({"attn_dropout": -0.1}, r"attn_dropout must lie in \[0, 1\], got -0.1"),
        ({"grid": (6, 0, 2)}, r"each at least 1, got \(6, 0, 2\)"),
        ({"positions": "rotary"}, "positions must be 'learned' or 'sincos', got 'rotary'"),
        ({"axes": "height"}, r"axes must be one of \('both', 'space', 'time'\), got 'height'"),
    ],
)
def test_wrong_sizes_of_a_gpt(changes, message):
    refused(lambda: tiny_gpt(**changes), message)


def given(**changes):
    conditions = {"context": text(), "frame_vector": torch.randn(2, 5), "frame_map": torch.randn(2, 7, 6)}
    return conditions | {"condition": torch.randn(2, 6, 4)} | changes


def gpt_of_all():
    """Reads all conditions, and never computes anything."""
    model = tiny_gpt(dim_context=12, dim_frame_vector=5, dim_frame_map=6, dim_condition=4)
    model.transformer.forward = None
    return model


WRONG_CONDITIONS = [
    ({"context": None}, r"needs a context \(b, m, 12\), got none"),
    ({"context": text(b=3)}, "has a batch of 3"),
    ({"frame_vector": None}, "expected a frame_vector, got none"),
    ({"frame_vector": torch.randn(2, 6)}, r"frame_vector must be \(2, 5\), none empty, got \(2, 6\)"),
    ({"frame_vector": torch.randn(1, 5)}, r"frame_vector must be \(2, 5\), none empty, got \(1, 5\)"),
    ({"frame_map": torch.randn(2, 5)}, r"frame_map must be \(2, None, 6\), none empty, got \(2, 5\)"),
    ({"frame_map": torch.randn(2, 0, 6)}, r"none empty, got \(2, 0, 6\)"),
    ({"condition": torch.randn(2, 5, 4)}, r"condition must be \(2, 4\) or \(2, 6, 4\), none empty, got \(2, 5, 4\)"),
    ({"condition": torch.randn(4)}, r"got \(4,\)"),
]


@pytest.mark.parametrize(
    "changes, message",
    [
        *WRONG_CONDITIONS,
        ({"ids": ids(t=7)}, r"the grid \(6, 2, 2\), got \(7, 2, 2\)"),
        ({"context_mask": mask([1, 0, 0], [0, 0, 0])}, "context_mask must be True somewhere.*all False"),
        ({"token_mask": torch.ones(2, 6, 2, dtype=torch.bool)}, r"bool \(2, 6, 2, 2\), got torch.bool \(2, 6, 2\)"),
        ({"token_mask": ids().bool()}, "token_mask must be True somewhere.*all False"),
    ],
)
def test_wrong_training_batches_of_a_gpt(changes, message):
    refused(lambda: gpt_of_all()(**{"ids": ids(), **given(), **changes}), message)


@pytest.mark.parametrize(
    "changes, message",
    [
        *WRONG_CONDITIONS,
        ({"grid": (6, 3, 2)}, r"height and width of grid must be at most \(2, 2\), got \(6, 3, 2\)"),
        ({"grid": (0, 2, 2)}, r"each at least 1, got \(0, 2, 2\)"),
        ({"batch_size": 3}, "batch_size is 3, the text has a batch of 2"),
        ({"prime_ids": ids(t=6)}, r"\(2, fewer than 6, 2, 2\), got \(2, 6, 2, 2\)"),
        ({"prime_ids": ids(t=2) + 32}, r"\[0, 32\), got values from 32 to 32"),
        ({"cond_scale": -1.0}, "cond_scale must be finite and at least 0, got -1.0"),
    ],
)
def test_wrong_arguments_of_a_gpts_generate(changes, message):
    refused(lambda: gpt_of_all().generate(**{**given(), "batch_size": 2, **changes}), message)


def test_conditions_of_another_kind():
    for name in ("frame_vector", "frame_map", "condition"):
        for call in (gpt_of_all(), gpt_of_all().logits):
            refused(lambda call=call: call(ids(), **given(**{name: [0.5]})), f"{name}.*", TypeError)  # noqa: B023


@pytest.mark.parametrize("name", ["frame_vector", "frame_map", "condition"])
def test_conditions_that_are_not_finite_or_not_real_are_refused(name):
    value = given()[name]
    wrong = value.clone().index_fill_(0, torch.tensor([1]), float("nan"))
    model = gpt_of_all()
    for call in (model, model.logits):
        refused(lambda call=call: call(ids(), **given(**{name: wrong})), f"{name} must be finite, got nan")
        unreal = given(**{name: value.to(torch.complex64)})
        refused(lambda call=call, unreal=unreal: call(ids(), **unreal), f"{name} must be floating point", TypeError)


@pytest.mark.parametrize("name", ["mask", "context_msk", "token_mask"])
def test_arguments_that_a_gpt_does_not_have_are_refused(name):
    refused(lambda: tiny_gpt().logits(ids(), **{name: None}), f"got {name}", TypeError)
    if name != "token_mask":
        refused(lambda: tiny_gpt()(ids(), **{name: None}), f"got {name}", TypeError)


def test_a_mask_whose_real_ids_do_not_come_first_is_refused():
    token_mask = torch.ones(2, 6, 2, 2, dtype=torch.bool)
    tiny_gpt()(ids(), token_mask=token_mask)
    token_mask[1, 0] = False
    refused(lambda: tiny_gpt()(ids(), token_mask=token_mask), "True for the first ids of every sample")


def test_progress_that_ends_early_is_refused():
    refused(
        lambda: tiny_gpt().generate(progress=lambda steps: list(steps)[:3]),
        "the 24 steps that it is given, in order, got 3 of them",
    )


def test_ids_of_inference_mode_are_trained_on():
    with torch.inference_mode():
        encoded = ids()
    tiny_gpt()(encoded).backward()
