"""Stream a long clip through a tokenizer, to ids and back, frame by frame: memory, speed, and quality over time.

    python examples/stream.py --preset --frames 4800                  # the paper's, random weights, 10 minutes at 8 fps
    python examples/stream.py --model runs/phenaki/model/cvivit --frames 4001 --count 18 --at 10 500 4000

The clips are moving shapes on a torus, drawn as they go, so nothing but the stream takes memory that could grow.
How well a single frame comes back depends on where its object stands by a decibel or two; --count 18 has one clip
of each colour and shape, streamed side by side.

b = batch · f = frames
"""

import argparse
import resource
import time
from collections.abc import Iterable, Iterator

import psutil
import torch
from torch import Tensor

from measures import psnr
from moving_shapes import EVERY_PAIR, MOTIONS, SPEED, Clip, draw
from phenaki_pytorch import CViViT, presets

WANDERS = 37  # frames from one turn to the next


def frames_of(length: int, size: int, piece: int, count: int = 1) -> Iterator[Tensor]:
    """So many clips, of a red circle and others, that turn now and then, in pieces (b, 3, f, h, w)."""
    pairs = [EVERY_PAIR[i % len(EVERY_PAIR)] for i in range(count)]
    places = (0.5 + torch.arange(count)[:, None] * torch.tensor([0.618, 0.382])) % 1
    for first in range(0, length, piece):
        frames = range(first, min(first + piece, length))
        motions = [
            tuple(list(MOTIONS)[(i + frame // WANDERS) % len(MOTIONS)] for frame in frames) for i in range(count)
        ]
        clips = zip(pairs, motions, places.tolist())
        yield draw([Clip(*pair, steps[:-1], tuple(place), "") for pair, steps, place in clips], size)
        ways = torch.tensor([[MOTIONS[motion] for motion in steps] for steps in motions])  # b f 2
        places = (places + SPEED * ways.sum(dim=1)) % 1


@torch.no_grad()
def there_and_back(cvivit: CViViT, pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a clip -> the frames that are complete and what came back of them, (b, 3, f, h, w) each, as they do."""
    encoder, decoder = cvivit.encoder_stream(), cvivit.decoder_stream()
    waiting = None
    for piece in pieces:
        waiting = piece if waiting is None else torch.cat((waiting, piece), dim=2)
        ids = encoder(piece)
        if ids.shape[1] > 0:
            made = decoder(ids).clamp(0, 1)
            yield waiting[:, :, : made.shape[2]], made
            waiting = waiting[:, :, made.shape[2] :].clone()


def peak_mebibytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="directory of a tokenizer")
    which.add_argument("--preset", action="store_true", help="the paper's tokenizer with random weights")
    parser.add_argument("--frames", type=int, default=4800)
    parser.add_argument("--count", type=int, default=1, help="clips, streamed side by side")
    parser.add_argument("--piece", type=int, default=8, help="frames fed at a time")
    parser.add_argument("--at", type=int, nargs="*", default=(), help="frames whose PSNR to print")
    args = parser.parse_args()
    cvivit = (presets.cvivit() if args.preset else CViViT.from_pretrained(args.model)).eval()
    size = cvivit.image_size[0]
    before, began, done = psutil.Process().memory_info().rss / 2**20, time.perf_counter(), 0
    for original, made in there_and_back(cvivit, frames_of(args.frames, size, args.piece, args.count)):
        for frame in args.at:
            if done <= frame < done + made.shape[2]:
                print(f"frame {frame}: {psnr(made[:, :, frame - done], original[:, :, frame - done]):.1f} dB")
        done += made.shape[2]
    seconds = time.perf_counter() - began
    print(f"{done} of {args.frames} frames of {size}×{size} came back; the others wait for a whole time step")
    above = peak_mebibytes() - before
    print(f"{done / seconds:.1f} frames a second; peak memory {above:.0f} MiB above the loaded model")


if __name__ == "__main__":
    main()
