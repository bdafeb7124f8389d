"""How a VideoGPT follows what it is told: its loss with a wrong condition, the motion after a first frame, the turns.

b = batch · c = channels · f = frames · h, w = pixels · a = actions
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from tqdm import tqdm

from data.conditions import CONDITIONS, Conditions
from data.encoded import Encoded
from data.moving_shapes import MOTIONS, SPEED, TURN_LATEST, MovingShapes
from data.runs import Labels, device_of
from evaluation.judge import track, wrap
from evaluation.measures import BATCH, Mean, Share, share_of
from evaluation.shifts import follows_turns, horizontal_shifts
from phenaki_pytorch import VideoGPT
from phenaki_pytorch.priors.autoregressive import RasterOptions

STEADY = 0.5  # pixels a frame: how far a step may be from that of a drawn object
TURNS = {"turn_left": -1, "turn_right": 1}


def conditions_of(model: VideoGPT, labels: Labels) -> Conditions:
    """What a model is told."""
    told = (model.text_encoder is not None, model.frame_encoder is not None, bool(labels.actions), bool(labels.classes))
    names = [name for name, is_told in zip(CONDITIONS, told) if is_told]
    return Conditions(names, encoder=model.text_encoder, classes=labels.classes, actions=labels.actions)


# the loss


@torch.no_grad()
def millibits_per_dimension(model: VideoGPT, clips: Encoded, conditions: Conditions, *, seed: int) -> dict[str, Mean]:
    """Bits of a clip's ids over thousands of its pixels' values, told what is true; and with one condition shuffled.

    Without a condition that the model uses it needs more bits. Those of a clip are the sum over its ids, as in
    VideoGPT, which gives bits per dimension; its tokenizer, which loses part of the pixels, is not counted.
    """
    order = torch.randperm(len(clips), generator=torch.Generator().manual_seed(seed)).tolist()
    bits = {"true": [], **{f"{name} shuffled": [] for name in sorted(conditions.names)}}
    for first in tqdm(range(0, len(clips), BATCH), desc="loss", leave=False):
        part = range(first, min(first + BATCH, len(clips)))
        true = conditions.collate([clips[index] for index in part])
        other = conditions.collate([clips[order[index]] for index in part])
        for name, values in bits.items():
            told = dict(true) if name == "true" else exchanged(true, other, name.removesuffix(" shuffled"))
            values += clip_millibits(model, told).tolist()
    return {f"millibits per dimension, {name}": Mean(values) for name, values in bits.items()}


def exchanged(batch: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A batch with one condition of another one."""
    own = ("text_embeds", "text_mask") if name == "text" else (name,)
    return dict(batch) | {key: other[key] for key in own}


def clip_millibits(model: VideoGPT, batch: Mapping[str, Tensor]) -> Tensor:
    """Millibits per dimension of each clip, (b,)."""
    nats = model.losses(**{name: value.to(device_of(model)) for name, value in batch.items()}).nats
    tokenizer = model.tokenizer
    height, width = tokenizer.image_size
    values = tokenizer.channels * tokenizer.num_frames(nats.shape[1]) * height * width
    return 1000 * nats.sum(dim=(1, 2, 3)) / (math.log(2) * values)


# samples


def sample(model: VideoGPT, first: Tensor, told: Mapping[str, Tensor], *, seed: int, sampling: RasterOptions) -> Tensor:
    """One window after each first frame (b, c, h, w), told also `told`: (b, c, f, h, w), float32, on the CPU.

    The model reads the frame, or continues it where it reads no frames; its tokenizer then takes single frames.
    """
    generator = torch.Generator(device_of(model)).manual_seed(seed)
    videos = []
    for part in tqdm(torch.arange(len(first)).split(BATCH), desc="samples", leave=False):
        given, frames = {name: value[part] for name, value in told.items()}, first[part].to(generator.device)
        if model.frame_encoder is not None:
            given["frames"], count = frames, model.window
        else:
            given["prime_frames"], count = frames[:, :, None], model.window - 1
        new = model.generate(num_frames=count, batch_size=len(part), generator=generator, **given, **sampling).cpu()
        videos.append(new if count == model.window else torch.cat((first[part][:, :, None], new), dim=2))
    return torch.cat(videos).float()


def steady_motion(model: VideoGPT, count: int, *, seed: int, sampling: RasterOptions) -> dict[str, Share | Mean]:
    """Whether objects go on at the drawn velocity after a first frame of moving shapes, which does not show the motion.

    Of the frames after the latest turn: the mean distance, in pixels, of the object's steps from those of the motion
    that fits best, and the share of clips in which it is at most `STEADY`. An object that is lost counts as wrong.
    """
    size = model.tokenizer.image_size[0]
    videos, _ = MovingShapes("seen", size=size, num_frames=model.window, length=count, seed=seed).told(count)
    new = sample(model, videos[:, :, 0], {}, seed=seed, sampling=sampling)
    steps = wrap(track(new)[:, TURN_LATEST:].diff(dim=1), size)  # b f 2
    velocities = SPEED * size * torch.tensor(list(MOTIONS.values()))
    distances = (steps[:, None] - velocities[:, None]).norm(dim=-1).mean(dim=-1).amin(dim=1)
    return {
        f"within {STEADY} pixels of constant velocity": share_of((distances <= STEADY).tolist()),
        "distance from constant velocity": Mean(distances.tolist()),
    }


def steered(
    model: VideoGPT, first: Tensor, actions: list[str], *, seed: int, sampling: RasterOptions
) -> tuple[dict[str, Tensor], dict[str, Share | Mean]]:
    """The same first frames (b, c, h, w) under each action, held for a whole window: the videos, and their turns.

    For each turn the share of clips whose view moves to its side over the whole clip, that of single steps, and for
    every action the mean shift of a step, in pixels: below 0 the camera turns left.
    """
    videos, measured = {}, {}
    for index, action in enumerate(actions):
        taken = torch.zeros(len(first), model.window, len(actions))
        taken[..., index] = 1
        videos[action] = sample(model, first, {"actions": taken}, seed=seed, sampling=sampling)
        shifts = horizontal_shifts(videos[action])
        if side := TURNS.get(action):
            measured[f"{action}: clips to the right side"] = share_of((shifts.sum(dim=1).sign() == side).tolist())
            steps = follows_turns(shifts, torch.full_like(shifts, side))
            measured[f"{action}: steps to the right side"] = share_of(steps.tolist())
        measured[f"{action}: shift of a step"] = Mean(shifts.float().mean(dim=1).tolist())
    return videos, measured
