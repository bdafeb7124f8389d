"""Perceptual distances for the tokenizer's loss: a wrapper of any network, and two small networks for moving shapes.

    distance = FeatureDistance(network, prepare)         # network: frames or clips -> one feature map, or several
    loss = cvivit(video, image_perceptual=distance)

torchvision extracts several feature maps of a network:

    from torchvision.models import VGG16_Weights, vgg16
    from torchvision.models.feature_extraction import create_feature_extractor

    weights = VGG16_Weights.DEFAULT
    vgg = create_feature_extractor(vgg16(weights=weights).features, ["3", "8", "15", "22"])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    distance = FeatureDistance(vgg, lambda frames: (frames - mean.to(frames)) / std.to(frames))

A network that TorchScript saved is wrapped the same way: `FeatureDistance(torch.jit.load("i3d.pt"), prepare)`.

b = batch · n = frames or clips · c = channels · f = frames of a clip
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.moving_shapes import COLOURS, MOTIONS, SHAPES, MovingShapes

TEST_BATCHES = 8


class FeatureDistance(nn.Module):
    """(reconstruction, video), frames (n, c, h, w) or clips (n, c, f, h, w) -> distances (n,).

    The features of every position are scaled to length 1, so that maps of large values do not dominate, and compared
    by their squared difference: LPIPS (Zhang et al. 2018, https://arxiv.org/abs/1801.03924) without learned weights.

    network  gives a feature map, a list of them, or a dict; it is frozen and stays in eval mode
    prepare  what the network needs done to frames in [0, 1] first
    """

    def __init__(self, network: nn.Module, prepare: Callable[[Tensor], Tensor] = lambda frames: frames):
        super().__init__()
        self.network = network
        self.prepare = prepare
        self.eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        """The network stays in eval mode, also as a part of a module that is trained."""
        return super().train(False)

    def forward(self, reconstruction: Tensor, video: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self._features(video)
        pairs = zip(self._features(reconstruction), expected)
        return sum((one - two).square().sum(dim=1).flatten(1).mean(dim=1) for one, two in pairs)

    def _features(self, frames: Tensor) -> list[Tensor]:
        maps = self.network(self.prepare(frames))
        if isinstance(maps, Tensor):
            maps = [maps]
        elif isinstance(maps, dict):
            maps = list(maps.values())
        return [F.normalize(each.float(), dim=1) for each in maps]


class Classifier(nn.Module):
    """A small convolutional network: feature maps of its layers, and label logits from the last of them."""

    def __init__(self, convolution: type[nn.Module], stride: int | tuple, labels: Iterable[int], widths=(16, 32, 64)):
        super().__init__()
        ends = zip((3, *widths), widths)
        self.layers = nn.ModuleList(convolution(i, o, 3, stride=stride, padding=1) for i, o in ends)
        self.heads = nn.ModuleList(nn.Linear(2 * widths[-1], count) for count in labels)

    def forward(self, frames: Tensor) -> list[Tensor]:
        x, maps = frames * 2 - 1, []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            maps.append(x)
        return maps

    def logits(self, frames: Tensor) -> list[Tensor]:
        """The logits of each kind of label."""
        last = self(frames)[-1].flatten(2)
        return [head(torch.cat((last.mean(dim=2), last.amax(dim=2)), dim=1)) for head in self.heads]


def labels_of(dataset: MovingShapes, indices: Iterable[int], *, motion: bool) -> list[Tensor]:
    """The labels of clips: shape, colour and, with `motion`, the motion at the end; int64 (n,) each."""
    clips = [dataset.clip(index) for index in indices]
    labels = [[list(SHAPES).index(clip.shape) for clip in clips], [list(COLOURS).index(clip.colour) for clip in clips]]
    if motion:
        labels.append([list(MOTIONS).index(clip.motions[-1]) for clip in clips])
    return [torch.tensor(each) for each in labels]


def classifier(frames: int) -> Classifier:
    """An untrained classifier of images (1 frame) by shape and colour, or of clips by motion, too."""
    if frames == 1:
        return Classifier(nn.Conv2d, 2, [len(SHAPES), len(COLOURS)])
    return Classifier(nn.Conv3d, (1, 2, 2), [len(SHAPES), len(COLOURS), len(MOTIONS)])


def train_classifier(size: int, *, frames: int, steps: int, batch: int = 32, seed: int = 0) -> tuple[Classifier, float]:
    """A trained classifier of moving shapes, images (1 frame) or clips, and its accuracy on other ones."""
    torch.manual_seed(seed)
    model = classifier(frames)
    dataset = MovingShapes("tokenizer", size=size, num_frames=frames, length=(steps + TEST_BATCHES) * batch, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)

    def batch_of(step: int) -> tuple[Tensor, list[Tensor]]:
        indices = range(step * batch, (step + 1) * batch)
        video = torch.stack([item["video"] for item in dataset.__getitems__(indices)])
        return (video[:, :, 0] if frames == 1 else video), labels_of(dataset, indices, motion=frames > 1)

    for step in range(steps):
        video, labels = batch_of(step)
        # With noise, because reconstructions are not as clean as the data.
        video = (video + 0.05 * torch.rand(batch, 1, *[1] * (video.ndim - 2)) * torch.randn_like(video)).clamp(0, 1)
        loss = sum(F.cross_entropy(logits, label) for logits, label in zip(model.logits(video), labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = []
        for step in range(steps, steps + TEST_BATCHES):
            video, labels = batch_of(step)
            right += [logits.argmax(1) == label for logits, label in zip(model.logits(video), labels)]
    return model, torch.stack(right).float().mean().item()
