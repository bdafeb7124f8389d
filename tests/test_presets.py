"""The papers' numbers of parameters and grids, counted on the meta device, where nothing is allocated."""

import pytest
import torch

from phenaki_pytorch import presets


def build(preset, *args):
    with torch.device("meta"):
        return preset(*args)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def codebook(model):
    """The codes, which are a buffer: they move by averages."""
    return model.quantizer.quantizer.codebook.numel()


@pytest.mark.parametrize(
    "preset, millions",
    [(presets.cvivit, 51.6), (presets.cvivit_bair, 89.0), (presets.cvivit_kinetics600, 101.6)],
)
def test_parameters_of_the_tokenizers(preset, millions):
    model = build(preset)
    assert codebook(model) == 8192 * 32
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.02)
    assert (parameters(model) + codebook(model)) / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_baseline_of_single_frames_is_about_as_large():
    assert parameters(build(presets.vit_per_frame)) / 1e6 == pytest.approx(50, rel=0.05)


@pytest.mark.parametrize(
    "preset, blocks",
    [(presets.maskgit_1_8b, 1.812e9), (presets.maskgit_0_9b, 0.912e9), (presets.maskgit_prediction, 169.9e6)],
)
def test_parameters_of_the_blocks(preset, blocks):
    assert parameters(build(preset).transformer.blocks) == pytest.approx(blocks, rel=0.01)


@pytest.mark.parametrize("preset, total", [(presets.maskgit_1_8b, 1.849e9), (presets.maskgit_0_9b, 0.940e9)])
def test_parameters_of_the_whole(preset, total):
    assert parameters(build(preset)) == pytest.approx(total, rel=0.01)


def test_prediction_is_unconditional_with_dropout():
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


def test_the_tokenizers_and_their_models_fit():
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
