"""GPT: the paper's sizes and first weights, precision, compilation, randomness and modes."""

import pytest
import torch

from conftest import make_ids, modes, seed, tiny_gpt, tiny_maskgit
from gpt_models import ALL, GRID, flat, generated, given_for, gpt_for
from phenaki_pytorch import GPT, FrameEncoder, checkpoint_activations
from phenaki_pytorch.core.contracts import Prior


def test_the_initialisation_is_videogpts():
    model = GPT(num_tokens=32, grid=GRID, dim=256, depth=4, heads=4, code_dim=64, dim_frame_map=240, dim_condition=64)
    block = model.transformer.blocks[0]

    def near(weight, std):
        assert weight.std().item() == pytest.approx(std, rel=0.15)

    near(model.embed[1].weight, 0.02)
    near(model.start, 0.02)
    near(model.positions.tables.get_parameter("0"), 0.01)
    near(block.attention.to_qkv.weight, 256**-0.5)
    near(block.attention.to_out.weight, (256 * 4) ** -0.5)
    near(block.cross[0].attention.to_kv.weight, 240**-0.5)
    near(block.ff[2].weight, (1024 * 4) ** -0.5)
    for norm in (block.attention_norm, block.ff_norm, block.cross[0].norm, model.transformer.norm):
        near(norm.to_gain_bias.weight, 0.02)
    assert not model.to_logits.weight.any() and not block.ff[0].bias.any()


BAIR = {"num_tokens": 2048, "grid": (8, 16, 16), "dim": 384, "depth": 22, "heads": 6, "code_dim": 256}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, 39_903_872),
        ({"dim_frame_vector": 512}, 57_205_376),
        ({"dim_frame_map": 240}, 48_495_488),
        ({"dim_condition": 1}, 39_903_872),
        ({"dim_condition": 8}, 39_903_872 + 34_560 * 7),
    ],
)
def test_the_parameters_of_the_papers_bair_model(changes, expected):
    with torch.device("meta"):
        model = GPT(**BAIR, **changes)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_the_parameters_with_the_encoder_of_one_frame():
    with torch.device("meta"):
        encoder = FrameEncoder()
        models = GPT(**BAIR, dim_frame_vector=encoder.dim), encoder
    assert sum(parameter.numel() for model in models for parameter in model.parameters()) == 78_490_048


def test_under_bfloat16_autocast_the_loss_stays_near_and_caches_change_little():
    model, given, ids = gpt_for(*ALL), given_for(*ALL), make_ids(grid=GRID)
    exact = model(ids, **given)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(ids, **given)
        loss.backward()
        model.eval()
        ids, logits = generated(model, GRID, given)
        with torch.no_grad():
            whole = flat(model.logits(ids, **given))
    assert loss.dtype == torch.float32 and 0 < abs(loss - exact) < 0.1
    assert (logits - whole).abs().max() < 0.1
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.usefixtures("einops_as_operations")
def test_the_compiled_transformer_has_the_same_loss_and_gradients_without_a_graph_break():
    torch._dynamo.reset()
    model, given, ids = gpt_for(*ALL, depth=1), given_for(*ALL), make_ids(grid=GRID)

    def results():
        model.zero_grad()
        loss = model(ids, **given)
        loss.backward()
        return loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    eager = results()
    model.transformer.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(results(), eager)


@pytest.mark.usefixtures("einops_as_operations")
def test_the_compiled_transformer_generates_the_same_ids():
    torch._dynamo.reset()
    combination = (False, True, False, "steps")
    model, given = gpt_for(*combination, depth=1), given_for(*combination, t=1)
    eager = model.generate((1, 2, 2), **given, batch_size=2, generator=seed())
    model.transformer.compile(backend="eager")
    assert torch.equal(model.generate((1, 2, 2), **given, batch_size=2, generator=seed()), eager)


def test_checkpointed_activations_change_no_gradient():
    model, given, ids = gpt_for(*ALL), given_for(*ALL), make_ids(grid=GRID)
    calls = []
    model.transformer.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients():
        calls.clear()
        return torch.autograd.grad(model(ids, **given), [p for n, p in model.named_parameters() if n != "null_context"])

    plain = gradients()
    assert len(calls) == 1
    checkpoint_activations(model)
    torch.testing.assert_close(gradients(), plain)
    assert len(calls) == 2


def test_all_randomness_of_generation_comes_from_the_generator():
    model, given = gpt_for(*ALL), given_for(*ALL)
    before = torch.get_rng_state()
    one, again, other = (model.generate(**given, generator=seed(i)) for i in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_ids_are_drawn_from_the_softmax_of_the_logits():
    model = tiny_gpt(num_tokens=4, grid=(1, 1, 2)).eval()
    ids = model.generate(batch_size=20_000, generator=seed())
    joint = torch.zeros(4, 4).index_put_((ids[:, 0, 0, 0], ids[:, 0, 0, 1]), torch.ones(20_000), accumulate=True)
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(4)).reshape(16, 1, 1, 2)
    nats = model.losses(grid).nats.sum(dim=(1, 2, 3))
    torch.testing.assert_close(joint.flatten() / 20_000, (-nats).exp(), atol=0.015, rtol=0)


@pytest.mark.parametrize("t, prime, expected", [(3, None, 12), (6, 1, 20)])
def test_progress_counts_the_ids(t, prime, expected):
    seen = []

    def progress(ids):
        seen.append(len(ids))
        yield from ids
        seen.append("end")

    prime_ids = None if prime is None else make_ids(1, (prime, 2, 2))
    tiny_gpt(grid=GRID).generate((t, 2, 2), prime_ids=prime_ids, progress=progress)
    assert seen == [expected, "end"]


def test_modes_are_as_before_generation_also_after_an_error():
    model = tiny_gpt(grid=GRID, ff_dropout=0.1).train()
    model.transformer.blocks[0].eval()
    before = modes(model)

    def fail(ids):
        assert not any(part.training for part in model.modules())
        raise ZeroDivisionError

    model.generate()
    assert modes(model) == before
    with pytest.raises(ZeroDivisionError):
        model.generate(progress=fail)
    assert modes(model) == before


def test_weights_that_are_not_finite_are_refused_in_sampling():
    model = tiny_gpt(grid=GRID)
    model.to_logits.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="expected finite logits, got others"):
        model.generate()


def test_gpt_and_maskgit_are_priors():
    assert isinstance(tiny_gpt(), Prior) and isinstance(tiny_maskgit(), Prior)
