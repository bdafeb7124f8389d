"""Time, peak speed and peak memory of the machine: a CPU or a CUDA device."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch

PROCESS = Path("/proc/self/status")  # on Linux


def wait(device: str) -> None:
    """Wait until the device has finished all its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], device: str) -> float:
    """The seconds of one call."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def peak(precision: str, device: str, for_seconds: float = 0.4) -> float:
    """Operations per second of the product of two large square matrices: the best of many repetitions."""
    side = 8192 if device == "cuda" else 2048
    dtype = getattr(torch, precision)
    one, two = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times, began = [], time.perf_counter()
    while time.perf_counter() - began < for_seconds or len(times) < 3:
        times.append(seconds(lambda: one @ two, device))
    return 2 * side**3 / min(times)


def mebibytes(device: str) -> float:
    """The peak memory, in MiB, of the device's allocator or of the process, since `reset_peak` where that works."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if PROCESS.is_file():
        [held] = [line.split()[1] for line in PROCESS.read_text().splitlines() if line.startswith("VmHWM")]
        return int(held) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def reset_peak(device: str) -> None:
    """Reset the peak memory, so that imports and compilation do not count. Works on CUDA and on Linux."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif PROCESS.is_file():
        PROCESS.with_name("clear_refs").write_text("5")
