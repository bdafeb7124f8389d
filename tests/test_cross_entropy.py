"""Cross-entropy from the logits, some rows at a time: PyTorch's own, with its gradient."""

import pytest
import torch
import torch.nn.functional as F

from phenaki_pytorch import cross_entropy as module
from phenaki_pytorch.cross_entropy import cross_entropy


@pytest.mark.parametrize("at_once", [1, 100, 2**18], ids=["a row", "some rows", "all rows"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradient_are_those_of_pytorch(monkeypatch, at_once, smoothing, dtype):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    logits = (5 * torch.randn(23, 30)).to(dtype).requires_grad_()
    ids = torch.randint(30, (23,))
    made = cross_entropy(logits, ids, label_smoothing=smoothing)
    expected = F.cross_entropy(logits.float(), ids, label_smoothing=smoothing)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, expected)
    [one], [other] = (torch.autograd.grad(3 * loss, logits) for loss in (made, expected))
    assert one.dtype == dtype
    torch.testing.assert_close(one, other)


def test_the_gradient_is_right_by_differences():
    logits, ids = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 4, 2, 2])
    step, smoothing = torch.randn(4, 5, dtype=torch.float64), 0.2

    def loss(by):
        return cross_entropy(logits.detach() + by * step, ids, label_smoothing=smoothing).double()

    [grad] = torch.autograd.grad(cross_entropy(logits, ids, label_smoothing=smoothing), logits)
    torch.testing.assert_close((grad * step).sum(), (loss(0.01) - loss(-0.01)) / 0.02, rtol=2e-3, atol=2e-4)


def test_huge_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([0]))
    loss.backward()
    assert loss == 0 and logits.grad.isfinite().all()
