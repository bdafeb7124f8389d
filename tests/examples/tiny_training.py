"""Tiny trainings for the tests of the programs, stopped in this process or killed in another."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training import loop, second_stage, tokenizer

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TOKENIZER_RUN = ["--steps", "4", "--checkpoint-every", "2", "--size", "16", "--batch-size", "2", "--precision", "no"]
TOKENIZER = [*TOKENIZER_RUN, *("--frames", "5", "--dim", "32", "--spatial-depth", "1", "--levels", "4", "4", "4")]
PRIOR_RUN = [
    *("--steps", "4", "--checkpoint-every", "2", "--encoded", "8", "--dim", "32", "--depth", "1", "--batch-size", "2"),
    *("--prompts", "0", "--precision", "no"),
]
PRIOR = [*PRIOR_RUN, "--sampling-steps", "1", "--stories", "0"]
STILL = ["--lr", "1e-12", "--precision", "no"]  # the weights stay as they are, to within rounding


def run(main, argv):
    """Run a program without what it draws and measures at the end, which takes longer than a tiny training."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (loop, "write_curves"),
            (tokenizer, "show_reconstructions"),
            (second_stage, "show_samples"),
            (second_stage, "write_results"),
        ):
            patch.setattr(module, name, lambda *given, **named: None)
        main(argv)


class StoppedError(Exception):
    """Ends a training in this process."""


def run_stopped(main, argv, *, after):
    """Run a program that ends as soon as the checkpoint of a step is written."""
    save = loop.save_checkpoint

    def save_and_stop(folder, state):
        save(folder, state)
        if state["step"] == after:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_stop)
        with pytest.raises(StoppedError):
            run(main, argv)


def run_killed(program, argv, *, at):
    """Run a program in another process, and kill it as soon as a checkpoint is there, during the steps after it."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / program), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not at.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def assert_same_weights(*folders):
    """Compare the saved weights of modules bit for bit."""
    first, *others = (load_file(folder / "model.safetensors") for folder in folders)
    for other in others:
        assert first.keys() == other.keys()
        assert [name for name in first if not torch.equal(first[name], other[name])] == []


def assert_close_weights(*folders):
    """Compare the saved weights of modules to within rounding."""
    first, *others = (load_file(folder / "model.safetensors") for folder in folders)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-5, atol=1e-7)
