"""Attention in bfloat16 on processors: the gradient by products is that of the formula, in pieces or at once."""

import pytest
import torch

from phenaki_pytorch import attention, attention_gradient
from phenaki_pytorch.attention import attend

B, H, E = 2, 3, 32
MASKS = {
    "keys of a sample": lambda n, m: torch.rand(B, 1, 1, m) < 0.6,
    "keys of a query": lambda n, m: torch.rand(n, m) < 0.6,
    "all told apart": lambda n, m: torch.rand(B, H, n, m) < 0.6,
}


def inputs(n, m, scale=1.0):
    """Queries, keys, values and the output's gradient, as attention has them: heads lie behind tokens in memory."""
    made = [torch.randn(B, tokens, H, E) for tokens in (n, m, m, n)]
    made[0] *= scale
    return [part.bfloat16().transpose(1, 2) for part in made]


def formula(q, k, v, grad, visible):
    """Output and gradients in float64."""
    q, k, v = (part.double().requires_grad_() for part in (q, k, v))
    scores = q @ k.mT / E**0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    out = scores.softmax(dim=-1) @ v
    return out, *torch.autograd.grad(out, (q, k, v), grad.double())


def ours(q, k, v, grad, **options):
    q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
    out = attend(q, k, v, **options)
    return out, *torch.autograd.grad(out, (q, k, v), grad)


def assert_near(made, expected):
    for one, other in zip(made, expected, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).norm() < 0.01 * other.norm()


@pytest.fixture(params=[2**22, 2000, 10], ids=["at once", "some heads", "some keys"])
def scores(request, monkeypatch):
    monkeypatch.setattr(attention_gradient, "SCORES", request.param)


@pytest.fixture
def by_kernel(monkeypatch):
    """How often the kernel's own gradient was asked."""
    asked, theirs = [], attention_gradient.backwards
    monkeypatch.setattr(attention_gradient, "backwards", lambda *a, **k: asked.append(1) or theirs(*a, **k))
    return asked


@pytest.mark.parametrize("n, m", [(40, 23), (1, 7), (20, 20)])
def test_the_gradient_is_that_of_the_formula(scores, by_kernel, n, m):
    q, k, v, grad = inputs(n, m)
    assert_near(ours(q, k, v, grad, visible=None), formula(q, k, v, grad, None))
    assert by_kernel == []


def test_none_looks_ahead(scores, by_kernel):
    q, k, v, grad = inputs(21, 21)
    before = torch.ones(21, 21, dtype=torch.bool).tril()
    assert_near(ours(q, k, v, grad, visible=None, causal=True), formula(q, k, v, grad, before))
    assert by_kernel == []


@pytest.mark.parametrize("mask", MASKS)
def test_none_looks_at_what_is_not_visible(scores, by_kernel, mask):
    q, k, v, grad = inputs(30, 11)
    visible = MASKS[mask](30, 11)
    visible[..., 0] = True
    made = ours(q, k, v, grad, visible=visible)
    assert_near(made, formula(q, k, v, grad, visible))
    unseen = ~visible.expand(B, H, 30, 11).any(dim=2)
    assert made[2][unseen].abs().sum() == 0 and made[3][unseen].abs().sum() == 0
    assert by_kernel == []


def test_what_is_hidden_may_have_any_score(by_kernel):
    q, k, v, grad = inputs(20, 20)
    k[:, :, 12:] = 100 * q[:, :, :1]  # exp of the first query's score with these overflows
    visible = torch.ones(20, 20, dtype=torch.bool).tril() & (torch.arange(20) < 12)
    assert_near(ours(q, k, v, grad, visible=visible), formula(q, k, v, grad, visible))
    assert by_kernel == []


def test_scores_whose_exp_would_overflow_are_left_to_the_kernel(by_kernel):
    q, k, v, grad = inputs(20, 20, scale=60.0)
    for made in ours(q, k, v, grad, visible=None):
        assert made.isfinite().all()
    assert by_kernel == [1]


def test_a_query_that_sees_nothing_moves_nothing():
    q, k, v, grad = inputs(20, 20)
    visible = torch.rand(20, 20) < 0.6
    visible[3] = False
    rest = torch.arange(20) != 3
    _, dq, *made = ours(q, k, v, grad, visible=visible)
    _, expected, *others = formula(q[:, :, rest], k, v, grad[:, :, rest], visible[rest])
    assert_near((dq[:, :, rest], *made), (expected, *others))
    assert dq[:, :, 3].abs().sum() == 0


def test_products_are_for_bfloat16_that_is_learnt_from(monkeypatch):
    used, theirs = [], attention.attend_by_products
    monkeypatch.setattr(attention, "attend_by_products", lambda *args: used.append(1) or theirs(*args))
    q, k, v, grad = inputs(20, 20)
    ours(q.float(), k.float(), v.float(), grad.float(), visible=None)
    ours(q, k, v, grad, visible=None, dropout=0.5)
    attend(q, k, v, visible=None)
    with torch.no_grad():
        attend(q.detach().requires_grad_(), k, v, visible=None)
    assert used == []
    ours(q, k, v, grad, visible=None)
    assert used == [1]
