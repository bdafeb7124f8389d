"""Two processes over gloo: the tokenizer and the discriminator train as one process with the joint batch would."""

import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from vector_quantize_pytorch import VectorQuantize

from conftest import seed, tiny_cvivit, tiny_discriminator
from phenaki_pytorch import LossWeights

STEPS = 3


def clips():
    return torch.rand(4, 3, 5, 16, 16, generator=seed(1), dtype=torch.float64)


class Both(torch.nn.Module):
    """What a training step calls through DDP: the parts of the loss, for both sides."""

    def __init__(self, cvivit):
        super().__init__()
        self.cvivit = cvivit

    def forward(self, video, discriminator):
        return self.cvivit.losses(video, discriminator=discriminator, weights=LossWeights(adversarial=0.5))


def build(**changes):
    torch.manual_seed(0)
    if "given" in changes:
        changes = {"quantizer": VectorQuantize(use_cosine_sim=True, **changes["given"])}
    # In double precision: what rounding leaves between one batch of four and two of two grows over the steps.
    return Both(tiny_cvivit(**changes)).double(), tiny_discriminator(r1_every=2).double()


def steps(model, discriminator, own, video):
    """Alternate both sides for some steps; the losses of the first and what the modules then hold."""
    sides = [torch.optim.SGD(part.parameters(), lr=0.05) for part in (model, discriminator)]
    losses = []
    for _ in range(STEPS):
        made = model(video, own)
        made.total.backward()
        sides[0].step()
        sides[0].zero_grad()
        judged = discriminator(video, made.reconstruction)
        judged.backward()
        sides[1].step()
        sides[1].zero_grad()
        losses.append(torch.stack((made.total.detach(), judged.detach())))
    return torch.stack(losses)


def leave():
    """End this process without its destructors: gloo's can wait for a thread that waits for the interpreter."""
    dist.barrier()
    os._exit(0)


def process(rank, port, folder, when, changes):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if when == "before":
        model, discriminator = build(**changes)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    if when == "after":
        model, discriminator = build(**changes)
    torch.manual_seed(rank)  # the processes draw apart
    wrapped = [DistributedDataParallel(part) for part in (model, discriminator)]
    losses = steps(*wrapped, discriminator, clips()[2 * rank : 2 * rank + 2])
    dist.all_reduce(losses)
    outcome = {"losses": losses / 2, "model": model.state_dict(), "discriminator": discriminator.state_dict()}
    torch.save(outcome, folder / f"{rank}.pt")
    leave()


def process_of_other_lengths(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    wrapped = DistributedDataParallel(tiny_cvivit(), find_unused_parameters=True)
    wrapped(torch.rand(2, 3, 16, 16)).backward()  # images leave tubelets alone
    for _ in range(2):
        wrapped(torch.rand(2, 3, (3, 9)[rank], 16, 16)).backward()
    torch.save(wrapped.module.window, folder / f"{rank}.pt")
    leave()


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def two_processes(folder, when, **changes):
    mp.spawn(process, args=(free_port(), folder, when, changes), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(
    "when, changes",
    [
        ("before", {}),
        ("after", {}),
        ("before", {"given": {"dim": 8, "codebook_size": 32}}),
        # Quantizers stay in single precision: a small weight keeps what LFQ's entropies round below the bounds.
        ("after", {"quantizer": "lfq", "quantizer_kwargs": {"entropy_loss_weight": 0.01}}),
    ],
)
def test_two_processes_train_as_one_with_the_joint_batch(tmp_path, when, changes):
    one, two = two_processes(tmp_path, when, **changes)
    for name in ("model", "discriminator"):
        torch.testing.assert_close(one[name], two[name], atol=0, rtol=0)
    model, discriminator = build(**changes)
    losses = steps(model, discriminator, discriminator, clips())
    torch.testing.assert_close(one["losses"], losses)
    torch.testing.assert_close(one["model"], model.state_dict())
    torch.testing.assert_close(one["discriminator"], discriminator.state_dict())
    fresh = build(**changes)[0].state_dict()
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, fresh[name])]
    assert any("quantizer" in name for name in moved)  # or there was nothing to agree on


@pytest.mark.parametrize("when", ["before", "after"])
def test_dead_codes_are_replaced_alike_everywhere(tmp_path, when):
    replacing = {"threshold_ema_dead_code": 2}
    one, two = two_processes(tmp_path, when, quantizer_kwargs=replacing)
    codebooks = [name for name in one["model"] if "codebook" in name]
    assert codebooks
    for name in codebooks:
        assert torch.equal(one["model"][name], two["model"][name]), name
    never = two_processes(tmp_path, when)[0]["model"]
    assert any(not torch.allclose(never[name], one["model"][name]) for name in codebooks)


def test_the_window_is_the_longest_clip_of_all_processes(tmp_path):
    mp.spawn(process_of_other_lengths, args=(free_port(), tmp_path), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [5, 5]
