"""Perceptual distances: the wrapper of a network, and the small networks, which learn the labels of shapes."""

import pytest
import torch
from torch import nn

from conftest import same_state, state, tiny_cvivit
from data.moving_shapes import MovingShapes
from training.perceptual import Classifier, FeatureDistance, labels_of, train_classifier


def frames(count=3):
    return torch.rand(count, 3, 16, 16)


class Several(nn.Module):
    """Feature maps by name, as torchvision gives them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3)

    def forward(self, x):
        first = self.first(x)
        return {"first": first, "second": self.second(first)}


@pytest.mark.parametrize("network", [nn.Conv2d(3, 4, 3), Several()], ids=["one map", "maps by name"])
def test_distances_are_0_for_equal_frames_and_grow_with_the_difference(network):
    distance = FeatureDistance(network)
    real, noise = frames(), torch.randn(3, 3, 16, 16)
    assert distance(real, real).tolist() == [0.0] * 3
    near, far = distance(real + 0.02 * noise, real), distance(real + 0.2 * noise, real)
    assert near.shape == (3,) and (near > 0).all() and (near < far).all()


def test_frames_are_prepared_before_the_network_reads_them():
    prepared = FeatureDistance(nn.Conv2d(3, 4, 3), prepare=lambda x: x[:, :, :8])
    real = frames()
    below = real.clone()
    below[:, :, 12:] = 0
    assert prepared(below, real).tolist() == [0.0] * 3
    above = real.clone()
    above[:, :, :4] = 0
    assert (prepared(above, real) > 0).all()


def test_the_network_is_frozen_and_the_gradient_reaches_the_reconstruction():
    network = nn.Conv2d(3, 4, 3)
    reconstruction = frames().requires_grad_()
    FeatureDistance(network)(reconstruction, frames()).sum().backward()
    assert reconstruction.grad.abs().sum() > 0
    assert network.weight.grad is None and not network.weight.requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("scripted", [False, True])
def test_the_network_stays_in_eval_mode_as_a_part_of_a_trained_module(scripted):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    distance = FeatureDistance(torch.jit.script(network) if scripted else network)
    nn.ModuleDict({"image_perceptual": distance}).train()
    before = state(distance)
    tiny_cvivit()(torch.rand(2, 3, 5, 16, 16), image_perceptual=distance).backward()
    assert not any(part.training for part in distance.modules()) and same_state(before, state(distance))


def test_distances_of_frames_and_of_clips_are_terms_of_the_tokenizers_loss():
    video = torch.rand(2, 3, 5, 16, 16)
    image = FeatureDistance(Classifier(nn.Conv2d, 2, [3, 6]))
    clip = FeatureDistance(Classifier(nn.Conv3d, (1, 2, 2), [3, 6, 4]))
    losses = tiny_cvivit().losses(video, image_perceptual=image, video_perceptual=clip)
    assert losses.image_perceptual > 0 and losses.video_perceptual > 0
    losses.total.backward()


def test_labels_describe_the_clips():
    dataset = MovingShapes("captioned_video", size=16, num_frames=5)
    shape, colour, motion = labels_of(dataset, range(20), motion=True)
    for index in range(20):
        _, colour_name, shape_name, _, way = dataset[index]["caption"].split()
        assert ["circle", "square", "triangle"][shape[index]] == shape_name
        assert ["red", "green", "blue", "yellow", "purple", "white"][colour[index]] == colour_name
        assert ["left", "right", "up", "down"][motion[index]] == way
    assert len(labels_of(dataset, range(3), motion=False)) == 2


@pytest.mark.parametrize("length, chance", [(1, (1 / 3 + 1 / 6) / 2), (5, (1 / 3 + 1 / 6 + 1 / 4) / 3)])
def test_the_small_networks_learn_the_labels(length, chance):
    _, right = train_classifier(16, frames=length, steps=60)
    assert right > 2 * chance
    assert train_classifier(16, frames=length, steps=1)[1] < 2 * chance  # the positive control
