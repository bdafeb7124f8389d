"""Perceptual distances for the tokenizer's loss: any feature extractor, wrapped; two small ones for moving shapes.

    distance = FeatureDistance(network, prepare)         # network: frames or clips -> one map of features, or several
    loss = cvivit(video, image_perceptual=distance)

A torchvision network gives several maps through its own feature extraction:

    from torchvision.models import VGG16_Weights, vgg16
    from torchvision.models.feature_extraction import create_feature_extractor

    weights = VGG16_Weights.DEFAULT
    vgg = create_feature_extractor(vgg16(weights=weights).features, ["3", "8", "15", "22"])
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    distance = FeatureDistance(vgg, lambda frames: (frames - mean.to(frames)) / std.to(frames))

A network saved by TorchScript is wrapped alike: `FeatureDistance(torch.jit.load("i3d.pt"), prepare)`.

b = batch · n = frames or clips · c = channels · f = frames of a clip
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moving_shapes import COLOURS, MOTIONS, SHAPES, MovingShapes


class FeatureDistance(nn.Module):
    """(made, real), frames (n, c, h, w) or clips (n, c, f, h, w) -> distances (n,).

    The features of every place are scaled to length 1, so that loud maps do not drown the others, and compared by
    their squared difference: LPIPS (Zhang et al. 2018, https://arxiv.org/abs/1801.03924) without its learned weights.
    """

    def __init__(self, network: nn.Module, prepare: Callable[[Tensor], Tensor] = lambda frames: frames):
        super().__init__()
        self.network = network
        self.prepare = prepare
        self.eval()
        for parameter in network.parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> nn.Module:
        """Stays as in evaluation, whatever it is a part of: the network is given, not trained."""
        return super().train(False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        with torch.no_grad():
            expected = self._features(real)
        pairs = zip(self._features(made), expected)
        return sum((one - two).square().sum(dim=1).flatten(1).mean(dim=1) for one, two in pairs)

    def _features(self, frames: Tensor) -> list[Tensor]:
        maps = self.network(self.prepare(frames))
        if isinstance(maps, Tensor):
            maps = [maps]
        elif isinstance(maps, dict):
            maps = list(maps.values())
        return [F.normalize(each.float(), dim=1) for each in maps]


class Classifier(nn.Module):
    """A small convolutional network whose `layers` give maps of features, and whose heads read labels off the last."""

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
        last = self(frames)[-1].flatten(2)
        return [head(torch.cat((last.mean(dim=2), last.amax(dim=2)), dim=1)) for head in self.heads]


def labels_of(dataset: MovingShapes, indices: Iterable[int], *, motion: bool) -> list[Tensor]:
    """Shape and colour of each clip, and its motion at the end."""
    clips = [dataset.clip(index) for index in indices]
    labels = [[list(SHAPES).index(clip.shape) for clip in clips], [list(COLOURS).index(clip.colour) for clip in clips]]
    if motion:
        labels.append([list(MOTIONS).index(clip.motions[-1]) for clip in clips])
    return [torch.tensor(each) for each in labels]


def classifier(frames: int) -> Classifier:
    """Untrained: of images (one frame), by shape and colour, or of clips, by their motion too."""
    if frames == 1:
        return Classifier(nn.Conv2d, 2, [len(SHAPES), len(COLOURS)])
    return Classifier(nn.Conv3d, (1, 2, 2), [len(SHAPES), len(COLOURS), len(MOTIONS)])


def train_classifier(size: int, *, frames: int, steps: int, batch: int = 32, seed: int = 0) -> tuple[Classifier, float]:
    """A classifier of moving shapes, images (one frame) or clips, and the share of labels that it has right."""
    torch.manual_seed(seed)
    model = classifier(frames)
    dataset = MovingShapes("tokenizer", size=size, num_frames=frames, length=(steps + 8) * batch, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)

    def batch_of(step: int) -> tuple[Tensor, list[Tensor]]:
        indices = range(step * batch, (step + 1) * batch)
        video = torch.stack([item["video"] for item in dataset.__getitems__(indices)])
        return (video[:, :, 0] if frames == 1 else video), labels_of(dataset, indices, motion=frames > 1)

    for step in range(steps):
        video, labels = batch_of(step)
        # Noise, so that the features are not those of flawless edges alone.
        video = (video + 0.05 * torch.rand(batch, 1, *[1] * (video.ndim - 2)) * torch.randn_like(video)).clamp(0, 1)
        loss = sum(F.cross_entropy(logits, label) for logits, label in zip(model.logits(video), labels))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
    with torch.no_grad():
        right = []
        for step in range(steps, steps + 8):
            video, labels = batch_of(step)
            right += [logits.argmax(1) == label for logits, label in zip(model.logits(video), labels)]
    return model, torch.stack(right).float().mean().item()
