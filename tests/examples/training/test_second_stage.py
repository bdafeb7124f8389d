"""The second stage: its words and names in the plan, and what of the data a prior can be told."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch

from data.conditions import Captions, Conditions
from data.encoded import Encoded
from data.word_vectors import WordVectors
from training.plans import write_object
from training.second_stage import conditions_of, names_of, words


class Clips:
    """What is read of a data set."""

    def __init__(self, captions=("a", "b"), action_names=(), actions=(True, True)):
        self.captions, self.action_names = captions, action_names
        self.actions = [rows or None for rows in actions]
        self.paths = [Path(f"{number}.mp4") for number in range(len(actions))]

    def every_caption(self):
        return self.captions


def read(videos, images=None, *, condition=("classes",), **options):
    args = {"condition": list(condition), "model": None, "resume": False, "out": Path("out")} | options
    return conditions_of(Namespace(**args), (videos, images))


def planned(folder, **names):
    """The folder of a model with these names in its plan."""
    write_object(folder / "plan.json", {"steps": 1, "arguments": {}, **names})
    return folder / "model"


def test_classes_are_the_captions_of_videos_and_images():
    conditions = read(Clips(["moves", "turns"]), Clips(["stands", "turns"]))
    assert conditions.classes == ["moves", "stands", "turns"]
    assert names_of(conditions) == {"classes": conditions.classes}
    assert names_of(Conditions(["none"])) == {}


@pytest.mark.parametrize("begun", [{"resume": True}, {"model": True}], ids=["resumed", "from a model"])
def test_classes_and_actions_keep_the_numbers_that_the_training_began_with(tmp_path, begun):
    model = planned(tmp_path, classes=["b", "c", "a"], actions=["left", "right"])
    options = {"condition": ["classes", "actions"], "out": tmp_path} | begun
    options |= {"model": str(model)} if "model" in begun else {}
    conditions = read(Clips(["a", "b"], ["left", "right"]), **options)
    assert conditions.classes == ["b", "c", "a"] and conditions.actions == ["left", "right"]
    with pytest.raises(ValueError, match="training has the classes b, c, a, --data also has d"):
        read(Clips(["a", "d"], ["left", "right"]), **options)
    with pytest.raises(ValueError, match="training has the actions left, right, --data has right, left"):
        read(Clips(["a", "b"], ["right", "left"]), **options)


@pytest.mark.parametrize(
    "condition, videos, images, message",
    [
        ("classes", Clips(["", "a"]), None, r"needs a caption for every clip, .*got \['', 'a'\]"),
        ("classes", Clips(["a"]), None, r".* two of them, got \['a'\]"),
        ("actions", Clips(), None, "needs videos with an actions.csv"),
        ("actions", None, Clips(), "needs videos with an actions.csv"),
        ("actions", Clips(action_names=["left"]), Clips(), "needs videos with an actions.csv in --data, and no images"),
        (
            "actions",
            Clips(action_names=["left"], actions=[True, False]),
            None,
            "needs rows in actions.csv for all videos, got none for 1.mp4",
        ),
    ],
)
def test_data_without_what_the_prior_is_told_is_refused(condition, videos, images, message):
    with pytest.raises(ValueError, match=f"--condition {condition} {message}"):
        read(videos, images, condition=[condition])


def test_the_words_of_the_captions_are_known_where_each_word_has_its_vector():
    captions = [["a red circle turns left", "a red circle moves left"], ["a Blue circle"] * 2]
    encoded = [None, Encoded(torch.zeros(2, 2, 1, 1), captions)]
    assert words(Captions(WordVectors()), encoded) == {
        "words": ["a", "blue", "circle", "left", "moves", "red", "turns"]
    }
    assert words(Captions(None), encoded) == {}
