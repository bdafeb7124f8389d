"""One pass of benchmark.py, measured in this process: prints its figures as JSON."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import nn

from benchmark_plain import PlainMaskGit, PlainTokenizer
from benchmark_products import products_of
from least_work import decode_work, encode_work, generate_work, maskgit_step_work, mean_share, tokenizer_step_work
from phenaki_pytorch import CViViT, MaskGit, Phenaki
from phenaki_pytorch.sampling import draw_mask, mask_share

PROCESS = Path("/proc/self/status")
TEXT = 32  # tokens of a caption
OVERLAP = 5  # frames that a further window shares with the one before


class Size(NamedTuple):
    """A tokenizer, its clips, and a MaskGit over their ids."""

    cvivit: dict
    frames: int
    maskgit: dict
    width: int  # of the text's embeddings


PAPERS = {"dim": 512, "image_size": 128, "patch_size": 8, "spatial_depth": 4, "temporal_depth": 4}
SIZES = {
    # That of the moving shapes.
    "small": Size(
        {"dim": 128, "image_size": 32, "patch_size": 4, "spatial_depth": 2, "temporal_depth": 1, "heads": 4}
        | {"dim_head": 32, "codebook_size": 1024, "code_dim": 5, "quantizer": "fsq"}
        | {"quantizer_kwargs": {"levels": [4, 4, 4, 4, 4]}},
        9,
        {"dim": 96, "depth": 4, "heads": 3, "dim_head": 32},
        64,
    ),
    # The paper's tokenizer and a MaskGit that a processor can train.
    "middle": Size(
        PAPERS,
        11,
        {"dim": 512, "depth": 6},
        768,
    ),
    # A MaskGit of a tenth of a billion parameters.
    "tenth": Size(
        PAPERS,
        11,
        {"dim": 768, "depth": 10, "heads": 12},
        768,
    ),
    # The paper's.
    "paper": Size(
        PAPERS,
        11,
        {"dim": 2048, "depth": 24, "heads": 32},
        4096,
    ),
}


class Pass(NamedTuple):
    """What to call, its least work, how many frames come of it, what it is plotted over, and when each window began.

    The call writes `began`, its own end behind the last window.
    """

    call: Callable[[], object]
    work: float
    frames: int
    x: float | None = None
    began: Sequence[float] = ()


class Parts:
    """The models of a size, on a device, each built when it is first asked for, and clips for them."""

    def __init__(self, size: Size, case: dict):
        self.size, self.device, self.case, self.batch = size, case["device"], case, case.get("batch", 1)
        self.sizes = dict(size.cvivit)
        if "side" in case:
            self.sizes["image_size"] = case["side"] * self.sizes["patch_size"]
        self.frames = size.frames
        self.sizes |= {"temporal_patch_size": 2, "temporal_window": 1 + (size.frames - 1) // 2}
        with torch.device("meta"):  # where not every quantizer can be built
            shape = CViViT(**self.sizes | {"quantizer": "vq", "quantizer_kwargs": None})
        self.config, self.num_tokens = shape.config | self.sizes, shape.codebook_size
        self.grid = shape.grid(self.frames)
        self.tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.clip = (self.frames, *shape.image_size)
        self.ids = torch.randint(self.num_tokens, (self.batch, *self.grid), device=self.device)
        self.video = torch.rand(self.batch, 3, *self.clip, device=self.device)
        self.text = torch.randn(self.batch, TEXT, size.width, device=self.device)

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
        sizes = {"num_tokens": self.num_tokens, "grid": self.grid, "dim_context": self.size.width}
        if self.case["mode"] == "plain":
            with torch.device("meta"):
                config = MaskGit(**self.size.maskgit, **sizes).config
            return PlainMaskGit(config, mean_share(config["schedule"])).to(self.device)
        maskgit = MaskGit(**self.size.maskgit, **sizes).to(self.device)
        if self.case["mode"] == "compiled":
            maskgit.transformer.compile()
        return maskgit

    def under_precision(self, call: Callable[[], object]) -> Callable[[], object]:
        """A call with an autocast of its own: what one keeps of the weights is no gain of the next."""

        def cast() -> object:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.case["precision"] == "bfloat16"):
                return call()

        return cast

    def step(self, module: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        """A training step, as a callable."""
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
    loss = patch("phenaki_pytorch.maskgit.draw_mask", partial(draw_mask, progress=progress))(
        lambda: maskgit(parts.ids, parts.text)
    )
    return Pass(parts.step(maskgit, loss), work, parts.batch * parts.frames, x=parts.batch)


def mean_progress(schedule: str) -> torch.Tensor:
    """Where a schedule masks as much as it does on average."""
    progress = torch.linspace(0, 1, 10_001)
    return progress[(mask_share(progress, schedule) - mean_share(schedule)).abs().argmin()]


def generate(steps: int) -> Callable[[Parts], Pass]:
    def build(parts: Parts) -> Pass:
        maskgit = parts.maskgit.eval()
        work = parts.batch * generate_work(maskgit.config, parts.tokens, TEXT, steps, guided=True)
        call = parts.under_precision(lambda: maskgit.generate(context=parts.text, steps=steps))
        return Pass(call, work, parts.batch * parts.frames, x=parts.tokens)

    return build


def long_generate(parts: Parts) -> Pass:
    """As many windows as the case says, 18 guided steps each, decoded; the first frames of all but one are given."""
    phenaki = Phenaki(cvivit=parts.cvivit, maskgit=parts.maskgit, text_encoder=lambda texts: None).eval()
    windows, cvivit = parts.case["windows"], parts.cvivit.config
    frames = parts.frames + (windows - 1) * (parts.frames - OVERLAP)
    given = parts.tokens // parts.grid[0] * (1 + (OVERLAP - 1) // 2)
    one = decode_work(cvivit, *parts.clip)
    work = generate_work(parts.maskgit.config, parts.tokens, TEXT, 18, guided=True) + one
    again = generate_work(parts.maskgit.config, parts.tokens, TEXT, 18, guided=True, drawn=parts.tokens - given)
    work += (windows - 1) * (again + one + encode_work(cvivit, OVERLAP, *parts.clip[1:]))
    began = []

    def note(passes: Iterable) -> Iterable:
        began.append(time.perf_counter())
        return passes

    options = {"num_frames": frames, "overlap": OVERLAP, "steps": 18, "progress": note}
    generate = parts.under_precision(lambda: phenaki.generate(text_embeds=parts.text, **options))

    def call() -> None:
        began.clear()
        generate()
        began.append(time.perf_counter())

    return Pass(call, parts.batch * work, parts.batch * frames, x=windows, began=began)


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


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str) -> float:
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def peak(precision: str, device: str, for_seconds: float = 0.4) -> float:
    """Operations a second of the product of two square matrices, the best of many."""
    side = 8192 if device == "cuda" else 2048
    dtype = getattr(torch, precision)
    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times, began = [], time.perf_counter()
    while time.perf_counter() - began < for_seconds or len(times) < 3:
        times.append(seconds(lambda: one @ two, device))
    return 2 * side**3 / min(times)


def mebibytes(device: str) -> float:
    """The most memory that has been held, since `forget_peak` where that is possible: of the device, or the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if PROCESS.is_file():
        [held] = [line.split()[1] for line in PROCESS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(held) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak(device: str) -> None:
    """What importing or compiling took for a moment is no part of what a pass takes; Linux and CUDA can forget it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif PROCESS.is_file():
        PROCESS.with_name("clear_refs").write_text("5")


def main() -> None:
    case = json.loads(sys.argv[1])
    device = case["device"]
    torch.manual_seed(0)
    forget_peak(device)
    imported = mebibytes(device)
    todo = PASSES[case["pass"]](Parts(SIZES[case["size"]], case))
    todo.call()  # compiles and warms up
    if case["mode"] == "products":
        todo = todo._replace(call=products_of(todo.call), began=())
    forget_peak(device)
    todo.call()
    memory = mebibytes(device) - imported  # before the peak's own matrices are there, and the plain model
    plain = None
    if case.get("beside_plain"):
        plain = PASSES[case["pass"]](Parts(SIZES[case["size"]], case | {"mode": "plain"}))
        plain.call()
    peaks, times, each, ratios = [peak(case["precision"], device)], [], [], []
    for _ in range(case["repeat"]):
        times.append(seconds(todo.call, device))
        each.append([after - before for before, after in pairwise(todo.began)])
        if plain is not None:
            ratios.append(seconds(plain.call, device) / times[-1])
        peaks.append(peak(case["precision"], device))
    shares = [todo.work / time / max(around) for time, around in zip(times, pairwise(peaks))]
    median = statistics.median(times)
    figures = {
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
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
