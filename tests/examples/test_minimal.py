"""minimal.py: both stages train and leave a GIF, and nothing of examples/ but one data set is imported."""

import ast
from pathlib import Path

import pytest
import torch
from PIL import Image

import minimal


def test_a_few_steps_of_each_stage_leave_an_animated_gif_and_nothing_else(tmp_path):
    path = tmp_path / "runs" / "minimal.gif"
    phenaki = minimal.main(tokenizer_steps=2, maskgit_steps=2, clips=8, path=path)
    assert [each for each in tmp_path.rglob("*") if each.is_file()] == [path]
    with Image.open(path) as gif:
        assert gif.n_frames == minimal.FRAMES
        assert gif.size == (8 * minimal.SIZE, 8 * minimal.SIZE)
    assert phenaki.window == minimal.FRAMES
    assert not any(parameter.requires_grad for parameter in phenaki.cvivit.parameters())


def test_it_imports_only_the_library_torch_pil_and_one_data_set():
    tree = ast.parse(Path(minimal.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    others = {
        module
        for module in modules
        if module.split(".")[0] not in ("torch", "PIL", "argparse", "time", "pathlib", "collections", "itertools")
    }
    assert others == {"phenaki_pytorch", "data.moving_shapes"}


def test_the_text_encoder_distinguishes_words_and_their_order():
    embeddings, mask = minimal.read_texts(["a red circle moves left", "a red circle"])
    assert embeddings.shape == (2, minimal.LONGEST, len(minimal.WORDS) + minimal.LONGEST)
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    torch.testing.assert_close(embeddings[0, :3], embeddings[1, :3])
    assert not embeddings[1, 3:].any()
    first, second = (minimal.read_texts([text])[0] for text in ("red moves", "moves red"))
    assert not torch.equal(first, second)
    with pytest.raises(ValueError):
        minimal.read_texts(["a pink circle"])


def test_a_path_that_cannot_be_written_is_found_before_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(minimal, "train", lambda *given, **named: pytest.fail("trained"))
    with pytest.raises(IsADirectoryError):
        minimal.main(path=tmp_path)
