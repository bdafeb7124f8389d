"""The loss of a model that removes noise: both parts, masks, randomness, dtypes, and what is refused."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from conftest import seed
from phenaki_pytorch.diffusion.process import Diffusion, binned_log_likelihood, linear_betas

SHAPE = (2, 3, 2, 2, 4)


def make_latents(*, b=2, dtype=torch.float32):
    """N(0, 1), always the same."""
    return torch.randn(b, *SHAPE[1:], dtype=torch.float64, generator=seed(1)).to(dtype)


def at(k, b=2):
    """The diffusion step k for each of b samples."""
    return torch.full((b,), k)


def predict(noise=0.0, v=0.0, *, like=None):
    """A model that predicts these, whatever it reads; each a number, or a tensor like the latents."""

    def model(latents, time):
        return torch.cat([torch.zeros_like(latents if like is None else like) + each for each in (noise, v)], dim=-1)

    return model


# both parts


def test_a_model_as_initialised_has_these_losses():
    process, latents, noise = Diffusion(), torch.randn(1000, 2, 2, 2, 4), torch.randn(1000, 2, 2, 2, 4)

    def losses(time):
        return process.losses(predict(), latents, time=time, noise=noise)

    average = losses(torch.arange(1000))
    assert average.simple.item() == pytest.approx(1.0, abs=0.03)
    assert average.variational.item() == pytest.approx(0.016, abs=0.003)
    for k, expected in ((0, 1.99), (1, 0.63), (500, 0.0079)):
        assert losses(at(k, 1000)).variational.item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("k, bits", [(1, 0.17512), (2, 0.07462), (10, 0.00736)])
def test_with_the_exact_noise_the_divergence_is_that_of_the_variances(k, bits):
    latents, noise = make_latents(), torch.randn(SHAPE)

    def variational(v):
        return Diffusion().losses(predict(noise, v), latents, time=at(k), noise=noise).variational.item()

    assert variational(1.0) == pytest.approx(bits, abs=6e-6)
    assert abs(variational(-1.0)) <= 4e-7


def test_exact_noise_and_the_lowest_variance_have_no_divergence_at_any_step_but_the_first():
    process, latents, noise = Diffusion(), make_latents(), torch.randn(SHAPE)

    def largest(model):
        losses = [process.losses(model, latents, time=at(k), noise=noise) for k in range(1, 1000, 37)]
        return max(each.variational.item() for each in losses)

    assert largest(predict(noise, -1.0)) <= 4e-7
    assert largest(predict(noise, -0.9)) > 1e-5 and largest(predict(noise + 0.1, -1.0)) > 1e-5


@pytest.mark.parametrize("respaced", [False, True])
@pytest.mark.parametrize("index", [1, 2, 20, 49])
def test_the_divergence_is_that_of_the_two_distributions_of_the_step_before(respaced, index):
    process = Diffusion().respaced(50) if respaced else Diffusion()
    latents, noise = make_latents(dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)
    predicted, v = noise + 0.3 * torch.randn_like(noise), torch.rand_like(noise) * 2 - 1
    bar, before, beta = process.alphas_bar[index], process.alphas_bar[index - 1], process.betas[index]
    x = bar.sqrt() * latents + (1 - bar).sqrt() * noise

    def mean(x_0):  # equation 7 of DDPM
        return before.sqrt() * beta / (1 - bar) * x_0 + (1 - beta).sqrt() * (1 - before) / (1 - bar) * x

    lowest = beta * (1 - before) / (1 - bar)
    deviation = (0.5 * ((v + 1) / 2 * beta.log() + (1 - v) / 2 * lowest.log())).exp()
    truth = Normal(mean(latents), lowest.sqrt())
    guess = Normal(mean((x - (1 - bar).sqrt() * predicted) / bar.sqrt()), deviation)
    expected = kl_divergence(truth, guess).mean() / math.log(2)
    losses = process.losses(predict(predicted, v), latents, time=at(index), noise=noise)
    torch.testing.assert_close(losses.variational, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(losses.simple, (predicted - noise).square().mean())
    assert losses.total == losses.simple + losses.variational


def test_at_step_0_it_is_the_negative_log_likelihood_of_the_latents():
    process, latents = Diffusion(), make_latents(dtype=torch.float64)
    noise, v = torch.randn(SHAPE, dtype=torch.float64), 0.4
    predicted = noise + torch.randn_like(noise)
    bar = process.alphas_bar[0]
    x = bar.sqrt() * latents + (1 - bar).sqrt() * noise
    mean = (x - (1 - bar).sqrt() * predicted) / bar.sqrt()
    log_variance = 0.7 * process.betas[0].log() + 0.3 * process.posterior_variances[1].log()
    expected = -binned_log_likelihood(latents, latents - mean, log_variance.expand(SHAPE)).mean() / math.log(2)
    losses = process.losses(predict(predicted, v), latents, time=at(0), noise=noise)
    torch.testing.assert_close(losses.variational, expected, rtol=1e-9, atol=0)


def test_the_likelihood_is_that_of_the_normal_distribution_within_the_bin():
    mean, deviation = 0.2 * torch.randn(500, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    x = (mean + deviation * torch.randn(500, dtype=torch.float64)).clamp(-0.99, 0.99)
    normal = Normal(mean, deviation)
    expected = normal.cdf(x + 1 / 255) - normal.cdf(x - 1 / 255)
    likelihood = binned_log_likelihood(x, x - mean, 2 * deviation.log().expand(500)).exp()
    torch.testing.assert_close(likelihood, expected, atol=2e-4, rtol=0.01)
    assert expected.max() > 0.03


def test_the_bins_at_the_ends_are_open_and_no_likelihood_is_below_the_smallest():
    x = torch.tensor([-3.0, 3.0, 0.5, -3.0], dtype=torch.float64)
    mean = torch.tensor([-4.0, 4.0, -0.5, 3.0], dtype=torch.float64)
    likelihood = binned_log_likelihood(x, x - mean, 2 * torch.tensor(0.1).log().expand(4)).exp()
    torch.testing.assert_close(likelihood, torch.tensor([1.0, 1.0, 1e-12, 1e-12], dtype=torch.float64))


@pytest.mark.parametrize("k", [0, 1, 500])
def test_each_part_of_the_loss_teaches_one_half_of_the_output_alone(k):
    latents = make_latents()
    output = torch.randn(*SHAPE[:4], 8, requires_grad=True)
    losses = Diffusion().losses(lambda *_: output, latents, time=at(k))
    for name, own, other in (("simple", slice(4), slice(4, 8)), ("variational", slice(4, 8), slice(4))):
        [gradient] = torch.autograd.grad(getattr(losses, name), output, retain_graph=True)
        assert (gradient[..., other] == 0).all()
        assert (gradient[..., own] != 0).any() and gradient.isfinite().all()


def test_a_model_without_variance_has_the_simple_loss_alone():
    latents, noise = make_latents(), torch.randn(SHAPE)
    losses = Diffusion().losses(lambda x, _: torch.zeros_like(x), latents, noise=noise)
    torch.testing.assert_close(losses.total, noise.square().mean())
    assert losses.total == losses.simple and losses.variational == 0


# masks


def test_padding_is_not_counted_and_may_hold_anything():
    process, latents, noise = Diffusion(), make_latents(), torch.randn(SHAPE)
    mask = torch.ones(SHAPE[:4], dtype=torch.bool)
    mask[1, 1:] = False

    def loss(latents, mask):
        return process.losses(lambda x, _: torch.cat((x, x), -1), latents, time=at(5), noise=noise, mask=mask)

    def first(i, t):  # of one clip, cut to its real time steps
        part = slice(i, i + 1)
        output = process.losses(
            lambda x, _: torch.cat((x, x), -1), latents[part, :t], time=at(5, 1), noise=noise[part, :t]
        )
        return torch.stack(output)

    changed = latents.clone()
    changed[1, 1:] = torch.nan
    expected = (3 * first(0, 3) + first(1, 1)) / 4
    torch.testing.assert_close(torch.stack(loss(latents, mask)), expected)
    assert torch.equal(torch.stack(loss(changed, mask)), torch.stack(loss(latents, mask)))
    changed[1, 0] = 2.0
    assert loss(changed, mask).total != loss(latents, mask).total
    assert loss(latents, None).total != loss(latents, mask).total


def test_outputs_at_padding_get_no_gradient():
    mask = torch.ones(SHAPE[:4], dtype=torch.bool)
    mask[:, -1] = False
    output = torch.randn(*SHAPE[:4], 8, requires_grad=True)
    Diffusion().losses(lambda *_: output, make_latents(), mask=mask).total.backward()
    assert (output.grad[~mask] == 0).all() and (output.grad[mask] != 0).all()


# randomness


def test_times_are_uniform_over_all_steps_and_noise_is_normal():
    seen = []

    def model(latents, time):
        seen.append((latents, time))
        return latents

    Diffusion(betas=linear_betas(10)).losses(model, torch.zeros(20_000, 1, 1, 1, 1), generator=seed())
    [(noised, time)] = seen
    assert torch.bincount(time, minlength=10).float().sub(2000).abs().max() < 200
    deviation = (1 - Diffusion(betas=linear_betas(10)).alphas_bar[time]).sqrt()
    assert (noised.flatten() / deviation).std().item() == pytest.approx(1, abs=0.02)


def test_all_randomness_is_the_generators():
    latents, process = make_latents(b=16), Diffusion()

    def loss(number):
        return process.losses(predict(), latents, generator=seed(number)).total

    state = torch.get_rng_state()
    assert loss(0) == loss(0) and loss(0) != loss(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert process.losses(predict(), latents).total != process.losses(predict(), latents).total
    assert not torch.equal(torch.get_rng_state(), state)


# dtypes and compilation


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_losses_are_computed_in_at_least_float32(dtype):
    latents, noise = make_latents(dtype=dtype), torch.randn(SHAPE, generator=seed(2))
    for k in (0, 1, 999):
        losses = Diffusion().losses(predict(0.5, 0.5), latents, time=at(k), noise=noise)
        exact = Diffusion().losses(predict(0.5, 0.5), latents.double(), time=at(k), noise=noise.double())
        for got, expected in zip(losses, exact):
            assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            torch.testing.assert_close(got.double(), expected, rtol=2e-4, atol=1e-6)


def test_losses_are_on_the_device_of_the_latents():
    latents, mask = (torch.ones(SHAPE[: 4 + i], device="meta") for i in (1, 0))
    losses = Diffusion().losses(predict(), latents, mask=mask.bool())
    assert all(each.device.type == "meta" and each.shape == () for each in losses)


def test_losses_under_autocast_are_those_of_the_models_output():
    latents, layer = make_latents(), torch.nn.Linear(4, 8)
    options = {"time": torch.tensor([0, 700]), "noise": torch.randn(SHAPE)}
    expected = Diffusion().losses(lambda x, _: layer(x), latents, **options)
    with torch.autocast("cpu", torch.bfloat16):
        losses = Diffusion().losses(lambda x, _: layer(x), latents, **options)
    losses.total.backward()
    assert losses.total.dtype == torch.float32 and layer.weight.grad.isfinite().all()
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0.02)


def test_a_compiled_loss_is_the_same():
    torch._dynamo.reset()
    process, layer, graphs = Diffusion(), torch.nn.Linear(4, 8), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def loss(latents, mask):
        return process.losses(lambda x, _: layer(x), latents, mask=mask).total

    latents, mask = make_latents(), torch.rand(SHAPE[:4]) < 0.7
    torch.manual_seed(0)
    expected = loss(latents, mask)
    torch.manual_seed(0)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)(latents, mask)
    torch.testing.assert_close(compiled, expected)
    compiled.backward()
    assert graphs and layer.weight.grad.abs().sum() > 0


# errors


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"latents": torch.zeros(SHAPE[1:])}, ValueError, r"latents must be \(b, t, h, w, e\).*got \(3, 2, 2, 4\)"),
        ({"latents": torch.zeros(2, 0, 2, 2, 4)}, ValueError, r"none empty, got \(2, 0, 2, 2, 4\)"),
        ({"latents": torch.zeros(SHAPE).long()}, TypeError, "latents must be floating point, got torch.int64"),
        ({"latents": torch.full(SHAPE, torch.inf)}, ValueError, "latents must be finite, got inf"),
        ({"latents": None}, TypeError, "latents"),
        ({"noise": torch.zeros(2, 3, 2, 2, 1)}, ValueError, r"noise must be \(2, 3, 2, 2, 4\), got \(2, 3, 2, 2, 1\)"),
        ({"noise": torch.full(SHAPE, torch.nan)}, ValueError, "noise must be finite, got nan"),
        ({"time": at(3, b=3)}, ValueError, r"time must be int64 \(2,\), got torch.int64 \(3,\)"),
        ({"time": torch.rand(2)}, ValueError, r"time must be int64 \(2,\), got torch.float32"),
        ({"time": torch.tensor([0, 1000])}, ValueError, r"time must be from 0 to 999, got \[0, 1000\]"),
        ({"time": torch.tensor([-1, 5])}, ValueError, r"time must be from 0 to 999, got \[-1, 5\]"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, ValueError, r"mask must be bool \(2, 3, 2, 2\), got.*\(2, 3\)"),
        ({"mask": torch.zeros(2, 3, 2, 2, dtype=torch.bool)}, ValueError, "mask must be True somewhere"),
        (
            {"model": lambda x, _: x[..., :3]},
            ValueError,
            r"output must be \(2, 3, 2, 2, 8\) or \(2, 3, 2, 2, 4\), got \(2, 3, 2, 2, 3\)",
        ),
        ({"model": lambda x, _: (x, x)}, TypeError, "output"),
        ({"model": None}, TypeError, "model"),
    ],
)
def test_wrong_arguments_of_the_loss_are_refused(changes, kind, message):
    given = {"model": predict(), "latents": make_latents(), "time": at(3), "noise": torch.randn(SHAPE), **changes}
    with pytest.raises(kind, match=message):
        Diffusion().losses(**given)
