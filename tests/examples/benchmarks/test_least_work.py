"""The least work: known figures of the middle size, and what PyTorch counts for tiny models."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.least_work import (
    context_work,
    decode_work,
    encode_work,
    features_work,
    generate_work,
    maskgit_step_work,
    output_work,
    tokenizer_step_work,
)
from conftest import make_ids, tiny_cvivit, tiny_maskgit
from phenaki_pytorch import MaskGit, presets
from phenaki_pytorch.layers.attention import CrossAttention
from phenaki_pytorch.priors.masking import mask_share

CLIP = (11, 128, 128)
GIGA = 1e9


@pytest.fixture(scope="module")
def configs():
    with torch.device("meta"):
        maskgit = MaskGit(num_tokens=8192, grid=(6, 16, 16), dim=512, depth=6, dim_context=768)
        return presets.cvivit().config, maskgit.config


def test_figures_of_the_middle_size(configs):
    cvivit, maskgit = configs
    assert encode_work(cvivit, *CLIP) / GIGA == pytest.approx(82, rel=0.01)
    assert decode_work(cvivit, *CLIP) / GIGA == pytest.approx(81, rel=0.01)
    assert tokenizer_step_work(cvivit, *CLIP) / GIGA == pytest.approx(490, rel=0.01)
    assert maskgit_step_work(maskgit, 1536, 32) / GIGA == pytest.approx(316, rel=0.01)
    assert generate_work(maskgit, 1536, 32, 18, guided=True) / GIGA == pytest.approx(3810, rel=0.01)


def test_guidance_doubles_the_work(configs):
    _, maskgit = configs
    guided, plain = (generate_work(maskgit, 1536, 32, 18, guided=guided) for guided in (True, False))
    assert guided == 2 * plain


def test_pytorch_counts_as_much_work():
    """In tiny models, only attention to masked keys and the search for the nearest code come on top."""
    cvivit, maskgit = tiny_cvivit().eval(), tiny_maskgit(dim_context=None).eval()
    video, ids = torch.rand(1, 3, 11, 16, 16), make_ids(1)
    for call, work in (
        (lambda: cvivit.encode(video), encode_work(cvivit.config, 11, 16, 16)),
        (lambda: cvivit.decode(ids), decode_work(cvivit.config, 11, 16, 16)),
        (lambda: maskgit.features(ids), features_work(maskgit.config, 24, 0)),
    ):
        # The counter does not count the fast attention kernels of the CPU.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            call()
        assert work <= counter.get_total_flops() * 1.001 <= 1.1 * work


def test_work_of_keys_and_values_and_of_logits_is_exact():
    maskgit, text = tiny_maskgit().eval(), torch.randn(1, 7, 12)
    layers = [part for part in maskgit.modules() if isinstance(part, CrossAttention)]
    for call, work in (
        (lambda: [layer.keys_values(text) for layer in layers], context_work(maskgit.config, 7)),
        (lambda: maskgit.to_logits(torch.randn(5, 32)), output_work(maskgit.config, 5)),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        assert counter.get_total_flops() == work > 0
    assert context_work(tiny_maskgit(dim_context=None).config, 7) == 0


def test_given_tokens_need_no_logits(configs):
    _, maskgit = configs
    whole, part = (generate_work(maskgit, 1536, 32, 18, guided=False, masked=masked) for masked in (None, 768))
    assert generate_work(maskgit, 1536, 32, 18, guided=False, masked=1536) == whole
    logits = whole - part
    assert logits == pytest.approx(output_work(maskgit, 768 * mask_share(torch.arange(18) / 18).sum().item()))
