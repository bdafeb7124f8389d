"""Wrappers that replace, hook, move or shard weights work, because each weight is read in its own module's call."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from conftest import (
    WordEncoder,
    make_context,
    make_ids,
    seed,
    tiny_cvivit,
    tiny_frame_encoder,
    tiny_frame_map_encoder,
    tiny_gpt,
    tiny_latte,
    tiny_latte_transformer,
    tiny_maskgit,
    tiny_token_critic,
    tiny_videogpt,
    tiny_vqgan,
    tiny_vqvae,
)
from phenaki_pytorch import Phenaki, SelfCritic, checkpoint_activations
from phenaki_pytorch.diffusion.blocks import LatteBlock
from phenaki_pytorch.layers.transformer import Block
from phenaki_pytorch.priors.gpt_blocks import GPTBlock
from phenaki_pytorch.tokenizers import vqgan_layers, vqvae

# Tiny batches have fewer tokens than a codebook needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens a step are few:UserWarning")

BLOCKS = (Block, GPTBlock, LatteBlock, vqvae.ResidualBlock, vqgan_layers.ResidualBlock)
TOKENIZERS = {"CViViT": lambda: tiny_cvivit(temporal_window=3), "VQVAE": tiny_vqvae, "VQGAN": tiny_vqgan}


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
    ids, wrong = make_ids(grid=(3, 2, 2)), torch.rand(2, 3, 2, 2) < 0.5
    video = torch.rand(2, 3, 6 if name.startswith(("VQVAE", "VideoGPT")) else 5, 16, 16)
    context, context_mask = make_context()
    text = {"context": context, "context_mask": context_mask}

    def seeded(call):
        def run(module):
            torch.manual_seed(1)
            return call(module)

        return run

    if name in TOKENIZERS:
        module = TOKENIZERS[name]()
        calls = {
            "call": lambda m: m(video),
            "losses": lambda m: m.losses(video).total,
            "encode": lambda m: m.encode(video),
            "decode": lambda m: m.decode(ids),
        }
        if name == "CViViT":
            calls["stream"] = lambda m: m.encoder_stream()(video)
    elif name == "GPT":
        module = tiny_gpt(dim_context=12, dim_frame_vector=5, dim_frame_map=6, dim_condition=4)
        given = {"frame_vector": torch.randn(2, 5), "frame_map": torch.randn(2, 7, 6)}
        given |= {"condition": torch.randn(2, 3, 4), **text}
        calls = {
            "call": lambda m: m(ids, **given),
            "losses": lambda m: m.losses(ids, **given).total,
            "logits": lambda m: m.logits(ids, **given, cond_scale=3.0),
            "generate": lambda m: m.generate((3, 2, 2), **given, generator=seed(), cond_scale=3.0),
        }
    elif name.startswith("VideoGPT"):
        encoder = tiny_frame_map_encoder() if name.endswith("map") else tiny_frame_encoder()
        module = tiny_videogpt(grid=(3, 2, 2), frame_encoder=encoder, dim_action=2, num_classes=3, dim_context=12)
        labels = {"classes": torch.tensor([0, 2]), "texts": ["a", "b"]}
        actions, shown = torch.randn(2, 9, 2), video[:, :, 0]
        calls = {
            "call": lambda m: m(video, actions=actions[:, :6], **labels),
            "losses": lambda m: m.losses(video, actions=actions[:, :6], **labels).total,
            "generate": lambda m: m.generate(
                num_frames=9, actions=actions, frames=shown, **labels, generator=seed(), cond_scale=3.0
            ),
        }
    elif name == "MaskGit":
        module = tiny_maskgit()
        calls = {
            "call": lambda m: m(ids, context, context_mask),
            "losses": lambda m: m.losses(ids, context, context_mask).logits,
            "logits": lambda m: m.logits(ids, wrong, context, context_mask, cond_scale=3.0),
            "generate": lambda m: m.generate((3, 2, 2), **text, steps=3, generator=seed()),
        }
    elif name.startswith("LatteTransformer"):
        sizes = {"variant": 3, "conditioning": "tokens"} if name.endswith("tokens") else {}
        module = tiny_latte_transformer(**sizes, num_classes=3, dim_context=12)
        latents, time = torch.randn(2, 4, 4, 4, 4), torch.tensor([3, 977])
        given = {"classes": torch.tensor([0, 2]), **text}
        calls = {
            "call": lambda m: m(latents, time, **given).square().mean(),
            "dropped": lambda m: m(latents, time, **given, dropped=torch.tensor([True, False])),
        }
    elif name == "Latte":
        module = tiny_latte(num_classes=3, dim_context=12)
        labels = {"classes": torch.tensor([0, 2]), "texts": ["a", "b"]}
        images = {"images": video[:, :, :2].transpose(1, 2), "image_classes": torch.tensor([[0, 1], [2, 1]])}
        images["image_text_embeds"] = torch.randn(2, 2, 3, 12)
        calls = {
            "call": lambda m: m(video, **labels),
            "losses": lambda m: m.losses(video, **labels, **images).total,
            "generate": lambda m: m.generate(num_frames=9, **labels, steps=2, generator=seed(), cond_scale=3.0),
            "images": lambda m: m.generate_images(**labels, steps=2, generator=seed(), cond_scale=3.0),
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


NAMES = (*TOKENIZERS, "MaskGit", "GPT", "TokenCritic", "SelfCritic", "Phenaki", "VideoGPT", "VideoGPT with a map")
NAMES += ("LatteTransformer", "LatteTransformer with tokens", "Latte")
LORA_LAYERS = {"VQGAN": ["to_code", "from_code"]}  # it has no attention


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
    for block in [part for part in sharded.modules() if isinstance(part, BLOCKS)]:
        fully_shard(block)
    roots = (sharded.maskgit, sharded.critic) if name == "SelfCritic" else (sharded,)
    for root in roots:
        fully_shard(root)
    for key, call in calls.items():
        torch.testing.assert_close(call(sharded), expected[key], atol=1e-5, rtol=1e-5, msg=key)
    calls["call"](sharded).backward()
    assert any(part.grad is not None for part in sharded.parameters())


def is_frozen(name):
    """Whether a parameter, by name, is that of the tokenizer of a system."""
    return name.startswith(("cvivit.", "tokenizer.", "codec."))


@pytest.mark.parametrize("cast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("name", NAMES)
def test_a_lora_moves_the_output_and_is_learnt(name, cast):
    peft = pytest.importorskip("peft")
    module, calls = build(name)
    config = peft.LoraConfig(r=4, target_modules=LORA_LAYERS.get(name, ["to_qkv"]), init_lora_weights=False)
    adapted = peft.get_peft_model(copy.deepcopy(module), config).base_model.model
    module.train(), adapted.train()  # quantizers have gradients in training alone
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        for key in calls.keys() & {"call", "losses", "logits"}:
            plain, changed = (calls[key](each).float() for each in (module, adapted))
            assert (plain - changed).abs().max() > 1e-6, key
        calls["call"](adapted).backward()
    learnt = [value.grad for name, value in adapted.named_parameters() if "lora_" in name and not is_frozen(name)]
    assert learnt and all(grad is not None and grad.abs().max() > 0 for grad in learnt)


@pytest.mark.parametrize("name", ["GPT", "VideoGPT"])
def test_checkpointed_activations_change_no_gradient(name):
    module, calls = build(name)

    def gradients():
        module.zero_grad()
        calls["call"](module).backward()
        return {name: value.grad for name, value in module.named_parameters()}

    plain, blocks = gradients(), []
    for block in [part for part in module.modules() if isinstance(part, GPTBlock)]:
        block.register_forward_pre_hook(lambda *_: blocks.append(1))
    checkpoint_activations(module.gpt if name == "VideoGPT" else module)
    torch.testing.assert_close(gradients(), plain)
    assert len(blocks) == 2 * 2  # each of two blocks, and again in the backward pass
