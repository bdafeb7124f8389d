"""Measure one pass of benchmark.py in this process, and print its figures as JSON.

    python -m benchmarks.passes '{"pass": "encode", "size": "small", "mode": "eager", "precision": "float32",
                                  "device": "cpu", "repeat": 3}'    # in the folder examples/

Further keys of a case: batch, windows (of the long generation), side (ids of a window along height and width), and
beside_plain (time the plain implementation in turn).
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.least_work import (
    decode_work,
    encode_work,
    generate_work,
    maskgit_step_work,
    mean_share,
    tokenizer_step_work,
)
from benchmarks.machine import mebibytes, peak, reset_peak, seconds
from benchmarks.plain import PlainMaskGit, PlainTokenizer
from benchmarks.products import products_of
from phenaki_pytorch import CViViT, MaskGit, Phenaki
from phenaki_pytorch.long_video import OVERLAP
from phenaki_pytorch.priors.masking import draw_mask, mask_share

TEXT = 32  # tokens of a caption
LONG_STEPS = 18  # sampling steps of each window of a long video


class Size(NamedTuple):
    """The arguments of a tokenizer and a MaskGit, the frames of a clip, and the width of the text embeddings."""

    cvivit: dict
    frames: int
    maskgit: dict
    dim_context: int


PAPER = {"dim": 512, "image_size": 128, "patch_size": 8, "spatial_depth": 4, "temporal_depth": 4}
SIZES = {
    # The models of moving shapes.
    "small": Size(
        {"dim": 128, "image_size": 32, "patch_size": 4, "spatial_depth": 2, "temporal_depth": 1, "heads": 4}
        | {"dim_head": 32, "codebook_size": 1024, "code_dim": 5, "quantizer": "fsq"}
        | {"quantizer_kwargs": {"levels": [4, 4, 4, 4, 4]}},
        9,
        {"dim": 96, "depth": 4, "heads": 3, "dim_head": 32},
        64,
    ),
    # The paper's tokenizer, and a MaskGit that can be trained on a CPU.
    "middle": Size(
        PAPER,
        11,
        {"dim": 512, "depth": 6},
        768,
    ),
    # A MaskGit of 100 million parameters.
    "tenth": Size(
        PAPER,
        11,
        {"dim": 768, "depth": 10, "heads": 12},
        768,
    ),
    # The paper's models.
    "paper": Size(
        PAPER,
        11,
        {"dim": 2048, "depth": 24, "heads": 32},
        4096,
    ),
}


class Pass(NamedTuple):
    """A pass, its least work, and how to show it.

    call    runs the pass once
    work    its least work, in operations
    frames  how many frames one call reads or generates
    x       its value on the x axis of a plot of cost
    began   the times at which each window of the last call began, and the time at which the call ended
    """

    call: Callable[[], object]
    work: float
    frames: int
    x: float | None = None
    began: Sequence[float] = ()


class Parts:
    """The models of a size, on a device, each built at its first use, and random inputs for them."""

    def __init__(self, size: Size, case: dict):
        self.size, self.device, self.case, self.batch = size, case["device"], case, case.get("batch", 1)
        self.sizes = dict(size.cvivit)
        if "side" in case:
            self.sizes["image_size"] = case["side"] * self.sizes["patch_size"]
        self.frames = size.frames
        self.sizes["temporal_patch_size"] = 2
        with torch.device("meta"):  # where not every quantizer can be built
            shape = CViViT(**self.sizes | {"quantizer": "vq", "quantizer_kwargs": None})
        self.grid = shape.grid(self.frames)
        self.sizes["temporal_window"] = self.grid[0]
        self.config, self.num_tokens = shape.config | self.sizes, shape.codebook_size
        self.tokens = math.prod(self.grid)
        self.clip = (self.frames, *shape.image_size)
        self.ids = torch.randint(self.num_tokens, (self.batch, *self.grid), device=self.device)
        self.video = torch.rand(self.batch, 3, *self.clip, device=self.device)
        self.text = torch.randn(self.batch, TEXT, size.dim_context, device=self.device)

    @cached_property
    def cvivit(self) -> CViViT | PlainTokenizer:
        if self.case["mode"] == "plain":
            return PlainTokenizer(self.config).to(self.device)
        cvivit = CViViT(**self.sizes).to(self.device)
        if self.case["mode"] == "compiled":
            cvivit.encoder.compile()
            cvivit.decoder.compile()
        return cvivit

    @cached_property
    def maskgit(self) -> MaskGit | PlainMaskGit:
        sizes = {"num_tokens": self.num_tokens, "grid": self.grid, "dim_context": self.size.dim_context}
        if self.case["mode"] == "plain":
            with torch.device("meta"):
                config = MaskGit(**self.size.maskgit, **sizes).config
            return PlainMaskGit(config, mean_share(config["schedule"])).to(self.device)
        maskgit = MaskGit(**self.size.maskgit, **sizes).to(self.device)
        if self.case["mode"] == "compiled":
            maskgit.transformer.compile()
        return maskgit

    def under_precision(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call under an autocast context of its own, so that no call uses weights that an earlier one has cast."""

        def under_autocast() -> object:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.case["precision"] == "bfloat16"):
                return call()

        return under_autocast

    def step(self, module: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        """A callable that runs one training step with AdamW."""
        optimizer = torch.optim.AdamW(module.train().parameters(), lr=1e-4, fused=True)
        forward = self.under_precision(loss)

        def step() -> None:
            forward().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def encode(parts: Parts) -> Pass:
    cvivit = parts.cvivit.eval()
    work = parts.batch * encode_work(cvivit.config, *parts.clip)
    call = parts.under_precision(lambda: cvivit.encode(parts.video))
    return Pass(call, work, parts.batch * parts.frames)


def decode(parts: Parts) -> Pass:
    cvivit = parts.cvivit.eval()
    work = parts.batch * decode_work(cvivit.config, *parts.clip)
    call = parts.under_precision(lambda: cvivit.decode(parts.ids))
    return Pass(call, work, parts.batch * parts.frames)


def tokenizer_step(parts: Parts) -> Pass:
    work = parts.batch * tokenizer_step_work(parts.cvivit.config, *parts.clip)
    call = parts.step(parts.cvivit, lambda: parts.cvivit(parts.video))
    return Pass(call, work, parts.batch * parts.frames)


def maskgit_step(parts: Parts) -> Pass:
    maskgit = parts.maskgit
    work = parts.batch * maskgit_step_work(maskgit.config, parts.tokens, TEXT)
    progress = mean_progress(maskgit.config["schedule"]).expand(parts.batch).to(parts.device)
    # Every step masks equally many ids, so that all steps have the same work.
    loss = patch("phenaki_pytorch.priors.maskgit.draw_mask", partial(draw_mask, progress=progress))(
        lambda: maskgit(parts.ids, parts.text)
    )
    return Pass(parts.step(maskgit, loss), work, parts.batch * parts.frames, x=parts.batch)


def mean_progress(schedule: str) -> torch.Tensor:
    """The progress, a scalar in [0, 1], at which a schedule masks its mean share."""
    progress = torch.linspace(0, 1, 10_001)
    return progress[(mask_share(progress, schedule) - mean_share(schedule)).abs().argmin()]


def generate(steps: int) -> Callable[[Parts], Pass]:
    def build(parts: Parts) -> Pass:
        maskgit = parts.maskgit.eval()
        work = parts.batch * generate_work(maskgit.config, parts.tokens, TEXT, steps, guided=True)
        call = parts.under_precision(lambda: maskgit.generate(context=parts.text, steps=steps))
        return Pass(call, work, parts.batch * parts.frames, x=parts.tokens)

    return build


def long_work(parts: Parts, windows: int, overlap: int) -> float:
    """The least work of one video: windows of which all but the first begin with `overlap` given frames."""
    cvivit, maskgit = parts.cvivit, parts.maskgit.config
    given = math.prod(cvivit.grid(overlap))
    first, later = (
        generate_work(maskgit, parts.tokens, TEXT, LONG_STEPS, guided=True, masked=parts.tokens - known)
        for known in (0, given)
    )
    encoding = encode_work(cvivit.config, overlap, *parts.clip[1:])
    return first + (windows - 1) * (later + encoding) + windows * decode_work(cvivit.config, *parts.clip)


def long_generate(parts: Parts) -> Pass:
    """Generate and decode the windows of one video, with guidance."""
    phenaki = Phenaki(cvivit=parts.cvivit, maskgit=parts.maskgit, text_encoder=lambda texts: None).eval()
    windows = parts.case["windows"]
    frames = phenaki.window + (windows - 1) * (phenaki.window - OVERLAP)
    began = []

    def note(steps: Iterable) -> Iterable:
        began.append(time.perf_counter())
        return steps

    options = {"num_frames": frames, "overlap": OVERLAP, "steps": LONG_STEPS, "progress": note}
    generate = parts.under_precision(lambda: phenaki.generate(text_embeds=parts.text, **options))

    def call() -> None:
        began.clear()
        generate()
        began.append(time.perf_counter())

    work = parts.batch * long_work(parts, windows, OVERLAP)
    return Pass(call, work, parts.batch * frames, x=windows, began=began)


PASSES = {
    "encode": encode,
    "decode": decode,
    "tokenizer step": tokenizer_step,
    "maskgit step": maskgit_step,
    "generate 18": generate(18),
    "generate 24": generate(24),
    "generate 48": generate(48),
    "long generate": long_generate,
}


# measuring


def measure(case: dict) -> dict:
    """The figures of one case, by the columns of benchmark.py, and those of its plots of cost."""
    device, precision = case["device"], case["precision"]
    torch.manual_seed(0)
    reset_peak(device)
    imported = mebibytes(device)
    todo = PASSES[case["pass"]](Parts(SIZES[case["size"]], case))
    todo.call()  # compiles and warms up
    if case["mode"] == "products":
        todo = todo._replace(call=products_of(todo.call), began=())
    reset_peak(device)
    todo.call()
    memory = mebibytes(device) - imported  # before the plain model and the matrices of `peak` are in memory
    plain = None
    if case.get("beside_plain"):
        plain = PASSES[case["pass"]](Parts(SIZES[case["size"]], case | {"mode": "plain"}))
        plain.call()
    peaks, times, each, ratios = [peak(precision, device)], [], [], []
    for _ in range(case["repeat"]):
        times.append(seconds(todo.call, device))
        each.append([after - before for before, after in pairwise(todo.began)])
        if plain is not None:
            ratios.append(seconds(plain.call, device) / times[-1])
        peaks.append(peak(precision, device))
    shares = [todo.work / time / max(around) for time, around in zip(times, pairwise(peaks))]
    median = statistics.median(times)
    return {
        "seconds": median,
        "GFLOP": todo.work / 1e9,
        "peak GFLOP/s": statistics.median(peaks) / 1e9,
        "share": statistics.median(shares),
        "× plain": statistics.median(ratios) if ratios else None,
        "MiB": memory,
        "frames/s": todo.frames / median,
        "x": todo.x,
        "each window": [statistics.median(window) for window in zip(*each)],
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
