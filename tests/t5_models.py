"""Tiny saved T5 models and tokenizers for the tests, and a way to run code in a new interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def save_model(directory, vocab_size=384, d_model=16):
    """Save a random T5 encoder of two layers."""
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(vocab_size=vocab_size, d_model=d_model, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(directory)


def save_words(directory):
    """Save a T5 tokenizer of nine words."""
    from transformers import T5Tokenizer

    words = [f"▁{word}" for word in ("a", "cat", "dog", "runs", "snow", "falls", "on", "the", "hills")]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("▁", -5.0), *((word, -2.0) for word in words)]
    T5Tokenizer(vocab=vocab, extra_ids=4).save_pretrained(directory)


@pytest.fixture(scope="module")
def byte_dir(tmp_path_factory):
    """A directory with a T5 encoder and a tokenizer of bytes."""
    from transformers import ByT5Tokenizer

    directory = tmp_path_factory.mktemp("byt5")
    save_model(directory)
    ByT5Tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def word_dir(tmp_path_factory):
    """A directory with a T5 encoder and a tokenizer of words."""
    directory = tmp_path_factory.mktemp("t5")
    save_model(directory, vocab_size=64)
    save_words(directory)
    return directory


def run_fresh(code, **environment):
    """Run code in a new interpreter, without the hub settings of this one; `environment` is added."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
