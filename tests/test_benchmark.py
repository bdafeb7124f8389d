"""The benchmark's passes do what they are timed for, with nothing kept from one to the next."""

import json
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import benchmark_passes
from benchmark_passes import PASSES, Parts, Size, mean_progress
from benchmark_products import products_of
from phenaki_pytorch.sampling import mask_share

TINY = Size(
    {"dim": 32, "image_size": 16, "patch_size": 8, "spatial_depth": 1, "temporal_depth": 1, "heads": 2}
    | {"dim_head": 16, "codebook_size": 32, "code_dim": 8},
    9,
    {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16},
    12,
)
CASE = {"size": "tiny", "precision": "float32", "mode": "eager", "device": "cpu", "repeat": 3}


@pytest.mark.parametrize(
    "mode, name",
    [
        *((mode, name) for mode in ("eager", "products") for name in PASSES),
        *(("plain", name) for name in PASSES if "long" not in name),
    ],
)
def test_every_pass_is_run_and_its_figures_printed(mode, name, monkeypatch, capsys):
    monkeypatch.setitem(benchmark_passes.SIZES, "tiny", TINY)
    monkeypatch.setattr(benchmark_passes, "peak", lambda precision, device: 1e9)
    beside = {"beside_plain": mode == "eager" and "long" not in name}
    case = CASE | {"mode": mode, "pass": name, "windows": 3, "batch": 2} | beside
    monkeypatch.setattr(sys, "argv", ["", json.dumps(case)])
    benchmark_passes.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["share"] == pytest.approx(figures["GFLOP"] / figures["seconds"])
    assert figures["frames/s"] * figures["seconds"] == pytest.approx(2 * (17 if name == "long generate" else 9))
    assert (figures["× plain"] or 0) > 0 if case["beside_plain"] else figures["× plain"] is None
    assert len(figures["each window"]) == (3 if (mode, name) == ("eager", "long generate") else 0)
    assert 0 <= sum(figures["each window"]) < 1.5 * figures["seconds"]


@pytest.mark.parametrize("name, part", [("tokenizer step", "cvivit"), ("maskgit step", "maskgit")])
def test_every_step_computes_with_the_weights_of_the_step_before(name, part):
    parts, seen = Parts(TINY, CASE | {"precision": "bfloat16"}), []
    todo = PASSES[name](parts)
    model = getattr(parts, part)
    last = model.decoder.pixels_rest if part == "cvivit" else model.to_logits
    last.register_forward_hook(lambda layer, given, out: seen.append((given[0].detach(), layer.weight.clone(), out)))
    for _ in range(3):
        todo.call()
    for given, weight, out in seen:
        assert out.dtype == torch.bfloat16
        expected = torch.nn.functional.linear(given.bfloat16(), weight.bfloat16(), last.bias.bfloat16() * 0)
        assert (out - expected).detach().float().std(dim=tuple(range(out.ndim - 1))).max() < 0.02
    assert not torch.equal(seen[0][1], seen[2][1])


def test_the_plain_models_are_of_the_same_size():
    ours, plain = (Parts(benchmark_passes.SIZES["small"], CASE | {"mode": mode}) for mode in ("eager", "plain"))
    for part in ("cvivit", "maskgit"):
        counts = [sum(weight.numel() for weight in getattr(parts, part).parameters()) for parts in (ours, plain)]
        assert counts[1] == pytest.approx(counts[0], rel=0.05)


class Called(TorchDispatchMode):
    """Notes what is computed, and of what sizes."""

    def __torch_dispatch__(self, called, types, args=(), kwargs=None):
        self.calls = [*getattr(self, "calls", ()), (called, [each.shape for each in args if torch.is_tensor(each)])]
        return called(*args, **kwargs or {})


def test_a_pass_leaves_its_products_and_nothing_else():
    x, weight, bias = torch.randn(2, 3, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True), torch.randn(8)

    def step():
        heads = torch.nn.functional.linear(x, weight, bias).view(2, 1, 3, 8)
        seen = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        torch.nn.functional.gelu(seen).sum().backward()

    step()
    before = weight.clone()
    with Called() as whole:
        step()
    products = products_of(step)
    given = weight.grad.clone()
    with Called() as alone:
        products()
    kinds = ("addmm", "mm", "_scaled_dot_product_flash_attention_for_cpu")
    names = (*kinds, f"{kinds[-1]}_backward")
    assert {called.overloadpacket.__name__ for called, _ in alone.calls} == set(names)
    assert alone.calls == [each for each in whole.calls if each[0].overloadpacket.__name__ in names]
    assert len(alone.calls) < len(whole.calls)
    assert torch.equal(weight, before) and torch.equal(weight.grad, given)


def test_only_the_model_that_is_timed_is_built():
    parts = Parts(TINY, CASE)
    PASSES["maskgit step"](parts).call()
    assert "maskgit" in vars(parts) and "cvivit" not in vars(parts)


@pytest.mark.parametrize("schedule", ["cosine", "cubic", "linear"])
def test_a_timed_step_masks_as_many_as_are_masked_on_average(schedule):
    mean = mask_share(torch.rand(1_000_000), schedule).mean()
    torch.testing.assert_close(mask_share(mean_progress(schedule), schedule), mean, atol=2e-3, rtol=0)
