"""Wrappers that replace, hook, move or shard weights work, because each weight is read in its own module's call."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from conftest import WordEncoder, make_context, make_ids, seed, tiny_cvivit, tiny_maskgit, tiny_token_critic
from phenaki_pytorch import Phenaki, SelfCritic
from phenaki_pytorch.layers.transformer import Block


class SelfCriticOverMaskGit(nn.Module):
    """A self-critic with its MaskGit as one module, so that a wrapper sees both."""

    def __init__(self):
        super().__init__()
        self.maskgit = tiny_maskgit()
        self.critic = SelfCritic(self.maskgit)

    def forward(self, *inputs):
        return self.critic(*inputs)


def build(name):
    """A module in eval mode and, by name, calls of it: each loss, and everything else that it computes."""
    torch.manual_seed(0)
    video, ids, wrong = torch.rand(2, 3, 5, 16, 16), make_ids(grid=(3, 2, 2)), torch.rand(2, 3, 2, 2) < 0.5
    context, context_mask = make_context()
    text = {"context": context, "context_mask": context_mask}

    def seeded(call):
        def run(module):
            torch.manual_seed(1)
            return call(module)

        return run

    if name == "CViViT":
        module = tiny_cvivit(temporal_window=3)
        calls = {
            "call": lambda m: m(video),
            "losses": lambda m: m.losses(video).total,
            "encode": lambda m: m.encode(video),
            "decode": lambda m: m.decode(ids),
            "stream": lambda m: m.encoder_stream()(video),
        }
    elif name == "MaskGit":
        module = tiny_maskgit()
        calls = {
            "call": lambda m: m(ids, context, context_mask),
            "losses": lambda m: m.losses(ids, context, context_mask).logits,
            "logits": lambda m: m.logits(ids, wrong, context, context_mask, cond_scale=3.0),
            "generate": lambda m: m.generate((3, 2, 2), **text, steps=3, generator=seed()),
        }
    elif name == "TokenCritic":
        module = tiny_token_critic()
        calls = {
            "call": lambda m: m(ids, wrong, context, context_mask),
            "logits": lambda m: m.critic_logits((3, 2, 2), context, context_mask, 2.0)(ids.flatten(1)),
        }
    elif name == "SelfCritic":
        module = SelfCriticOverMaskGit()
        calls = {
            "call": lambda m: m(ids, wrong, context, context_mask),
            "logits": lambda m: m.critic.critic_logits((3, 2, 2), context, context_mask)(ids.flatten(1)),
            "generate": lambda m: m.maskgit.generate(
                **text, critic=m.critic, critic_inline=True, steps=3, generator=seed()
            ),
        }
    else:
        module = Phenaki(cvivit=tiny_cvivit(), maskgit=tiny_maskgit(), text_encoder=WordEncoder())
        calls = {
            "call": lambda m: m(video, texts=["a", "b"]),
            "losses": lambda m: m.losses(video, texts=["a", "b"]).maskgit,
            "generate": lambda m: m.generate("a", num_frames=13, steps=2, generator=seed()),
        }
    return module.eval(), {key: seeded(call) for key, call in calls.items()}


NAMES = ("CViViT", "MaskGit", "TokenCritic", "SelfCritic", "Phenaki")


def hooked(module):
    """Every layer with weights has a forward hook; the names of those that were called."""
    called = set()
    for name, part in module.named_modules():
        if any(True for _ in part.parameters(recurse=False)):
            part.register_forward_hook(lambda *_, name=name: called.add(name))
    module.called = called
    return module


def offloaded(module):
    from accelerate import cpu_offload

    cpu_offload(module, execution_device="cpu")
    return module


def int8(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(module, {nn.Linear})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrap", [hooked, offloaded, int8], ids=lambda wrap: wrap.__name__)
def test_the_wrapped_module_computes_what_the_plain_one_does(name, wrap):
    module, calls = build(name)
    expected = {key: call(module) for key, call in calls.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = wrap(copy.deepcopy(module))
    for key, call in calls.items():
        with torch.no_grad() if wrap is not hooked else torch.enable_grad():
            got = call(wrapped)
        if wrap is int8:  # coarse weights: other ids, but the same shapes and finite numbers
            assert got.shape == expected[key].shape and got.isfinite().all(), key
        else:
            torch.testing.assert_close(got, expected[key], msg=key)
    if wrap is hooked:
        owners = {key for key, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))}
        assert owners - wrapped.called == set()


@pytest.fixture
def one_process():
    """A process group of this process alone, which is enough to turn weights into shards."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("name", NAMES)
def test_with_every_block_sharded_it_computes_what_the_plain_one_does(name, one_process):
    from torch.distributed.fsdp import fully_shard

    module, calls = build(name)
    expected = {key: call(module) for key, call in calls.items()}
    sharded = copy.deepcopy(module)
    for block in [part for part in sharded.modules() if isinstance(part, Block)]:
        fully_shard(block)
    roots = (sharded.maskgit, sharded.critic) if name == "SelfCritic" else (sharded,)
    for root in roots:
        fully_shard(root)
    for key, call in calls.items():
        torch.testing.assert_close(call(sharded), expected[key], atol=1e-5, rtol=1e-5, msg=key)
    calls["call"](sharded).backward()
    assert any(part.grad is not None for part in sharded.parameters())


@pytest.mark.parametrize("cast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_a_lora_moves_the_output_and_is_learnt(name, cast):
    peft = pytest.importorskip("peft")
    module, calls = build(name)
    config = peft.LoraConfig(r=4, target_modules=["to_qkv"], init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(module), config).base_model.model
    module.train(), adapted.train()  # quantizers have gradients in training alone
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        for key in calls.keys() & {"call", "losses", "logits"}:
            plain, changed = (calls[key](each).float() for each in (module, adapted))
            assert (plain - changed).abs().max() > 1e-6, key
        calls["call"](adapted).backward()
    learnt = [value.grad for name, value in adapted.named_parameters() if "lora_" in name and "cvivit" not in name]
    assert learnt and all(grad is not None and grad.abs().max() > 0 for grad in learnt)
