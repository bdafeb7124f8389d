"""Classes and actions become the condition of the norms: one vector for each time step, of its own frames alone."""

import pytest
import torch

from conftest import ToyTokenizer, tiny_gpt, tiny_vqgan, tiny_vqvae
from phenaki_pytorch.conditions.labels import Labels

LIKE = torch.zeros(())
# Frames of the first time step and of each further one.
LENGTHS = pytest.mark.parametrize("first, step", [(1, 2), (2, 2), (3, 1), (1, 1)])


def labels(first=1, step=2, num_classes=None, dim_action=None):
    return Labels(ToyTokenizer(first, step), num_classes, dim_action)


def condition_of(module, b=2, f=7, classes=None, actions=None, like=LIKE):
    return module.condition(classes, actions, batch_size=b, num_frames=f, like=like)


@LENGTHS
def test_the_actions_of_a_time_steps_frames_stand_in_it_in_order(first, step):
    module, f = labels(first, step, dim_action=2), first + 3 * step
    actions = torch.randn(2, f, 2)
    condition, longest = condition_of(module, f=f, actions=actions), max(first, step)
    assert condition.shape == (2, 4, longest * 2) and module.width == longest * 2
    begin = 0
    for t in range(4):
        length = first if t == 0 else step
        own = condition[:, t].reshape(2, longest, 2)
        assert torch.equal(own[:, longest - length :], actions[:, begin : begin + length])
        assert not own[:, : longest - length].any()
        begin += length


@LENGTHS
def test_an_action_changes_the_condition_of_its_frames_time_step_alone(first, step):
    module, f = labels(first, step, num_classes=3, dim_action=2), first + 3 * step
    classes, actions = torch.tensor([0, 2]), torch.randn(2, f, 2)
    before = condition_of(module, f=f, classes=classes, actions=actions)
    for frame in range(f):
        other = actions.clone()
        other[1, frame, 0] += 1
        changed = (condition_of(module, f=f, classes=classes, actions=other) != before).any(dim=-1)
        own = 0 if frame < first else 1 + (frame - first) // step
        assert changed.tolist() == [[False] * 4, [t == own for t in range(4)]]


def test_classes_are_one_hot_in_every_time_step():
    classes, actions = torch.tensor([0, 2]), torch.randn(2, 7, 2)
    condition = condition_of(labels(num_classes=3, dim_action=2), classes=classes, actions=actions)
    assert condition.shape == (2, 4, 3 + 4)
    expected = torch.tensor([[1.0, 0, 0], [0, 0, 1]])[:, None].expand(-1, 4, -1)
    assert torch.equal(condition[:, :, :3], expected)
    assert torch.equal(condition[:, :, 3:], condition_of(labels(dim_action=2), actions=actions))


def test_classes_alone_are_one_condition_that_a_gpt_takes_for_all_time_steps():
    module = labels(num_classes=3)
    condition = condition_of(module, classes=torch.tensor([0, 2]))
    assert torch.equal(condition, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    model = tiny_gpt(dim_condition=module.width)
    model(torch.zeros(2, 6, 2, 2, dtype=torch.int64), condition=condition)


def test_with_nothing_to_condition_on_there_is_no_condition():
    assert labels().width is None and condition_of(labels()) is None


@pytest.mark.parametrize("build, width", [(tiny_vqvae, 2 * 5), (tiny_vqgan, 2 * 5)])
def test_the_width_follows_the_tokenizers_time_steps(build, width):
    tokenizer = build(trained=False)
    assert Labels(tokenizer, None, 5).width == width
    assert Labels(tokenizer, 3, 5).width == width + 3
    assert Labels(tokenizer, 3, None).width == 3


def test_the_dtype_is_that_of_the_model():
    like = torch.zeros((), dtype=torch.bfloat16)
    module = labels(num_classes=3, dim_action=1)
    actions = torch.randint(0, 2, (2, 7, 1))  # of any kind of number
    assert condition_of(module, classes=torch.tensor([0, 1]), actions=actions, like=like).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"classes": None}, "expected some classes, got none"),
        ({"actions": None}, "expected some actions, got none"),
        ({"classes": torch.tensor([0, 3])}, r"classes must lie in \[0, 3\), got \[0, 3\]"),
        ({"classes": torch.tensor([0, -1])}, r"classes must lie in \[0, 3\), got \[0, -1\]"),
        ({"classes": torch.tensor([0])}, r"classes must be int64 \(2,\), got torch.int64 \(1,\)"),
        ({"classes": torch.tensor(0)}, r"classes must be int64 \(2,\), got torch.int64 \(\)"),
        ({"classes": torch.tensor([0.0, 1.0])}, r"classes must be int64 \(2,\), got torch.float32 \(2,\)"),
        ({"actions": torch.randn(2, 6, 2)}, r"actions must be \(2, 7, 2\), one for each frame, got \(2, 6, 2\)"),
        ({"actions": torch.randn(2, 7)}, r"actions must be \(2, 7, 2\), one for each frame, got \(2, 7\)"),
        ({"actions": torch.full((2, 7, 2), float("nan"))}, "actions must be finite, got nan"),
    ],
)
def test_labels_that_do_not_fit_are_refused(changes, message):
    given = {"classes": torch.tensor([0, 1]), "actions": torch.randn(2, 7, 2)}
    with pytest.raises(ValueError, match=message):
        condition_of(labels(num_classes=3, dim_action=2), **{**given, **changes})


def test_labels_that_are_not_asked_for_are_refused():
    with pytest.raises(ValueError, match="expected none classes, got some"):
        condition_of(labels(), classes=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected none actions, got some"):
        condition_of(labels(), actions=torch.randn(2, 7, 1))
