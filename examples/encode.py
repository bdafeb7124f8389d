"""Encode a video file to ids, or decode ids to a video file, with a trained tokenizer.

    python examples/encode.py clip.mp4                              # writes runs/clip.safetensors
    python examples/encode.py runs/clip.safetensors                 # writes runs/clip.mp4
    python examples/encode.py clip.mp4 --tokenizer runs/phenaki/model --fps 8 --out ids.safetensors

A file of ids holds "ids", int32 (t, h, w), and in its metadata the frame rate. The video is resized and cropped to the
tokenizer's image_size, and encoded in pieces, so that a file of any length needs the memory of a few seconds. Frames at
its end that do not complete a time step are left out, and their number is printed.

f = frames · t, h, w = grid of ids
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.clip_arguments import check_repeats, writable_rate
from data.file_errors import check_file
from data.flags import mistakes_in_one_line, path
from data.media import write_mp4
from data.outputs import check_writable, written
from data.runs import PRETRAINED, RATE, load_tokenizer
from data.timeline import read_timeline
from data.video_reader import read_clip
from phenaki_pytorch import CViViT

PIECE = 64  # frames
REPEATED = 10  # times as many frames as the file has are named in a warning


def pieces_of(file: Path, size: tuple[int, int], fps: float | None) -> tuple[Iterator[Tensor], float]:
    """The frames of a file, (1, 3, f, height, width) at a time, and their rate. Warns of what a player shows otherwise.

    Raises ValueError where its frames would be repeated too often, and for a rate that no mp4 can have.
    """
    timeline = read_timeline(file)
    rate = fps or writable_rate(file, timeline.rate)
    count, own = int(timeline.clip_lengths(fps, 1)[0]), len(timeline.pts)
    check_repeats(file, count, own)
    repeated = f"{count:,} frames at {rate:g} a second, of {own:,} in the file" if count > REPEATED * own else ""
    for note in filter(None, (timeline.note, repeated)):
        print(f"warning: {file}: {note}", file=sys.stderr)
    times = timeline.pick(0, count, fps, 1)
    parts = (times[first : first + PIECE] for first in range(0, len(times), PIECE))
    return (read_clip(file, part, size)[None] for part in parts), rate


def encode(cvivit: CViViT, file: Path, out: Path, fps: float | None) -> None:
    pieces, rate = pieces_of(file, cvivit.image_size, fps)
    stream = cvivit.encoder_stream()
    ids = torch.cat([stream(piece.to(device_of(cvivit))).cpu() for piece in tqdm(pieces, desc="encoding")], dim=1)[0]
    with written(out) as temporary:
        try:
            save_file({"ids": ids.int().contiguous()}, temporary, metadata={"fps": str(rate)})
        except SafetensorError as error:  # such as a full disk
            raise OSError(f"{out} could not be written: {error}".replace(str(temporary), str(out))) from error
    t, h, w = ids.shape
    left_out = f"; {stream.pending} frames at the end left out" if stream.pending else ""
    print(f"wrote {out}: {t} × {h} × {w} ids of {cvivit.num_frames(t)} frames at {rate:g} a second{left_out}")


def read_ids(file: Path, cvivit: CViViT) -> tuple[Tensor, float]:
    """The ids of a file, int64 (t, h, w), and their frame rate. ValueError where they are none of the tokenizer's."""
    check_file(file)  # safetensors has its own errors for a missing file, a folder and a lack of permission
    try:
        with safe_open(file, "pt") as held:
            ids, fps = held.get_tensor("ids"), (held.metadata() or {}).get("fps", "8")
    except SafetensorError as error:
        raise ValueError(f"{file} holds no ids: {error}") from error
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.ndim != 3 or ids.numel() == 0:
        raise ValueError(f"{file} must hold ids, whole numbers (t, h, w), got {ids.dtype} {tuple(ids.shape)}")
    ids, grid = ids.long(), cvivit.grid(cvivit.num_frames(1))
    if ids.shape[1:] != grid[1:] or ids.min() < 0 or ids.max() >= cvivit.codebook_size:
        raise ValueError(
            f"{file} must hold ids below {cvivit.codebook_size} in a grid of {grid[1]} × {grid[2]}, those of the "
            f"tokenizer; got {ids.min()} to {ids.max()} in a grid of {ids.shape[1]} × {ids.shape[2]}"
        )
    try:
        return ids, RATE(fps)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{file} has a wrong frame rate: {error}") from error


def decode(cvivit: CViViT, file: Path, out: Path, fps: float | None) -> None:
    ids, saved = read_ids(file, cvivit)
    video = cvivit.decode(ids[None].to(device_of(cvivit)))[0].clamp(0, 1).cpu()
    write_mp4(out, video, fps or saved)
    print(f"wrote {out}: {video.shape[1]} frames")


def device_of(cvivit: CViViT) -> torch.device:
    return next(cvivit.parameters()).device


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=path, help="a video, or a .safetensors file of ids")
    add("--tokenizer", type=path, default=PRETRAINED, help="the folder of a CViViT or a model; default: %(default)s")
    add("--out", type=path, help="default: runs/ and the name of FILE, with the other suffix")
    add("--fps", type=RATE, help="rate to take frames or play them at, 0.01 to 1000; default: the file's")
    args = parser.parse_args(argv)
    args.decodes = args.file.suffix.lower() == ".safetensors"
    suffix = ".mp4" if args.decodes else ".safetensors"
    if args.out is None:
        args.out = Path("runs") / f"{args.file.stem}{suffix}"
    if args.out.suffix.lower() != suffix:
        parser.error(f"--out must end in {suffix}, got {args.out}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        check_writable(args.out)
        cvivit = load_tokenizer(args.tokenizer).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        (decode if args.decodes else encode)(cvivit, args.file, args.out, args.fps)


if __name__ == "__main__":
    main()
