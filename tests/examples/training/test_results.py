"""The samples that train_prior.py leaves: a story as well where the model reads texts and a window has the room."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from conftest import tiny_phenaki
from data.encoded import Encoded
from training import results


@pytest.fixture
def drawn(monkeypatch):
    """The names of the files that would be written, with the rows of frames in them or the length of the video."""
    files = {}
    monkeypatch.setattr(results, "write_sheet", lambda path, rows, **_: files.update({path.name: len(rows)}))
    monkeypatch.setattr(results, "write_gif", lambda path, video, *_: files.update({path.name: video.shape[1]}))
    return files


def arguments(frames, data="moving_shapes"):
    sampling = {"sampling_steps": 1, "cond_scale": 2.0}
    return Namespace(data=data, out=Path("out"), seed=0, frames=frames, size=16, fps=None, **sampling)


def clips():
    return Encoded(torch.zeros(3, 6, 2, 2, dtype=torch.int64), [[text] * 6 for text in ("up", "down", "up")])


@pytest.mark.parametrize("data, samples, scenes", [("moving_shapes", 8, 3), ("folder", 2, 2)])
def test_a_model_that_reads_texts_draws_samples_and_a_story(drawn, data, samples, scenes):
    results.show_samples(arguments(11, data), tiny_phenaki(), clips())
    # A window of 11 frames, and scenes that share 5 frames with those before.
    assert drawn == {"samples.png": samples, "samples.gif": 11, "story.png": scenes, "story.gif": 11 + 6 * (scenes - 1)}


def test_an_unconditional_model_draws_samples_only(drawn):
    results.show_samples(arguments(11), tiny_phenaki(dim_context=None), clips())
    assert drawn == {"samples.png": 8, "samples.gif": 11}


def test_a_model_of_images_draws_no_story(drawn):
    results.show_samples(arguments(1), tiny_phenaki(grid=(1, 2, 2)), clips())
    assert drawn == {"samples.png": 8, "samples.gif": 1}


@pytest.mark.parametrize("frames, judged", [(7, {"text", "story"}), (5, set())])
def test_samples_and_stories_are_judged_where_clips_are_long_enough(monkeypatch, frames, judged):
    class Shares:
        def shares(self):
            return {"all": 1.0}

    monkeypatch.setattr(results, "text_to_video", lambda *_, **__: Shares())
    monkeypatch.setattr(results, "story", lambda *_, **__: {"every scene right": 1.0})
    monkeypatch.setattr(results, "held_out", lambda *_: (torch.rand(2, 3, frames, 16, 16), ["a red circle"] * 2))
    args = Namespace(**vars(arguments(frames)), prompts=1, stories=1)
    measured = results.measure(args, tiny_phenaki(grid=((frames + 1) // 2, 2, 2)), (None, None))
    assert {"psnr_first", "reconstructed all"} <= measured.keys()
    assert {name.split()[0] for name in measured if name.split()[0] in ("text", "story")} == judged
