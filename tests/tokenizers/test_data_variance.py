"""The variance of the data, measured over the first batches: whose it is, when it moves, and that it stays float32."""

import copy

import torch

from conftest import same_state, state
from phenaki_pytorch.tokenizers import data_variance
from tiny_vqvae import tiny_vqvae, trained_vqvae


def test_the_measured_variance_is_that_of_all_pixels_of_the_first_batches(monkeypatch):
    monkeypatch.setattr(data_variance, "BATCHES", 3)
    model = tiny_vqvae(axial_attention=False)
    assert model.pixel_scale() == 1
    batches = [
        scale * torch.rand(size, 3, frames, 16, 16) for scale, size, frames in [(1, 2, 4), (0.1, 4, 2), (0.5, 2, 6)]
    ]
    for number, batch in enumerate(batches, 1):
        model(batch)
        pixels = torch.cat([each.flatten() for each in batches[:number]])
        torch.testing.assert_close(1 / model.pixel_scale(), pixels.var(correction=0))
    measured = state(model.measured_variance)
    assert measured["batches"] == 3
    model(torch.rand(2, 3, 4, 16, 16))
    assert same_state(measured, state(model.measured_variance))


def test_only_training_measures_the_variance():
    model, video = trained_vqvae()
    before = state(model.measured_variance)
    model.encode(video), model.decode(model.encode(video)), model.features(video)
    model.eval()
    model(0.1 * video)
    assert same_state(before, state(model.measured_variance))
    model.train()(0.1 * video)
    assert not same_state(before, state(model.measured_variance))


def test_pixels_that_are_not_finite_do_not_count_for_the_variance():
    module, video = data_variance.DataVariance(), torch.rand(2, 3, 4, 4, 4)
    module(video.index_fill(2, torch.tensor(1), float("nan")))
    assert module.batches == 0 and module() == 1
    torch.testing.assert_close(module(video), 1 / video.var(correction=0))
    assert module(torch.full_like(video, float("inf"))) == module()
    assert data_variance.DataVariance()(torch.ones_like(video)).isfinite()


def test_the_measured_variance_stays_float32_when_the_model_is_cast():
    model, video = trained_vqvae()
    before = state(model.measured_variance)
    assert same_state(before, state(model.bfloat16().measured_variance))
    assert model.losses(video.bfloat16()).total.isfinite()
    assert model.encode(video).shape == (2, 2, 4, 4)  # float32 videos too


def test_the_measured_variance_is_float32_under_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        module, video = data_variance.DataVariance(), torch.rand(2, 3, 4, 4, 4)
        assert module(video).dtype == torch.float32
        assert {value.dtype for value in state(module).values()} == {torch.int64, torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_measurement_compiles_without_a_graph_break():
    torch._dynamo.reset()
    module, video = data_variance.DataVariance(), torch.rand(2, 3, 4, 16, 16)
    twin = copy.deepcopy(module)
    scale = torch.compile(twin, backend="eager", fullgraph=True)(video)
    torch.testing.assert_close(scale, module(video))
    torch.testing.assert_close(state(twin), state(module))
    assert twin.batches == 1
