"""The figures of tokenizers: a perfect one is right in all, and each fault lowers its own figure."""

import math

import pytest
import torch
from torch import nn

from data.moving_shapes import MovingShapes
from evaluation.measures import edge_energy, flicker, judged_reconstruction, reconstruction, share_of


class Copies(nn.Module):
    """A perfect tokenizer, whose reconstructions `change` then changes."""

    codebook_size = 256

    def __init__(self, change=lambda video: video):
        super().__init__()
        self.change = change

    def encode(self, video):
        self.video = video
        return (video * 255).long().flatten(1)

    def decode(self, ids):
        return self.change(self.video)

    def reconstruct(self, video):
        return self.change(video)


def clips(count=24, **options):
    return MovingShapes("tokenizer", seed=3, **options).told(count)


def turned_at_the_end(video):
    """The last steps go backwards."""
    return torch.cat((video[:, :, :6], video[:, :, 3:6].flip(2)), dim=2)


def test_a_perfect_tokenizer_is_right_in_everything():
    measured = judged_reconstruction(Copies(), *clips())
    assert set(measured) == {f"reconstructed {name}" for name in ("colour", "shape", "motion", "all", "all, white")}
    assert all(share == 1 for share in measured.values())
    assert measured["reconstructed all"].trials == 24 and 0 < measured["reconstructed all, white"].trials < 24


def test_slight_noise_changes_no_verdict():
    # Some of these clips turn late, where frames before the turn are left out.
    videos, captions = clips(80)
    measured = judged_reconstruction(Copies(lambda video: video + 0.015 * torch.randn_like(video)), videos, captions)
    assert measured["reconstructed all"] == 1


@pytest.mark.parametrize("frames", [1, 2, 3, 6])
def test_short_clips_are_judged_right(frames):
    measured = judged_reconstruction(Copies(), *clips(40, num_frames=frames))
    assert all(share == 1 for share in measured.values())


@pytest.mark.parametrize(
    "change, wrong",
    [
        (lambda video: video[:, [2, 0, 1]], "colour"),
        (lambda video: video[:, :, :1].expand_as(video), "motion"),
        (turned_at_the_end, "motion"),
        (lambda video: video.flip(-2), "shape"),  # no triangle is upside down
    ],
    ids=["channels changed", "still", "turned at the end", "upside down"],
)
def test_each_fault_is_detected(change, wrong):
    measured = judged_reconstruction(Copies(change), *clips())
    assert measured[f"reconstructed {wrong}"] < 0.9
    assert measured["reconstructed all"] <= measured[f"reconstructed {wrong}"]


@pytest.mark.parametrize("trials", [13, 32, 40, 500])
def test_intervals_of_shares_lie_in_0_to_1(trials):
    none, half, every = (share_of([row < right for row in range(trials)]) for right in (0, trials / 2, trials))
    assert none.interval()[0] == pytest.approx(0, abs=1e-12) and 0 < none.interval()[1] < 1
    assert every.interval()[1] == pytest.approx(1, abs=1e-12) and 0 < every.interval()[0] < 1
    assert str(none).split()[1] == "[0.0%," and none.interval()[0] < half < every.interval()[1]


def test_soft_edges_have_less_energy_and_changing_errors_flicker():
    videos, _ = clips(4)
    soft = nn.functional.avg_pool3d(videos, (1, 3, 3), stride=1, padding=(0, 1, 1))
    assert edge_energy(soft) < 0.8 * edge_energy(videos)
    assert reconstruction(Copies(lambda _: soft), videos)["edge_energy"] < 0.8
    assert reconstruction(Copies(), videos)["edge_energy"] == 1
    still = 0.1 * torch.randn(4, 3, 1, 32, 32)
    moving = 0.1 * torch.randn_like(videos)
    assert flicker(videos + still, videos) == pytest.approx(0, abs=1e-6)
    assert flicker(videos + moving, videos) == pytest.approx(0.1 * 2**0.5, rel=0.05)


def test_the_edge_energy_of_clips_without_edges_is_unknown():
    grey = torch.full((2, 3, 5, 16, 16), 0.5)
    assert math.isnan(reconstruction(Copies(), grey)["edge_energy"])
