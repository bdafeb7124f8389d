"""Two processes over gloo: tokenizer and discriminator train as in one process with the joint batch."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from vector_quantize_pytorch import VectorQuantize

from conftest import seed, tiny_cvivit, tiny_discriminator
from phenaki_pytorch import LossWeights

STEPS = 2  # with the R1 penalty, then without

# Each case is a quantizer, built before or after the process group is initialised.
QUANTIZERS = {
    "vq": {},
    "vq with dead codes": {"quantizer_kwargs": {"threshold_ema_dead_code": 2}},
    "a given module": {"quantizer": "given"},
    # Quantizers compute in float32: a small weight keeps the rounding of LFQ's entropies below the tolerance.
    "lfq": {"quantizer": "lfq", "quantizer_kwargs": {"entropy_loss_weight": 0.01}},
}
BEFORE = ("vq", "vq with dead codes", "a given module")
AFTER = ("vq", "vq with dead codes", "lfq")
EQUAL_TO_ONE = [("before", "vq"), ("after", "vq"), ("before", "a given module"), ("after", "lfq")]


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


def process(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    cases = {("before", name): build(name) for name in BEFORE}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    cases |= {("after", name): build(name) for name in AFTER}
    torch.save({case: train_distributed(rank, *modules) for case, modules in cases.items()}, folder / f"{rank}.pt")
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
def test_dead_codes_are_replaced_by_the_same_codes_in_all_processes(outcomes, when):
    first, second = (outcome[when, "vq with dead codes"]["model"] for outcome in outcomes)
    codebooks = [name for name in first if "codebook" in name]
    assert codebooks
    for name in codebooks:
        assert torch.equal(first[name], second[name]), name
    without = outcomes[0][when, "vq"]["model"]
    assert any(not torch.allclose(without[name], first[name]) for name in codebooks)
