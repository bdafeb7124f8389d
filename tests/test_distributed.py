"""Two processes over gloo: tokenizers, discriminator and systems train as in one process with the joint batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from vector_quantize_pytorch import VectorQuantize

import conftest
from conftest import (
    seed,
    tiny_cvivit,
    tiny_discriminator,
    tiny_frame_map_encoder,
    tiny_latte,
    tiny_videogpt,
    tiny_vqgan,
)
from phenaki_pytorch import LossWeights
from phenaki_pytorch.diffusion.process import Diffusion
from tiny_vqvae import tiny_vqvae

# Tiny batches have fewer tokens than a codebook needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens a step are few:UserWarning")

STEPS = 2  # with the R1 penalty, then without

# Each case is a quantizer, built before or after the process group is initialised.
QUANTIZERS = {
    "vq": {},
    "vq with dead codes": {"quantizer_kwargs": {"threshold_ema_dead_code": 2}},
    "a given module": {"quantizer": "given"},
    # Quantizers compute in float32: a small weight keeps the rounding of LFQ's entropies below the tolerance.
    "lfq": {"quantizer": "lfq", "quantizer_kwargs": {"entropy_loss_weight": 0.01}},
    "ema": {"quantizer": "ema", "codebook_size": 12},  # of which some are dead at once, for 48 tokens a step
    "vqvae": {},
}
# Tokenizers that are not causal. Codes that start or restart are drawn otherwise in two processes than in one, and the
# batch norm of VQGAN is that of each process.
FRAME_BY_FRAME = {"strides": (1, 8, 8), "video_shape": (5, 16, 16)}
OTHERS = {
    "VQVAE without restarts": lambda: conftest.tiny_vqvae(
        **FRAME_BY_FRAME, quantizer_kwargs={"threshold_ema_dead_code": 0}
    ),
    "VQVAE with restarts": lambda: conftest.tiny_vqvae(**FRAME_BY_FRAME),
    "VQVAE from the start": lambda: conftest.tiny_vqvae(**FRAME_BY_FRAME, trained=False),
    "VQGAN": lambda: tiny_vqgan(trained=False),
}
BEFORE = ("vq", "vq with dead codes", "a given module", "ema", *OTHERS)
AFTER = ("vq", "vq with dead codes", "lfq", "ema", "vqvae", *OTHERS)
SAME_CODES = [(when, name) for when in ("before", "after") for name in ("vq with dead codes", "ema", *OTHERS)]
SYSTEMS = ("VideoGPT", "Latte")
EQUAL_TO_ONE = [("before", "vq"), ("after", "vq"), ("before", "a given module"), ("after", "lfq"), ("after", "vqvae")]
EQUAL_TO_ONE += [("before", "VQVAE without restarts")]


def clips():
    return torch.rand(4, 3, 5, 16, 16, generator=seed(1), dtype=torch.float64)


class AllTerms(torch.nn.Module):
    """Returns all terms of the tokenizer's loss, because DDP hooks into `forward`."""

    def __init__(self, cvivit):
        super().__init__()
        self.cvivit = cvivit

    def forward(self, video, discriminator):
        return self.cvivit.losses(video, discriminator=discriminator, weights=LossWeights(adversarial=0.5))


def build(name):
    torch.manual_seed(0)
    if name in OTHERS:
        return AllTerms(OTHERS[name]()).double(), tiny_discriminator(dim=4, r1_every=2).double()
    if name == "vqvae":  # it measures the variance of the data
        model = tiny_vqvae(video_shape=(5, 16, 16), strides=(1, 8, 8), dim=6, quantizer="vq")
        return AllTerms(model).double(), tiny_discriminator(dim=4, r1_every=2).double()
    changes = dict(QUANTIZERS[name])
    if changes.get("quantizer") == "given":
        changes["quantizer"] = VectorQuantize(use_cosine_sim=True, dim=8, codebook_size=32)
    # In float64, because the rounding of one batch of four and that of two of two drift apart over the steps.
    return AllTerms(tiny_cvivit(**changes)).double(), tiny_discriminator(dim=4, r1_every=2).double()


def train_both(model, discriminator, unwrapped, video):
    """Train both sides in turn for some steps; returns the losses of each step."""
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.05) for part in (model, discriminator)]
    losses = []
    for _ in range(STEPS):
        terms = model(video, unwrapped)
        terms.total.backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        own = discriminator(video, terms.reconstruction)
        own.backward()
        optimizers[1].step()
        optimizers[1].zero_grad()
        losses.append(torch.stack((terms.total.detach(), own.detach())))
    return torch.stack(losses)


def train_distributed(rank, model, discriminator):
    torch.manual_seed(rank)  # the random numbers of the processes differ
    wrapped = [DistributedDataParallel(part) for part in (model, discriminator)]
    losses = train_both(*wrapped, discriminator, clips()[2 * rank : 2 * rank + 2])
    dist.all_reduce(losses)
    return {"losses": losses / 2, "model": model.state_dict(), "discriminator": discriminator.state_dict()}


class GivenNoise(Diffusion):
    """Each sample of the joint batch has its own time and noise, in whichever process it is."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def losses(self, model, latents):
        noise = torch.randn(4, *latents.shape[1:], generator=seed(3), dtype=torch.float64)[self.samples]
        return super().losses(model, latents, time=torch.tensor([0, 3, 500, 977])[self.samples], noise=noise)


def build_system(name):
    torch.manual_seed(0)
    tokenizer = conftest.tiny_vqvae()
    if name == "Latte":
        return tiny_latte(codec=tokenizer).double()
    encoder = tiny_frame_map_encoder()
    return tiny_videogpt(tokenizer=tokenizer, frame_encoder=encoder, dim_action=2, grid=(3, 2, 2)).double()


def train_system(name, model, wrapped, samples):
    """The losses of some steps with a part of the joint batch."""
    videos = torch.rand(4, 3, 6, 16, 16, generator=seed(1), dtype=torch.float64)[samples]
    if name == "Latte":
        given, model.diffusion = {}, GivenNoise(samples)
    else:
        given = {"actions": torch.randn(4, 6, 2, generator=seed(2), dtype=torch.float64)[samples]}
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.5 if name == "VideoGPT" else 1e-3), []
    for _ in range(STEPS):
        loss = wrapped(videos, **given)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def train_system_distributed(name, rank, model):
    losses = train_system(name, model, DistributedDataParallel(model), slice(2 * rank, 2 * rank + 2))
    dist.all_reduce(losses)
    return {"losses": losses / 2, "model": model.state_dict()}


def process(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cases = {("before", name): build(name) for name in BEFORE}
    systems = {name: build_system(name) for name in SYSTEMS}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    cases |= {("after", name): build(name) for name in AFTER}
    done = {case: train_distributed(rank, *modules) for case, modules in cases.items()}
    done |= {name: train_system_distributed(name, rank, model) for name, model in systems.items()}
    torch.save(done, folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # without destructors: gloo's can wait for a thread that waits for the interpreter


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What both processes have after training, for every case: one start of the processes serves all tests."""
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(process, args=(free_port(), folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", EQUAL_TO_ONE, ids=str)
def test_two_processes_train_as_one_with_the_joint_batch(outcomes, case):
    first, second = (outcome[case] for outcome in outcomes)
    for name in ("model", "discriminator"):
        torch.testing.assert_close(first[name], second[name], atol=0, rtol=0)
    model, discriminator = build(case[1])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = train_both(model, discriminator, discriminator, clips())
    torch.testing.assert_close(first["losses"], losses)
    torch.testing.assert_close(first["model"], model.state_dict())
    torch.testing.assert_close(first["discriminator"], discriminator.state_dict())
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert any("quantizer" in name for name in changed)  # else equal states would show nothing


@pytest.mark.parametrize("when", ["before", "after"])
def test_codes_that_start_and_restart_as_features_are_the_same_in_all_processes(outcomes, when):
    first, second = (outcome[when, "ema"]["model"] for outcome in outcomes)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    codes = first["cvivit.quantizer.quantizer._codebook.embed"][0]
    assert torch.pdist(codes).min() > 1e-4 and first["cvivit.quantizer.quantizer._codebook.initted"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_two_processes_train_a_system_as_one_with_the_joint_batch(outcomes, name):
    first, second = (outcome[name] for outcome in outcomes)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    model = build_system(name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.testing.assert_close(first["losses"], train_system(name, model, model, slice(4)))
    torch.testing.assert_close(first["model"], model.state_dict(), atol=1e-6, rtol=1e-4)  # float32 statistics
    changed = {name.split(".")[0] for name, value in first["model"].items() if not torch.equal(value, before[name])}
    assert changed == {"VideoGPT": {"gpt", "frame_encoder"}, "Latte": {"transformer", "standardisation"}}[name]


@pytest.mark.parametrize("case", SAME_CODES, ids=str)
def test_all_processes_have_the_same_codes(outcomes, case):
    first, second = (outcome[case]["model"] for outcome in outcomes)
    codebooks = [name for name in first if "codebook" in name or "variance" in name]
    assert codebooks
    for name in codebooks:
        assert torch.equal(first[name], second[name]), name
    assert all(value.isfinite().all() for value in first.values())


@pytest.mark.parametrize("when", ["before", "after"])
def test_dead_codes_are_replaced(outcomes, when):
    first = outcomes[0][when, "vq with dead codes"]["model"]
    codebooks = [name for name in first if "codebook" in name]
    without = outcomes[0][when, "vq"]["model"]
    assert any(not torch.allclose(without[name], first[name]) for name in codebooks)
    plain, restarted = (outcomes[0][when, name]["model"] for name in ("VQVAE without restarts", "VQVAE with restarts"))
    (embed,) = [name for name in plain if name.endswith("_codebook.embed")]
    assert not torch.allclose(plain[embed], restarted[embed])
