"""Encode and decode a long clip piece by piece in bounded memory: memory, speed, and PSNR over time.

    python examples/stream.py --preset --frames 4800      # the paper's tokenizer, random weights, 10 minutes at 8 fps
    python examples/stream.py --model runs/phenaki/model/cvivit --frames 4001 --count 18 --at 10 500 4000

The clips are moving shapes, drawn piece by piece, so that no part of the program needs more memory for longer clips.
The PSNR of a frame varies by one or two decibels with the position of its object; with --count 18 it is that of one
clip of each colour and shape.

b = batch · f = frames
"""

import argparse
import resource
import time
from collections.abc import Iterable, Iterator, Sequence

import psutil
import torch
from torch import Tensor

from data.flags import integer, mistakes_in_one_line, path
from data.moving_shapes import EVERY_PAIR, MOTIONS, SPEED, Clip, draw
from data.runs import load_tokenizer
from evaluation.measures import psnr
from phenaki_pytorch import CViViT, presets
from phenaki_pytorch.core.lengths import usable_frames

TURN_EVERY = 37  # frames


def frames_of(length: int, size: int, piece: int, count: int = 1) -> Iterator[Tensor]:
    """Draw `count` clips of `length` frames that turn regularly, in pieces of `piece` frames, (b, 3, f, h, w) each."""
    pairs = [EVERY_PAIR[i % len(EVERY_PAIR)] for i in range(count)]
    positions = (0.5 + torch.arange(count)[:, None] * torch.tensor([0.618, 0.382])) % 1
    for first in range(0, length, piece):
        frames = range(first, min(first + piece, length))
        motions = [
            tuple(list(MOTIONS)[(i + frame // TURN_EVERY) % len(MOTIONS)] for frame in frames) for i in range(count)
        ]
        clips = zip(pairs, motions, positions.tolist())
        yield draw([Clip(*pair, steps[:-1], tuple(start), "") for pair, steps, start in clips], size)
        directions = torch.tensor([[MOTIONS[motion] for motion in steps] for steps in motions])  # b f 2
        positions = (positions + SPEED * directions.sum(dim=1)) % 1


@torch.no_grad()
def reconstructed(cvivit: CViViT, pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a clip -> pieces of the original and of its reconstruction, (b, 3, f, h, w) each, as soon as possible.

    Frames at the end that do not fill a time step are left out.
    """
    encoder, decoder = cvivit.encoder_stream(), cvivit.decoder_stream()
    waiting = None
    for piece in pieces:
        waiting = piece if waiting is None else torch.cat((waiting, piece), dim=2)
        ids = encoder(piece)
        if ids.shape[1] > 0:
            rebuilt = decoder(ids).clamp(0, 1)
            yield waiting[:, :, : rebuilt.shape[2]], rebuilt
            waiting = waiting[:, :, rebuilt.shape[2] :].clone()


def peak_mebibytes() -> float:
    """The peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=path, help="the folder of a tokenizer, or of a model")
    which.add_argument("--preset", action="store_true", help="the paper's tokenizer with random weights")
    parser.add_argument("--frames", type=integer(), default=4800, help="of each clip; default: %(default)s")
    parser.add_argument("--count", type=integer(), default=1, help="number of clips, as one batch")
    parser.add_argument("--piece", type=integer(), default=8, help="frames that are encoded at a time")
    parser.add_argument("--at", type=integer(at_least=0), nargs="+", default=(), help="frames whose PSNR to print")
    return parser.parse_args(argv)


def stream(cvivit: CViViT, args: argparse.Namespace) -> None:
    """Reconstruct the clips, and print what it took. ValueError for frames of --at that are not reconstructed."""
    size, most = cvivit.image_size[0], usable_frames(cvivit, args.frames)
    if late := [frame for frame in args.at if frame >= most]:
        raise ValueError(f"--at must be below {most}, the frames that fill a time step, got {late[0]}")
    before, began, done = psutil.Process().memory_info().rss / 2**20, time.perf_counter(), 0
    for original, rebuilt in reconstructed(cvivit, frames_of(args.frames, size, args.piece, args.count)):
        for frame in args.at:
            if done <= frame < done + rebuilt.shape[2]:
                print(f"frame {frame}: {psnr(rebuilt[:, :, frame - done], original[:, :, frame - done]):.1f} dB")
        done += rebuilt.shape[2]
    seconds = time.perf_counter() - began
    print(f"{done} of {args.frames} frames of {size}×{size} reconstructed; the others do not fill a time step")
    above = peak_mebibytes() - before
    print(f"{done / seconds:.1f} frames a second; peak memory {above:.0f} MiB above the loaded model")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        stream((presets.cvivit() if args.preset else load_tokenizer(args.model)).eval(), args)


if __name__ == "__main__":
    main()
