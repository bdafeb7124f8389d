"""Texts of a model: which of them the null context replaces, and which are refused."""

import math

import pytest
import torch

from phenaki_pytorch.layers.texts import check_context, with_null

# with_null


def make_texts():
    """Texts (3, 4, 5) and their mask, in which no row has its first entry alone."""
    mask = torch.tensor([[True, True, True, True], [False, True, True, False], [True, True, False, False]])
    return torch.randn(3, 4, 5), mask


@pytest.mark.parametrize("dropped", [[True, False, True], [False, True, False], [True] * 3, [False] * 3])
def test_dropped_rows_are_the_null_context_and_the_others_as_they_were(dropped):
    (context, mask), null, dropped = make_texts(), torch.randn(5), torch.tensor(dropped)
    given = context.clone(), mask.clone()
    out, out_mask = with_null(context, mask, null, dropped)
    assert out.shape == (3, 4, 5) and out_mask.dtype == torch.bool
    assert torch.equal(out[dropped], null.expand(int(dropped.sum()), 4, 5))
    assert torch.equal(out[~dropped], context[~dropped])
    assert (out_mask[dropped] == torch.tensor([True, False, False, False])).all()
    assert torch.equal(out_mask[~dropped], mask[~dropped])
    assert torch.equal(context, given[0]) and torch.equal(mask, given[1])


@pytest.mark.parametrize("dropped", [[True, False, True], [False] * 3])
def test_the_null_context_has_a_gradient_also_where_none_is_dropped(dropped):
    (context, mask), null = make_texts(), torch.randn(5, requires_grad=True)
    context.requires_grad_()
    dropped = torch.tensor(dropped)
    with_null(context, mask, null, dropped)[0].sum().backward()
    assert torch.equal(null.grad, torch.full((5,), 4.0 * dropped.sum()))
    assert torch.equal(context.grad, torch.where(dropped[:, None, None], 0.0, torch.ones(3, 4, 5)))


def test_a_dropped_text_may_hold_anything():
    (context, mask), null = make_texts(), torch.randn(5, requires_grad=True)
    context[0] = math.nan
    out, _ = with_null(context, mask, null, torch.tensor([True, False, False]))
    out.sum().backward()
    assert out.isfinite().all() and null.grad.isfinite().all()


def test_the_texts_keep_their_dtype():
    context, mask = make_texts()
    out, _ = with_null(context.bfloat16(), mask, torch.randn(5), torch.tensor([True, False, False]))
    assert out.dtype == torch.bfloat16


# check_context


def test_without_a_mask_every_token_is_real():
    mask = check_context(torch.randn(2, 3, 5), None, 5, 2)
    assert mask.dtype == torch.bool and mask.shape == (2, 3) and mask.all()


def test_a_given_mask_is_returned_and_padding_may_hold_anything():
    context, mask = torch.randn(2, 3, 5), torch.tensor([[True, True, False], [True, False, False]])
    context[~mask] = math.nan
    assert torch.equal(check_context(context, mask, 5, 2), mask)


def test_a_model_without_texts_has_no_mask():
    assert check_context(None, None, None, 2) is None


CONTEXT = torch.zeros(2, 3, 5)


@pytest.mark.parametrize(
    "given, kind, message",
    [
        ({"dim_context": None}, ValueError, r"dim_context is None\): expected no text, got one"),
        ({"dim_context": None, "context": None, "context_mask": torch.ones(2, 3) > 0}, ValueError, "no text, got one"),
        ({"context": None}, ValueError, r"needs a text \(b, m, 5\), got none"),
        ({"context": CONTEXT.long()}, TypeError, "text must be floating point, got torch.int64"),
        ({"context": CONTEXT[0]}, ValueError, r"text must be \(b, m, 5\), none empty, got \(3, 5\)"),
        ({"context": CONTEXT[..., :4]}, ValueError, r"text must be \(b, m, 5\), none empty, got \(2, 3, 4\)"),
        ({"context": CONTEXT[:, :0]}, ValueError, r"text must be \(b, m, 5\), none empty, got \(2, 0, 5\)"),
        ({"batch_size": 4}, ValueError, "the text has a batch of 2, expected 4"),
        ({"context_mask": torch.ones(2, 4) > 0}, ValueError, r"text_mask must be .*\(2, 3\).*got .*\(2, 4\)"),
        ({"context": CONTEXT / 0}, ValueError, "text must be finite, got nan"),
    ],
)
def test_texts_that_do_not_fit_are_refused(given, kind, message):
    with pytest.raises(kind, match=message):
        check_context(
            **{"context": CONTEXT, "context_mask": None, "dim_context": 5, "batch_size": 2, "name": "text", **given}
        )
