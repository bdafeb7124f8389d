"""LatteTransformer: every combination of its options, initialisation, positions, sizes, precision."""

import itertools
import math

import pytest
import torch
from torch import nn

from conftest import same_state, tiny_latte_transformer, train
from latte_models import (
    BOTH,
    PAIRS,
    TIME,
    every_combination,
    every_conditioning,
    every_pair,
    every_variant,
    given_for,
    make_latents,
)
from phenaki_pytorch import checkpoint_activations
from phenaki_pytorch.diffusion.latte_transformer import LatteTransformer

# every pair of options


def test_the_rows_hold_every_pair_of_options():
    for one, other in itertools.combinations(range(5), 2):
        pairs = {(str(row[one]), str(row[other])) for row in PAIRS}
        values = [{str(row[column]) for row in PAIRS} for column in (one, other)]
        assert pairs == set(itertools.product(*values))
    assert [len({str(row[column]) for row in PAIRS}) for column in range(5)] == [4, 2, 2, 2, 4]


@every_pair
def test_every_pair_of_options_computes_learns_and_is_saved(
    variant, patches, conditioning, time_positions, conditions, tmp_path
):
    options = {"variant": variant, "patches": patches, "conditioning": conditioning, "time_positions": time_positions}
    model, latents, given = tiny_latte_transformer(**options, **conditions), make_latents(), given_for(conditions)
    before = model(latents, TIME, **given)
    assert before.shape == (2, 4, 4, 4, 8) and before.isfinite().all()
    before.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    unused = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert set(unused) <= {"conditioning.null_context"}  # where the draw has dropped no text
    model.save_pretrained(tmp_path)
    loaded = LatteTransformer.from_pretrained(tmp_path)
    assert loaded.config == model.config and same_state(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded.eval()(latents, TIME, **given), model.eval()(latents, TIME, **given))


@pytest.mark.parametrize("patches", ["uniform", "compressed"])
def test_without_a_learned_variance_there_are_as_many_outputs_as_inputs(patches):
    model = tiny_latte_transformer(learned_variance=False, patches=patches)
    assert model(make_latents(), TIME).shape == (2, 4, 4, 4, 4)


def test_it_learns_to_tell_noise_from_latents():
    model, latents = tiny_latte_transformer(started=False, learned_variance=False, num_classes=2), make_latents()
    noise, classes = torch.randn_like(latents), torch.tensor([0, 1])

    def loss():
        return (model(latents + noise, TIME, classes) - noise).square().mean()

    losses = train(model, loss, 60, lr=1e-2)
    assert losses[0] == pytest.approx(1, abs=0.2) and losses[-1] < 0.5 * losses[0]


# initialisation


@every_pair
def test_before_training_the_output_is_0_and_with_adaln_the_blocks_are_the_identity(
    variant, patches, conditioning, time_positions, conditions
):
    options = {"variant": variant, "patches": patches, "conditioning": conditioning, "time_positions": time_positions}
    model, latents = tiny_latte_transformer(started=False, **options, **conditions).eval(), make_latents()
    streams = []
    for part in (model.patches, model.space_positions, model.final.norm):
        part.register_forward_hook(lambda _, args, out: streams.append((args[0], out)))
    out = model(latents, TIME, **given_for(conditions))
    assert not out.any()
    if conditioning == "adaln":
        (_, embedded), (_, place), (last, _) = streams
        expected = embedded + place
        if time_positions == "absolute":
            expected = expected + model.time_positions((expected.shape[1], 1, 1), latents.device)[:, None]
        torch.testing.assert_close(last, expected)


@every_variant
def test_the_initialisation_is_lattes(variant):
    sizes = {"code_dim": 4, "grid": (4, 4, 4), "dim": 256, "depth": 2, "heads": 4, "variant": variant}
    model = LatteTransformer(**sizes, num_classes=50)
    text = LatteTransformer(**sizes, dim_context=64, patches="compressed")
    for name, layer in [*model.named_modules(), *text.named_modules()]:
        if not isinstance(layer, nn.Linear):
            continue
        assert not layer.bias.any()
        if "modulation" in name or name in ("final.linear",) or "text_attention.attention.to_out" in name:
            assert not layer.weight.any(), name
        elif name.startswith("conditioning.time"):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            bound = math.sqrt(6 / sum(layer.weight.shape))
            assert 0.95 * bound < layer.weight.abs().max() <= bound, name
    assert model.conditioning.classes.weight.shape == (51, 256)
    assert model.conditioning.classes.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert text.conditioning.null_context.std().item() == pytest.approx(1 / 8, rel=0.3)


@every_variant
def test_noise_is_predicted_by_0_at_first_with_an_error_of_1(variant):
    latents = torch.randn(8, 4, 8, 8, 4)
    out = tiny_latte_transformer(started=False, variant=variant)(latents, torch.arange(8))
    assert (out[..., :4] - torch.randn_like(latents)).square().mean().item() == pytest.approx(1, abs=0.05)


# space and time


def without_temporal_attention(model):
    """The same model, whose temporal attention adds 0."""
    for name, part in model.named_modules():
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        if name.endswith("temporal_attention") or (kind == "TemporalBlock" and name.endswith(".attention")):
            nn.init.zeros_(part.to_out.weight), nn.init.zeros_(part.to_out.bias)
    return model


@every_variant
@every_conditioning
def test_without_temporal_attention_a_clip_is_its_frames_alone(variant, conditioning):
    model = tiny_latte_transformer(variant=variant, conditioning=conditioning, time_positions="rotary").eval()
    latents = make_latents()

    def alone():
        return torch.cat([model(latents[:, i : i + 1], TIME) for i in range(4)], dim=1)

    assert (model(latents, TIME) - alone()).abs().max() > 1e-2
    without_temporal_attention(model)
    torch.testing.assert_close(model(latents, TIME), alone(), atol=1e-5, rtol=1e-5)


@every_variant
@every_conditioning
def test_permuted_frames_give_permuted_outputs_only_without_positions_of_time(variant, conditioning):
    latents, order = make_latents(), torch.tensor([2, 0, 3, 1])
    for time_positions in ("absolute", "rotary"):
        options = {"variant": variant, "conditioning": conditioning, "time_positions": time_positions}
        model = tiny_latte_transformer(**options).eval()
        assert (model(latents[:, order], TIME) - model(latents, TIME)[:, order]).abs().max() > 1e-2
    model.time_positions = lambda grid, device: torch.zeros(grid[0], 16)
    torch.testing.assert_close(model(latents[:, order], TIME), model(latents, TIME)[:, order], atol=1e-5, rtol=1e-5)


def test_positions_are_those_of_dit_and_latte():
    model = tiny_latte_transformer(dim=64, heads=4)
    place, moment = (
        model.space_positions((1, 3, 5), torch.device("cpu")),
        model.time_positions((4, 1, 1), torch.device("cpu")),
    )
    assert moment[1, 0].item() == pytest.approx(0.8415, abs=1e-4)
    assert moment[1, 32].item() == pytest.approx(0.5403, abs=1e-4)
    powers = 10_000 ** -(torch.arange(16, dtype=torch.float64) / 16)
    for row, column in itertools.product(range(3), range(5)):
        angles = [coordinate * powers for coordinate in (column, row)]
        expected = torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())]).float()
        torch.testing.assert_close(place[row * 5 + column], expected)


def test_positions_are_those_of_diffusers():
    from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid, get_2d_sincos_pos_embed

    model, device = tiny_latte_transformer(dim=64, heads=4), torch.device("cpu")
    theirs = get_2d_sincos_pos_embed(64, 5, base_size=5, output_type="pt")
    torch.testing.assert_close(model.space_positions((1, 5, 5), device), theirs.float())
    theirs = get_1d_sincos_pos_embed_from_grid(64, torch.arange(7)[:, None], output_type="pt")
    torch.testing.assert_close(model.time_positions((7, 1, 1), device), theirs.float())


def test_a_single_time_step_has_no_position_of_time():
    absolute, rotary = (tiny_latte_transformer(time_positions=each).eval() for each in ("absolute", "rotary"))
    rotary.load_state_dict(absolute.state_dict())
    latents = make_latents()
    torch.testing.assert_close(absolute(latents[:, :1], TIME), rotary(latents[:, :1], TIME))
    assert (absolute(latents, TIME) - rotary(latents, TIME)).abs().max() > 1e-2


@every_combination
def test_videos_may_be_longer_and_larger_than_the_grid(variant, patches, conditioning, time_positions):
    options = {"variant": variant, "patches": patches, "conditioning": conditioning, "time_positions": time_positions}
    model = tiny_latte_transformer(**options).eval()
    for t, h, w in ((2, 4, 4), (10, 4, 4), (4, 2, 10)):
        assert model(make_latents(t=t, h=h, w=w), TIME).shape == (2, t, h, w, 8)


def test_each_place_has_its_own_output():
    model, latents = without_temporal_attention(tiny_latte_transformer()).eval(), make_latents(h=4, w=6)
    for part in model.modules():
        if type(part).__name__ == "SpatialBlock":
            nn.init.zeros_(part.attention.to_out.weight)
    other = latents.clone()
    other[0, 1, 2, 5, 3] += 1  # in the patch of rows 2 and 3, columns 4 and 5
    changed = (model(other, TIME) - model(latents, TIME)).abs().amax(dim=-1) > 0
    expected = torch.zeros(2, 4, 4, 6).bool()
    expected[0, 1, 2:, 4:] = True
    assert torch.equal(changed, expected)


# precision, compilation, memory


@every_variant
@every_conditioning
def test_under_bfloat16_autocast_the_output_stays_near(variant, conditioning):
    model = tiny_latte_transformer(variant=variant, conditioning=conditioning, time_positions="rotary", **BOTH).eval()
    latents, given = make_latents(t=6), given_for(BOTH, images=2) | {"dropped": torch.tensor([True, False])}
    exact = model(latents, TIME, **given)
    with torch.autocast("cpu", torch.bfloat16):
        near = model(latents, TIME, **given)
        near.float().square().mean().backward()
        with torch.no_grad():
            frozen = model(latents, TIME, **given)
    for each in (near, frozen):
        assert 0 < (each - exact).abs().mean() < 0.1 * exact.std()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.bfloat16()(latents.bfloat16(), TIME, **given).dtype == torch.bfloat16


# Variant 2 has the blocks of variant 1. One of them shows the backward graph: to trace it takes as long again.
@pytest.mark.usefixtures("einops_as_operations")
@pytest.mark.parametrize("variant, depth, backend", [(1, 2, "aot_eager"), (3, 1, "eager"), (4, 1, "eager")])
def test_the_compiled_blocks_compute_the_same_in_one_graph(variant, depth, backend):
    torch._dynamo.reset()
    model = tiny_latte_transformer(variant=variant, depth=depth, time_positions="rotary", **BOTH).eval()
    latents, given = make_latents(t=6), given_for(BOTH, images=2)
    expected = model(latents, TIME, **given)
    for block in model.transformer.blocks:
        block.compile(backend=backend, fullgraph=True)
    got = model(latents, TIME, **given)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    got.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.transformer.parameters())


@every_variant
def test_checkpointed_activations_change_no_gradient(variant):
    model, latents = tiny_latte_transformer(variant=variant, **BOTH).eval(), make_latents()
    given = given_for(BOTH) | {"dropped": torch.tensor([True, False])}

    def gradients():
        model.zero_grad()
        model(latents, TIME, **given).square().mean().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain, calls = gradients(), []
    for block in model.transformer.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpoint_activations(model)
    torch.testing.assert_close(gradients(), plain)
    assert len(calls) == 2 * 2  # each of two blocks, and again in the backward pass


def test_placement_is_where_the_weights_are():
    model = tiny_latte_transformer()
    assert model.placement().dtype == torch.float32 and model.bfloat16().placement().dtype == torch.bfloat16
    assert model.to("meta").placement().device.type == "meta"
    assert "_placement" not in model.state_dict()
