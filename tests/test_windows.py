"""A video of many windows is in memory once."""

import weakref

import pytest
import torch

from conftest import seed, tiny_phenaki
from phenaki_pytorch.windows import joined


@pytest.mark.parametrize("lengths", [[4], [2, 1, 3], [1, 1, 1, 1, 1]])
def test_joined_parts_are_the_whole_and_none_is_kept(lengths):
    whole, alive = torch.rand(2, 3, sum(lengths), 4, 4), []

    def parts():
        for start, length in zip(torch.tensor([0, *lengths]).cumsum(0).tolist(), lengths):
            assert sum(ref() is not None for ref in alive) <= 1
            part = whole[:, :, start : start + length].clone()
            alive.append(weakref.ref(part))
            yield part
            del part

    assert torch.equal(joined(parts(), sum(lengths)), whole)


def test_the_scenes_of_a_story_are_views_of_the_whole():
    whole, scenes = tiny_phenaki().generate_story(["a", "b c", "d"], num_frames=[5, 2, 14], steps=2, generator=seed())
    assert [scene.shape[2] for scene in scenes] == [5, 2, 14]
    assert torch.equal(torch.cat(scenes, dim=2), whole)
    assert all(scene.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() for scene in scenes)
