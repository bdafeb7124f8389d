"""Mean and variance of the first batches: whose they are, when they move, and that they stay float32."""

import copy

import pytest
import torch

from conftest import same_state, state
from phenaki_pytorch.core import statistics
from phenaki_pytorch.core.statistics import Statistics
from tiny_vqvae import tiny_vqvae, trained_vqvae


@pytest.mark.parametrize("channels", [None, 3])
def test_mean_and_variance_are_those_of_all_values_of_the_first_batches(channels, monkeypatch):
    monkeypatch.setattr(statistics, "BATCHES", 3)
    module = Statistics(channels)
    assert torch.equal(module().mean, torch.zeros(module.mean.shape)) and (module().variance == 1).all()
    batches = [100 + scale * torch.rand(size, 4, 3) for scale, size in [(1, 2), (0.1, 4), (5, 2)]]
    for number, batch in enumerate(batches, 1):
        moments = module(batch)
        values = torch.cat(batches[:number]).double()
        values = values.flatten() if channels is None else values.flatten(0, 1)
        torch.testing.assert_close(moments.mean.double(), values.mean(dim=0), rtol=1e-6, atol=0)
        torch.testing.assert_close(moments.variance.double(), values.var(dim=0, correction=0), rtol=1e-4, atol=0)
    measured = state(module)
    assert measured["batches"] == 3
    module(torch.rand(2, 4, 3))
    assert same_state(measured, state(module))


def test_only_training_measures_the_variance_of_the_pixels():
    model, video = trained_vqvae()
    before = state(model.measured_variance)
    model.encode(video), model.decode(model.encode(video)), model.features(video)
    model.eval()
    model(0.1 * video)
    assert same_state(before, state(model.measured_variance))
    model.train()(0.1 * video)
    assert not same_state(before, state(model.measured_variance))


def test_the_pixel_scale_is_1_over_the_variance():
    model, video = tiny_vqvae(axial_attention=False), torch.rand(2, 3, 4, 16, 16)
    assert model.pixel_scale() == 1
    model(video)
    torch.testing.assert_close(1 / model.pixel_scale(), video.var(correction=0))


def test_values_that_are_not_finite_do_not_count():
    module, data = Statistics(), torch.rand(2, 3, 4)
    module(data.index_fill(2, torch.tensor(1), float("nan")))
    assert module.batches == 0 and module().variance == 1
    torch.testing.assert_close(module(data).variance, data.var(correction=0))
    assert module(torch.full_like(data, float("inf"))) == module()


def test_one_channel_that_is_not_finite_leaves_the_others_as_they_were_too():
    module, data = Statistics(3), torch.rand(2, 5, 3)
    module(data)
    before = state(module)
    module(data.index_fill(2, torch.tensor(1), float("nan")))
    assert same_state(before, state(module))


def test_statistics_stay_float32_when_the_model_is_cast():
    model, video = trained_vqvae()
    before = state(model.measured_variance)
    assert same_state(before, state(model.bfloat16().measured_variance))
    assert model.losses(video.bfloat16()).total.isfinite()
    assert model.encode(video).shape == (2, 2, 4, 4)  # float32 videos too


def test_statistics_are_float32_under_another_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        module = Statistics(3)
        assert module(torch.rand(2, 3)).mean.dtype == torch.float32
        assert {value.dtype for value in state(module).values()} == {torch.int64, torch.float32}
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_measurement_compiles_without_a_graph_break():
    torch._dynamo.reset()
    module, data = Statistics(), torch.rand(2, 3, 4)
    twin = copy.deepcopy(module)
    moments = torch.compile(twin, backend="eager", fullgraph=True)(data)
    torch.testing.assert_close(moments, module(data))
    torch.testing.assert_close(state(twin), state(module))
    assert twin.batches == 1
