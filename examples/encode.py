"""Encode a video file to ids, or decode ids to a video file, with a trained tokenizer.

    python examples/encode.py clip.mp4                              # writes runs/clip.safetensors
    python examples/encode.py runs/clip.safetensors                 # writes runs/clip.mp4
    python examples/encode.py clip.mp4 --tokenizer runs/phenaki/model/cvivit --fps 8 --out ids.safetensors

A file of ids holds "ids", int32 (t, h, w), and in its metadata the frame rate. The video is resized and cropped to the
tokenizer's image_size, and encoded in pieces, so that a file of any length needs the memory of a few seconds. Frames at
its end that do not complete a time step are left out, and their number is printed.

f = frames · t, h, w = grid of ids
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from data.media import write_mp4, written
from data.runs import PRETRAINED
from data.video_reader import read_clip, read_timeline
from phenaki_pytorch import CViViT

PIECE = 64  # frames


def pieces_of(path: Path, size: tuple[int, int], fps: float | None) -> tuple[Iterator[Tensor], float]:
    """The frames of a file, (1, 3, f, height, width) at a time, and their rate."""
    timeline = read_timeline(path)
    times = timeline.pick(0, int(timeline.clip_lengths(fps, 1)[0]), fps, 1)
    parts = (times[first : first + PIECE] for first in range(0, len(times), PIECE))
    return (read_clip(path, part, size)[None] for part in parts), fps or timeline.rate


def encode(cvivit: CViViT, path: Path, out: Path, fps: float | None) -> None:
    pieces, rate = pieces_of(path, cvivit.image_size, fps)
    stream = cvivit.encoder_stream()
    ids = torch.cat([stream(piece.to(device_of(cvivit))).cpu() for piece in tqdm(pieces, desc="encoding")], dim=1)[0]
    with written(out) as temporary:
        save_file({"ids": ids.int().contiguous()}, temporary, metadata={"fps": str(rate)})
    t, h, w = ids.shape
    left_out = f"; {stream.pending} frames at the end left out" if stream.pending else ""
    print(f"wrote {out}: {t} × {h} × {w} ids of {cvivit.num_frames(t)} frames at {rate:g} a second{left_out}")


def decode(cvivit: CViViT, path: Path, out: Path, fps: float | None) -> None:
    with safe_open(path, "pt") as file:
        ids, saved = file.get_tensor("ids").long()[None], (file.metadata() or {}).get("fps", "8")
    video = cvivit.decode(ids.to(device_of(cvivit)))[0].clamp(0, 1).cpu()
    write_mp4(out, video, fps or float(saved))
    print(f"wrote {out}: {video.shape[1]} frames")


def device_of(cvivit: CViViT) -> torch.device:
    return next(cvivit.parameters()).device


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, help="a video, or a .safetensors file of ids")
    add("--tokenizer", type=Path, default=PRETRAINED / "cvivit", help="the folder of a CViViT; default: %(default)s")
    add("--out", type=Path, help="default: runs/ and the name of FILE, with the other suffix")
    add("--fps", type=float, help="rate at which to take the frames, or to play them; default: the file's own")
    args = parser.parse_args(argv)
    if args.fps is not None and not 0 < args.fps <= 1000:
        parser.error(f"--fps must be above 0 and at most 1000, got {args.fps}")
    decodes = args.file.suffix == ".safetensors"
    out = args.out or Path("runs") / args.file.with_suffix(".mp4" if decodes else ".safetensors").name
    try:
        cvivit = CViViT.from_pretrained(args.tokenizer).eval().to("cuda" if torch.cuda.is_available() else "cpu")
        (decode if decodes else encode)(cvivit, args.file, out, args.fps)
    except (ValueError, OSError) as error:
        raise SystemExit(f"encode.py: {error}") from error


if __name__ == "__main__":
    main()
