"""The rule of the least work: the figures that were agreed on, and what it grows with."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from conftest import tiny_cvivit, tiny_maskgit
from least_work import (
    context_work,
    decode_work,
    encode_work,
    features_work,
    generate_work,
    maskgit_step_work,
    output_work,
    tokenizer_step_work,
)
from phenaki_pytorch import MaskGit, presets

CLIP = (11, 128, 128)
GIGA = 1e9


@pytest.fixture(scope="module")
def configs():
    with torch.device("meta"):
        maskgit = MaskGit(num_tokens=8192, grid=(6, 16, 16), dim=512, depth=6, dim_context=768)
        return presets.cvivit().config, maskgit.config


def test_the_figures_of_the_middle_size(configs):
    cvivit, maskgit = configs
    assert encode_work(cvivit, *CLIP) / GIGA == pytest.approx(82, rel=0.01)
    assert decode_work(cvivit, *CLIP) / GIGA == pytest.approx(81, rel=0.01)
    assert tokenizer_step_work(cvivit, *CLIP) / GIGA == pytest.approx(490, rel=0.01)
    assert maskgit_step_work(maskgit, 1536, 32) / GIGA == pytest.approx(316, rel=0.01)
    assert generate_work(maskgit, 1536, 32, 18, guided=True) / GIGA == pytest.approx(3810, rel=0.01)


def test_half_of_guidance_is_none(configs):
    _, maskgit = configs
    guided, plain = (generate_work(maskgit, 1536, 32, 18, guided=guided) for guided in (True, False))
    assert guided == 2 * plain


def test_what_pytorch_counts_is_no_less():
    """Of tiny models, where attention to what is masked, and the codebook's search, are all that comes beside it."""
    cvivit, maskgit = tiny_cvivit().eval(), tiny_maskgit(dim_context=None).eval()
    video, ids = torch.rand(1, 3, 11, 16, 16), torch.randint(0, 32, (1, 6, 2, 2))
    layout = maskgit.layout((6, 2, 2))
    for call, work in (
        (lambda: cvivit.encode(video), encode_work(cvivit.config, 11, 16, 16)),
        (lambda: cvivit.decode(ids), decode_work(cvivit.config, 11, 16, 16)),
        (lambda: maskgit.features(ids.flatten(1), None, layout=layout), features_work(maskgit.config, 24, 0)),
    ):
        # The counter knows no fast kernels of the CPU.
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            call()
        assert work <= counter.get_total_flops() * 1.001 <= 1.1 * work


def test_what_reads_the_text_and_writes_the_logits_is_counted_to_the_last_product():
    maskgit, text = tiny_maskgit().eval(), torch.randn(1, 7, 12)
    for call, work in (
        (lambda: maskgit.transformer.keys_values(text), context_work(maskgit.config, 7)),
        (lambda: maskgit.to_logits(torch.randn(5, 32)), output_work(maskgit.config, 5)),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        assert counter.get_total_flops() == work > 0
    assert context_work(tiny_maskgit(dim_context=None).config, 7) == 0
