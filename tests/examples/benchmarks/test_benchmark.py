"""The benchmark: every pass runs, counts its work and prints its figures; no step uses weights of the step before."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import benchmark
from benchmarks import passes
from benchmarks.passes import PASSES, Parts, Size, mean_progress, measure
from benchmarks.products import products_of
from phenaki_pytorch.priors.masking import mask_share

TINY = Size(
    {"dim": 32, "image_size": 16, "patch_size": 8, "spatial_depth": 1, "temporal_depth": 1, "heads": 2}
    | {"dim_head": 16, "codebook_size": 32, "code_dim": 8},
    9,
    {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16},
    12,
)
CASE = {"size": "tiny", "precision": "float32", "mode": "eager", "device": "cpu", "repeat": 1}
SAMPLED = ("generate 18", "generate 24", "generate 48")  # one function, with different steps


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(passes.SIZES, "tiny", TINY)
    monkeypatch.setattr(passes, "peak", lambda precision, device: 1e9)
    monkeypatch.setattr(passes, "LONG_STEPS", 3)


@pytest.mark.parametrize(
    "mode, name",
    [
        *((mode, name) for mode in ("eager", "products") for name in PASSES if name not in SAMPLED[1:]),
        *(("plain", name) for name in PASSES if name not in SAMPLED[1:] and name != "long generate"),
    ],
)
def test_every_pass_is_measured(mode, name):
    beside = {"beside_plain": mode == "eager" and "long" not in name}
    figures = measure(CASE | {"mode": mode, "pass": name, "windows": 3, "batch": 2} | beside)
    assert figures["share"] == pytest.approx(figures["GFLOP"] / figures["seconds"])
    assert figures["frames/s"] * figures["seconds"] == pytest.approx(2 * (17 if name == "long generate" else 9))
    assert (figures["× plain"] or 0) > 0 if beside["beside_plain"] else figures["× plain"] is None
    assert len(figures["each window"]) == (3 if (mode, name) == ("eager", "long generate") else 0)
    assert 0 <= sum(figures["each window"]) < 1.5 * figures["seconds"]
    json.dumps(figures)


def test_more_steps_are_more_work():
    work = [PASSES[name](Parts(TINY, CASE)).work for name in SAMPLED]
    assert work[1] / work[0] == pytest.approx(24 / 18, rel=0.02) and work[2] / work[0] == pytest.approx(
        48 / 18, rel=0.03
    )


def test_each_case_is_measured_in_a_process_of_its_own(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)  # from any folder
    words = ["--sizes", "small", "--passes", "encode", "--precisions", "float32", "--repeat", "1"]
    benchmark.main([*words, "--csv", "table.csv"])
    [head, _, row] = capsys.readouterr().out.splitlines()
    assert head.startswith("| size | pass | precision |") and row.startswith("| small | encode | float32 | eager |")
    assert (tmp_path / "table.csv").read_text().count("\n") == 2
    monkeypatch.setattr(benchmark.sys, "executable", "false")
    assert benchmark.measured(CASE | {"pass": "encode"}) is None
    assert capsys.readouterr().err == "tiny, encode, float32, eager: exit 1\n"


def test_the_table_has_a_line_for_each_combination():
    words = ["--modes", "eager", "plain", "--passes", "encode", "long generate", "--windows", "1", "4"]
    cases = list(benchmark.cases(benchmark.parse_arguments(words)))
    lines = [(case["precision"], case["mode"], case["pass"], case["windows"]) for case in cases]
    assert lines == [
        line
        for precision in ("float32", "bfloat16")
        for line in (
            (precision, "eager", "encode", 1),
            (precision, "eager", "long generate", 1),
            (precision, "eager", "long generate", 4),
            (precision, "plain", "encode", 1),
        )
    ]
    assert [case["beside_plain"] for case in cases] == [True, False, False, False] * 2


@pytest.mark.parametrize("name, part", [("tokenizer step", "cvivit"), ("maskgit step", "maskgit")])
def test_every_step_uses_the_weights_that_the_step_before_has_updated(name, part):
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


def test_every_training_step_masks_equally_many_ids():
    parts, counts = Parts(TINY, CASE | {"batch": 2}), []
    todo = PASSES["maskgit step"](parts)
    parts.maskgit.to_logits.register_forward_hook(lambda layer, given, out: counts.append(len(out)))
    for _ in range(3):
        todo.call()
    assert len(set(counts)) == 1


def test_the_plain_models_have_about_as_many_parameters():
    ours, plain = (Parts(passes.SIZES["small"], CASE | {"mode": mode}) for mode in ("eager", "plain"))
    for part in ("cvivit", "maskgit"):
        counts = [sum(weight.numel() for weight in getattr(parts, part).parameters()) for parts in (ours, plain)]
        assert counts[1] == pytest.approx(counts[0], rel=0.05)


class Called(TorchDispatchMode):
    """Records the operations and the shapes of their tensors."""

    def __torch_dispatch__(self, called, types, args=(), kwargs=None):
        self.calls = [*getattr(self, "calls", ()), (called, [each.shape for each in args if torch.is_tensor(each)])]
        return called(*args, **kwargs or {})


def test_the_products_of_a_pass_are_repeated_and_nothing_else():
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


def test_only_the_measured_model_is_built():
    parts = Parts(TINY, CASE)
    PASSES["maskgit step"](parts).call()
    assert "maskgit" in vars(parts) and "cvivit" not in vars(parts)


@pytest.mark.parametrize("schedule", ["cosine", "cubic", "linear"])
def test_a_measured_step_masks_the_mean_share_of_its_schedule(schedule):
    mean = mask_share(torch.rand(1_000_000), schedule).mean()
    torch.testing.assert_close(mask_share(mean_progress(schedule), schedule), mean, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--cost", "cost.png", "--modes", "plain"], "--modes would have no effect with --cost"),
        (["--cost", "cost.png", "--csv", "a.csv", "--batch", "1"], "would have no effect with --cost"),
        (["--passes", "encode", "--windows", "4"], "--windows would have no effect without the pass"),
        (["--passes", "long generate", "--modes", "plain"], "expected another pass or mode"),
        (["--device", "tpu"], "--device"),
    ],
)
def test_arguments_without_effect_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.parse_arguments(words)
    said = capsys.readouterr().err
    assert caught.value.code == 2 and message in said


def test_a_row_is_written_as_soon_as_it_is_measured(monkeypatch, tmp_path):
    figures = dict.fromkeys(benchmark.COLUMNS[4:], 1.0)

    def measured(case):
        if case["pass"] == "decode":
            raise KeyboardInterrupt
        return case | figures

    monkeypatch.setattr(benchmark, "measured", measured)
    words = ["--passes", "encode", "decode", "--precisions", "float32", "--csv", str(tmp_path / "table.csv")]
    with pytest.raises(SystemExit, match="130"):
        benchmark.main(words)
    assert (tmp_path / "table.csv").read_text().count("\n") == 2


def test_a_table_without_a_row_is_an_error(monkeypatch):
    monkeypatch.setattr(benchmark, "measured", lambda case: None)
    with pytest.raises(SystemExit, match=r"benchmark\.py: no case could be measured"):
        benchmark.main(["--passes", "encode"])
