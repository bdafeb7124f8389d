"""The papers' numbers of parameters and grids, counted on the meta device, which allocates no memory."""

import re

import pytest
import torch

from phenaki_pytorch import presets

NAMES = [
    "cvivit",
    "cvivit_bair",
    "cvivit_kinetics600",
    "vit_per_frame",
    "maskgit_1_8b",
    "maskgit_0_9b",
    "maskgit_prediction",
]


def build(preset, *args):
    with torch.device("meta"):
        return preset(*args)


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
    ):
        cvivit, maskgit = build(cvivit), build(maskgit)
        assert cvivit.grid(num_frames) == maskgit.grid
        assert cvivit.codebook_size == maskgit.num_tokens
    assert build(presets.maskgit_0_9b, (2, 3, 4)).grid == (2, 3, 4)
