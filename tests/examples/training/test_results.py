"""The samples that train_prior.py leaves: a story as well where the model reads texts and a window has the room."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from conftest import WordEncoder, tiny_frame_encoder, tiny_phenaki, tiny_videogpt
from data.conditions import CONDITIONS, Conditions
from data.encoded import Encoded
from data.moving_shapes import prompts, stories
from training import results


@pytest.fixture
def drawn(monkeypatch):
    """The names of the files that would be written, with the titles of their rows, or the length of the video."""
    files = {}
    monkeypatch.setattr(
        results, "write_sheet", lambda path, rows, **_: files.update({path.name: [title for title, _ in rows]})
    )
    monkeypatch.setattr(results, "write_gif", lambda path, video, *_: files.update({path.name: video.shape[1]}))
    return files


def arguments(frames, data="moving_shapes", condition=("text",), **options):
    told = {"prior": "maskgit", "condition": [*condition], "sampling_steps": 1, "cond_scale": 2.0} | options
    return Namespace(data=data, out=Path("out"), seed=0, frames=frames, size=16, fps=None, **told)


def clips(**told):
    captions = [[text] * 6 for text in ("up", "down", "up")]
    return Encoded(torch.zeros(3, 6, 2, 2, dtype=torch.int64), captions, told=told)


def show(args, model):
    results.show_samples(args, model, clips(), Conditions(args.condition, encoder=WordEncoder()))


@pytest.mark.parametrize(
    "data, samples, scenes",
    [("moving_shapes", prompts("seen", 8), [*stories(1)[0]]), ("folder", ["up", "down", "up"], ["up", "down"])],
)
def test_a_model_that_reads_texts_draws_samples_and_a_story(drawn, data, samples, scenes):
    show(arguments(11, data), tiny_phenaki())
    # A window of 11 frames, and scenes that share 5 frames with those before.
    length = 11 + 6 * (len(scenes) - 1)
    assert drawn == {"samples.png": samples, "samples.gif": 11, "story.png": scenes, "story.gif": length}


def test_an_unconditional_model_draws_samples_without_titles_only(drawn):
    show(arguments(11, condition=["none"]), tiny_phenaki(dim_context=None))
    assert drawn == {"samples.png": [""] * 3, "samples.gif": 11}


def test_a_model_of_images_draws_no_story(drawn):
    show(arguments(1), tiny_phenaki(grid=(1, 2, 2)))
    assert drawn == {"samples.png": prompts("seen", 8), "samples.gif": 1}


PARTS = {
    "text": {"dim_context": 12},
    "frames": {"frame_encoder": tiny_frame_encoder()},
    "actions": {"dim_action": 2},
    "classes": {"num_classes": 2},
}


@pytest.mark.parametrize("condition", [*([name] for name in CONDITIONS), CONDITIONS], ids="+".join)
def test_samples_of_a_gpt_have_what_it_was_told_of_clips(drawn, condition):
    model = tiny_videogpt(**{key: value for name in condition for key, value in PARTS[name].items()})
    told = {"frames": torch.randint(256, (3, 3, 1, 16, 16)).byte(), "actions": torch.rand(3, 12, 2)}
    shown = clips(**{name: values for name, values in told.items() if name in condition})
    conditions = Conditions(condition, encoder=WordEncoder(), classes=["down", "up"], actions=["left", "right"])
    generate, given = model.generate, {}
    model.generate = lambda **asked: given.update(asked) or generate(**asked)
    results.show_samples(arguments(12, "folder", condition, prior="gpt", cond_scale=1.0), model, shown, conditions)
    titles = ["up", "down", "up"] if {"text", "classes"} & {*condition} else [""] * 3
    assert drawn == {"samples.png": titles, "samples.gif": 12}
    expected = conditions.collate([shown[index] for index in range(3)])
    assert given.keys() >= expected.keys() - {"video_ids"} and given["batch_size"] == 3
    assert all(torch.equal(given[name], expected[name]) for name in expected.keys() - {"video_ids"})


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
