"""The papers' numbers of parameters and grids, counted on the meta device, which allocates no memory."""

import re
from functools import cache

import pytest
import torch
from torch import nn

from phenaki_pytorch import FrameEncoder, VideoGPT, presets
from phenaki_pytorch.diffusion.blocks import FinalLayer, SpatialBlock, TemporalBlock
from phenaki_pytorch.diffusion.latte_transformer import LatteTransformer

NAMES = [
    "cvivit",
    "cvivit_bair",
    "cvivit_kinetics600",
    "vit_per_frame",
    "maskgit_1_8b",
    "maskgit_0_9b",
    "maskgit_prediction",
    "vqvae_bair",
    "gpt_bair",
    "gpt_bair_frames",
    "videogpt_vizdoom",
    "vqvae_2x2x2",
    "gpt_2x2x2",
    "vqvae_4x2x2",
    "gpt_4x2x2",
    "vqgan_laion",
    "discriminator_laion",
    "latte_s",
    "latte_b",
    "latte_l",
    "latte_xl",
    "latte_text",
]


@cache
def build(preset, *args, **options):
    """Without memory, and once for all tests; ViZDoom's needs a tokenizer, which has no values here, trained or not."""
    with torch.device("meta"):
        if preset is presets.videogpt_vizdoom:
            args = (presets.vqvae_bair(),)
        return preset(*args, **options)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def codebook(model):
    """The number of values of the codebook, which is a buffer, because its codes are moving averages."""
    return model.quantizer.quantizer.codebook.numel()


def test_the_docstring_lists_every_preset_with_its_number_of_parameters():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\d,]+) \|$", presets.__doc__, flags=re.MULTILINE)
    listed = {name: int(count.replace(",", "")) for name, count in rows}
    assert listed == {name: parameters(build(getattr(presets, name))) for name in NAMES}


def test_the_docstring_gives_the_parameters_of_the_transformers():
    models = [build(getattr(presets, name)) for name in NAMES if name.startswith("maskgit")]
    counts = [f"{parameters(model.transformer):,}" for model in models]
    assert f"{counts[0]}, {counts[1]} and {counts[2]} parameters" in " ".join(presets.__doc__.split())


@pytest.mark.parametrize(
    "preset, millions",
    [(presets.cvivit, 51.6), (presets.cvivit_bair, 89.0), (presets.cvivit_kinetics600, 101.6)],
)
def test_the_papers_parameters_of_the_tokenizers(preset, millions):
    model = build(preset)
    assert codebook(model) == 8192 * 32
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.02)
    assert (parameters(model) + codebook(model)) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_per_frame_baseline_is_about_as_large():
    assert parameters(build(presets.vit_per_frame)) / 1e6 == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize(
    "preset, blocks",
    [(presets.maskgit_1_8b, 1.812e9), (presets.maskgit_0_9b, 0.912e9), (presets.maskgit_prediction, 169.9e6)],
)
def test_the_papers_parameters_of_the_blocks(preset, blocks):
    assert parameters(build(preset).transformer.blocks) == pytest.approx(blocks, rel=0.01)


@pytest.mark.parametrize("preset, total", [(presets.maskgit_1_8b, 1.849e9), (presets.maskgit_0_9b, 0.940e9)])
def test_the_papers_parameters_of_the_maskgits(preset, total):
    assert parameters(build(preset)) == pytest.approx(total, rel=0.01)


def test_the_prediction_model_is_unconditional_with_dropout():
    model = build(presets.maskgit_prediction)
    assert model.dim_context is None
    assert model.config["attn_dropout"] == model.config["ff_dropout"] == 0.1


@pytest.mark.parametrize(
    "preset, num_frames, grid",
    [
        (presets.cvivit, 11, (6, 16, 16)),
        (presets.cvivit, 1, (1, 16, 16)),
        (presets.cvivit_bair, 17, (9, 16, 16)),
        (presets.cvivit_kinetics600, 17, (9, 16, 16)),
        (presets.vit_per_frame, 10, (10, 16, 16)),
        (presets.vqvae_bair, 16, (8, 16, 16)),
        (presets.vqvae_2x2x2, 16, (8, 32, 32)),
        (presets.vqvae_4x2x2, 16, (4, 32, 32)),
        (presets.vqgan_laion, 11, (6, 16, 16)),
        (presets.vqgan_laion, 1, (1, 16, 16)),
    ],
)
def test_grids(preset, num_frames, grid):
    assert build(preset).grid(num_frames) == grid


@pytest.mark.parametrize("preset", [presets.cvivit, presets.cvivit_bair, presets.cvivit_kinetics600])
def test_the_temporal_window_is_the_length_of_the_papers_clips(preset):
    model = build(preset)
    assert model.temporal_window == model.grid(11 if preset is presets.cvivit else 17)[0]


def test_tokenizers_and_maskgits_fit_each_other():
    for cvivit, num_frames, maskgit in (
        (presets.cvivit, 11, presets.maskgit_1_8b),
        (presets.cvivit, 11, presets.maskgit_0_9b),
        (presets.cvivit_bair, 17, presets.maskgit_prediction),
        (presets.cvivit_kinetics600, 17, presets.maskgit_prediction),
        (presets.vqvae_bair, 16, presets.gpt_bair),
        (presets.vqvae_bair, 16, presets.gpt_bair_frames),
        (presets.vqvae_2x2x2, 16, presets.gpt_2x2x2),
        (presets.vqvae_4x2x2, 16, presets.gpt_4x2x2),
    ):
        cvivit, maskgit = build(cvivit), build(maskgit)
        assert cvivit.grid(num_frames) == maskgit.grid
        assert cvivit.codebook_size == maskgit.num_tokens
        if cvivit.causal is False:
            assert cvivit.code_dim == maskgit.code_dim
    assert build(presets.maskgit_0_9b, (2, 3, 4)).grid == (2, 3, 4)


def test_videogpt_fits_its_frame_encoder_and_the_papers_numbers():
    tokenizer, gpt, encoder = (build(each) for each in (presets.vqvae_bair, presets.gpt_bair_frames, FrameEncoder))
    with torch.device("meta"):
        model = VideoGPT(tokenizer=tokenizer, gpt=gpt, frame_encoder=encoder)
    assert parameters(model.gpt) + parameters(model.frame_encoder) == 78_490_048
    assert [parameters(build(preset)) for preset in (presets.vqvae_bair, presets.gpt_bair)] == [21_144_819, 39_903_872]


def test_vizdooms_actions_widen_the_condition_of_the_norms():
    model = build(presets.videogpt_vizdoom, dim_action=3)
    assert model.labels.width == 2 * 3
    assert parameters(model.gpt) == 39_903_872 + 34_560 * (2 * 3 - 1)
    assert build(presets.videogpt_vizdoom).labels.width is None


def test_videogpts_dropouts_are_those_of_its_code():
    rates = [
        (build(each).config["ff_dropout"], build(each).config["attn_dropout"])
        for each in (presets.gpt_bair, presets.gpt_2x2x2, presets.gpt_4x2x2)
    ]
    assert rates == [(0.2, 0.0), (0.2, 0.0), (0.2, 0.3)]


def test_lattes_numbers_of_parameters():
    def count(preset, **options):
        return parameters(build(preset, **options))

    sizes = (presets.latte_s, presets.latte_b, presets.latte_l, presets.latte_xl)
    assert [count(size) for size in sizes] == [32_480_672, 129_547_040, 456_815_648, 673_681_568]
    assert [count(size, variant=2) for size in sizes] == [count(size) for size in sizes]
    assert count(presets.latte_xl, num_classes=101) == 673_799_072
    assert [count(presets.latte_xl, variant=variant) for variant in (3, 4)] == [676_355_360] * 2
    for size in sizes:
        for variant in (3, 4):
            assert count(size, variant=variant) == pytest.approx(count(size), rel=0.02)


def test_lattes_text_model_has_the_published_parameters_and_a_null_context():
    model = build(presets.latte_text)
    assert parameters(model) - model.conditioning.null_context.numel() == 1_057_246_880
    assert f"{1_057_246_880:,} parameters" in presets.__doc__


def latte_of_table_3(variant):
    """The paper's variant 4 has patches of 4×4: a quarter of the tokens."""
    model = build(presets.latte_xl, variant=variant)
    if variant != 4:
        assert model.patch_size == 2
        return model
    with torch.device("meta"):
        return LatteTransformer(**model.config | {"patch_size": 4})


def count_macs(model):
    """Multiplications and additions of 3 clips, as the paper counts them: without those of attention weights, 2 for
    each normalised value, and with the condition repeated for every time step (in spatial attention and the last layer)
    and every place (in temporal attention)."""
    h, w = (side // model.patch_size for side in model.grid[1:])
    repeats = {SpatialBlock: 16, FinalLayer: 16, TemporalBlock: h * w}
    macs, hooks = [], []
    for owner in model.modules():
        for name, part in owner.named_children():
            if name == "to_modulation":
                times = repeats.get(type(owner), 16 + h * w)
                macs.append(times * 3 * part.linear.weight.numel())
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and "modulation" not in name:
            hooks.append(part.register_forward_hook(lambda layer, _, out: macs.append(out.numel() * layer.in_features)))
        elif isinstance(part, nn.LayerNorm):
            hooks.append(part.register_forward_hook(lambda _, __, out: macs.append(2 * out.numel())))
    with torch.device("meta"):
        model(torch.empty(3, *model.grid, 4), torch.empty(3))
    for hook in hooks:
        hook.remove()
    return sum(macs)


@pytest.mark.parametrize(
    "variant, millions, billions",
    [(1, 673.68, 5572.69), (2, 673.68, 5572.69), (3, 676.33, 6153.15), (4, 676.44, 1545.15)],
)
def test_lattes_table_of_parameters_and_operations(variant, millions, billions):
    model = latte_of_table_3(variant)
    counts = torch.tensor([parameters(model), count_macs(model)], dtype=torch.float64)
    if variant > 2:  # the table leaves out the patch embedding of these
        tokens = 3 * 16 * (32 // model.patch_size) ** 2
        counts -= torch.tensor([parameters(model.patches), tokens * model.patches.weight.numel()], dtype=torch.float64)
    truncated = (counts / torch.tensor([1e4, 1e7])).floor() / 100
    assert truncated.tolist() == [millions, billions]


def test_lattes_operations_of_a_clip():
    counts = [count_macs(build(size)) / 3e9 for size in (presets.latte_s, presets.latte_b, presets.latte_l)]
    assert [round(count, 2) for count in counts] == [88.58, 354.00, 1258.13]
    assert round(count_macs(build(presets.latte_xl)) / 3e9, 2) == 1857.57
