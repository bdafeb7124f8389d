"""One pass of benchmark.py, measured in this process: prints its figures as JSON."""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from least_work import decode_work, encode_work, generate_work, maskgit_step_work, tokenizer_step_work
from phenaki_pytorch import CViViT, MaskGit, Phenaki

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
    # The paper's.
    "paper": Size(
        PAPERS,
        11,
        {"dim": 2048, "depth": 24, "heads": 32},
        4096,
    ),
}


class Pass(NamedTuple):
    """What to call, its least work, how many frames come of it, and what it is plotted over."""

    call: Callable[[], object]
    work: float
    frames: int | None = None
    x: float | None = None


class Parts:
    """The models of a size, on a device, and clips for them."""

    def __init__(self, size: Size, case: dict):
        self.device, self.case, self.batch = case["device"], case, case.get("batch", 1)
        sizes = dict(size.cvivit)
        if "side" in case:
            sizes["image_size"] = case["side"] * sizes["patch_size"]
        self.frames = size.frames
        window = 1 + (size.frames - 1) // 2
        self.cvivit = CViViT(**sizes, temporal_patch_size=2, temporal_window=window).to(self.device)
        self.grid = self.cvivit.grid(self.frames)
        self.tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.clip = (self.frames, *self.cvivit.image_size)
        maskgit = {"num_tokens": self.cvivit.codebook_size, "grid": self.grid, "dim_context": size.width}
        self.maskgit = MaskGit(**size.maskgit, **maskgit).to(self.device)
        if case["mode"] == "compiled":
            self.cvivit.encoder.compile()
            self.cvivit.decoder.compile()
            self.maskgit.transformer.compile()
        shape = (self.batch, *self.grid)
        self.ids = torch.randint(self.cvivit.codebook_size, shape, device=self.device)
        self.video = torch.rand(self.batch, 3, *self.clip, device=self.device)
        self.text = torch.randn(self.batch, TEXT, size.width, device=self.device)

    def step(self, module: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        """A training step, as a callable."""
        optimizer = torch.optim.AdamW(module.train().parameters(), lr=1e-4, fused=True)

        def step() -> None:
            loss().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def encode(parts: Parts) -> Pass:
    cvivit = parts.cvivit.eval()
    work = parts.batch * encode_work(cvivit.config, *parts.clip)
    return Pass(torch.no_grad()(lambda: cvivit.encode(parts.video)), work, parts.batch * parts.frames)


def decode(parts: Parts) -> Pass:
    cvivit = parts.cvivit.eval()
    work = parts.batch * decode_work(cvivit.config, *parts.clip)
    return Pass(torch.no_grad()(lambda: cvivit.decode(parts.ids)), work, parts.batch * parts.frames)


def tokenizer_step(parts: Parts) -> Pass:
    work = parts.batch * tokenizer_step_work(parts.cvivit.config, *parts.clip)
    call = parts.step(parts.cvivit, lambda: parts.cvivit(parts.video))
    return Pass(call, work, parts.batch * parts.frames)


def maskgit_step(parts: Parts) -> Pass:
    maskgit = parts.maskgit
    work = parts.batch * maskgit_step_work(maskgit.config, parts.tokens, TEXT)
    call = parts.step(maskgit, lambda: maskgit(parts.ids, parts.text))
    return Pass(call, work, parts.batch * parts.frames, x=parts.batch)


def generate(steps: int) -> Callable[[Parts], Pass]:
    def build(parts: Parts) -> Pass:
        maskgit = parts.maskgit.eval()
        work = parts.batch * generate_work(maskgit.config, parts.tokens, TEXT, steps, guided=True)
        call = lambda: maskgit.generate(context=parts.text, steps=steps)  # noqa: E731
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
    options = {"num_frames": frames, "overlap": OVERLAP, "steps": 18}
    call = lambda: phenaki.generate(text_embeds=parts.text, **options)  # noqa: E731
    return Pass(call, parts.batch * work, parts.batch * frames, x=windows)


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


def peak(precision: str, device: str, for_seconds: float = 1.5) -> float:
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


def forget_peak() -> None:
    """What importing took for a moment is no part of what a pass takes; Linux can forget it."""
    if PROCESS.is_file():
        PROCESS.with_name("clear_refs").write_text("5")


def main() -> None:
    case = json.loads(sys.argv[1])
    device = case["device"]
    torch.manual_seed(0)
    forget_peak()
    imported = mebibytes(device)
    parts = Parts(SIZES[case["size"]], case)
    todo = PASSES[case["pass"]](parts)
    with torch.autocast(device, torch.bfloat16, enabled=case["precision"] == "bfloat16"):
        for _ in range(2):  # the first compiles and warms up
            todo.call()
        memory = mebibytes(device) - imported
        before = peak(case["precision"], device)
        times = [seconds(todo.call, device) for _ in range(case["repeat"])]
        after = peak(case["precision"], device)
    median, most = statistics.median(times), max(before, after)
    figures = {
        "seconds": median,
        "GFLOP": todo.work / 1e9,
        "peak GFLOP/s": most / 1e9,
        "share": todo.work / median / most,
        "MiB": memory,
        "frames/s": None if todo.frames is None else todo.frames / median,
        "x": todo.x,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
