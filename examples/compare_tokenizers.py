"""Compare tokenizers of moving shapes by their reconstructions of the same clips: a table, a sheet and curves.

    python examples/compare_tokenizers.py runs/pixels runs/full --size 64 --sheet sheet.png --curves curves.png
    python examples/compare_tokenizers.py runs/mixed --sizes 16 32 48 64 32x64

Each folder is the --out of a training of a tokenizer, of any kind. None of the clips is in the training data. Each
tokenizer gets the first frames of the clips, as many as it takes; the sheet shows the last frame that all of them have.
After an error, or Ctrl-C, the table has the columns that are measured. A row of the table and --curves need the curves
of the training.

b = batch · c = channels · f = frames
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.fitting import fitting
from data.flags import integer, mistakes_in_one_line, path
from data.media import read_curves, write_plots, write_sheet
from data.moving_shapes import MovingShapes
from data.runs import SEED, load_tokenizer
from data.targets import check_targets, png
from evaluation.measures import BATCH, judged_reconstruction, psnr, reconstruction
from phenaki_pytorch.core.lengths import usable_frames
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer

SHOWN = 4  # clips on the sheet
SHOWN_SIZE = 256  # about the size, in pixels, to which the frames on the sheet are enlarged
CURVES = {
    "PSNR of first frames, dB": "psnr_first",
    "PSNR of the other frames, dB": "psnr_others",
    "edge energy over the original's": "edge_energy",
}


def height_and_width(text: str) -> tuple[int, int]:
    """ "32" -> (32, 32), "32x64" -> (32, 64), a `type` for argparse."""
    height, _, width = text.partition("x")
    return integer()(height), integer()(width or height)


def clips_of(size: tuple[int, int], *, frames: int, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Moving shapes (b, 3, f, h, w), drawn as squares of the longer side and cropped to the centre; their captions."""
    side = max(size)
    videos, captions = MovingShapes("tokenizer", size=side, num_frames=frames, length=count, seed=seed).told(count)
    top, left = ((side - length) // 2 for length in size)
    return videos[..., top : top + size[0], left : left + size[1]], captions


def curves_file(folder: Path) -> Path:
    """The curves of a training, or of what share.py wrote."""
    shared = folder / "tokenizer_curves.csv"
    return shared if shared.is_file() else folder / "tokenizer" / "curves.csv"


def below_best(folder: Path) -> float:
    """The best PSNR of a training minus that at its end, in dB; NaN where there are no curves."""
    if not curves_file(folder).is_file():
        return math.nan
    curves = read_curves(curves_file(folder))
    # Images have only first frames; without any PSNR there is no best one.
    psnrs = [value for _, value in curves.get("psnr_others", curves.get("psnr_first", [(0, math.nan)]))]
    return max(psnrs) - psnrs[-1]


def fitted(tokenizer: VideoTokenizer, videos: Tensor) -> Tensor:
    """The first frames of videos (b, c, f, h, w), as many as the tokenizer takes."""
    return videos[:, :, : usable_frames(tokenizer, videos.shape[2])]


def psnr_at(tokenizer: VideoTokenizer, videos: Tensor) -> float:
    """The PSNR, in dB, of the reconstruction of videos (b, c, f, h, w)."""
    return psnr(torch.cat([tokenizer.reconstruct(part) for part in videos.split(BATCH)]), videos)


def normalised_error(rebuilt: dict[str, float], videos: Tensor) -> float:
    """The mean squared error of a `reconstruction` over the variance of the videos' pixels, VideoGPT's NMSE."""
    first = 10 ** (-rebuilt["psnr_first"] / 10)
    others = 10 ** (-rebuilt.get("psnr_others", math.inf) / 10)
    frames = videos.shape[2]
    return (first + (frames - 1) * others) / frames / videos.var(correction=0).item()


def curves_of(folders: Sequence[Path]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The curves of `CURVES` that all runs have, by title, with a line for each run."""
    curves = {folder.name: read_curves(curves_file(folder)) for folder in folders}
    shared = {title: column for title, column in CURVES.items() if all(column in curve for curve in curves.values())}
    return {title: {name: curve[column] for name, curve in curves.items()} for title, column in shared.items()}


def measure(folder: Path, tokenizer: VideoTokenizer, videos: Tensor, captions: Sequence[str]) -> dict[str, float | str]:
    """The column of one tokenizer."""
    videos = fitted(tokenizer, videos)
    ids = "×".join(map(str, tokenizer.grid(*videos.shape[2:])))
    rebuilt = reconstruction(tokenizer, videos)
    return {
        "tokenizer": type(tokenizer).__name__,
        "parameters": f"{sum(parameter.numel() for parameter in tokenizer.parameters()):,}",
        "frames": str(videos.shape[2]),
        "ids of a clip": ids,
        **rebuilt,
        "normalised squared error": normalised_error(rebuilt, videos),
        **judged_reconstruction(tokenizer, videos, captions),
        "PSNR below the run's best": below_best(folder),
    }


def markdown(head: Sequence[str], rows: dict[str, Sequence[float | str]]) -> str:
    """A table whose first column has the names of the rows."""
    lines = [["", *head], ["---"] * (1 + len(head))]
    for name, values in rows.items():
        shown = [f"{each:.3f}" if type(each) is float else str(each).strip() for each in values]
        lines.append([name, *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_last_frames(path: Path, names: Sequence[str], tokenizers: Sequence[VideoTokenizer], clips: Tensor) -> None:
    """Write a PNG with a row for each clip: the last frame of the original and of each reconstruction."""
    versions = [clips, *(tokenizer.reconstruct(fitted(tokenizer, clips)) for tokenizer in tokenizers)]
    place = min(version.shape[2] for version in versions) - 1
    last = torch.stack([version[:, :, place] for version in versions], dim=2)
    title = " | ".join(["original", *names])
    scale = max(1, SHOWN_SIZE // clips.shape[-1])
    write_sheet(path, [(title, row) for row in last], columns=1 + len(names), scale=scale)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=path, nargs="+", help="the --out of each training")
    add("--size", type=integer(), default=32, help="of the clips that are judged, in pixels; default: %(default)s")
    add("--frames", type=integer(), default=9, help="of each clip, at most; default: %(default)s")
    add("--count", type=integer(), default=200, help="number of clips; default: %(default)s")
    add("--seed", type=SEED, default=1, help="of the clips; default: %(default)s")
    add("--sizes", type=height_and_width, nargs="+", default=(), help="PSNR at these sizes, such as 32x64")
    add("--sheet", type=png, help="a PNG: the last frames of clips and of their reconstructions")
    add("--curves", type=png, help="a PNG: PSNR and edge energy of all trainings against their steps")
    return parser.parse_args(argv)


def check(args: argparse.Namespace, tokenizers: dict[Path, VideoTokenizer]) -> None:
    """Refuse, before anything is measured, what could only fail later."""
    if len({folder.name for folder in tokenizers}) < len(tokenizers):
        raise ValueError(f"expected runs of different names, got {', '.join(map(str, tokenizers))}")
    if args.curves and not curves_of(list(tokenizers)):
        raise ValueError(f"the curves of these runs share none of {', '.join(CURVES.values())}")
    for folder, tokenizer in tokenizers.items():
        below_best(folder)
        for height, width in ((args.size, args.size), *args.sizes):
            with fitting(f"{folder}: --frames, --size or --sizes"):
                tokenizer.grid(usable_frames(tokenizer, args.frames), height, width)


def compare(args: argparse.Namespace, tokenizers: dict[Path, VideoTokenizer]) -> None:
    """Measure all tokenizers, print the tables and write what is asked for."""
    names = [folder.name for folder in tokenizers]
    options = {"frames": args.frames, "count": args.count, "seed": args.seed}
    videos, captions = clips_of((args.size, args.size), **options)
    columns = []
    try:
        for folder, tokenizer in tokenizers.items():
            columns.append(measure(folder, tokenizer, videos, captions))
    finally:
        if columns:
            print(markdown(names[: len(columns)], {row: [column[row] for column in columns] for row in columns[0]}))
    if args.sizes:
        rows = {}
        for size in args.sizes:
            clips, _ = clips_of(size, **options)
            rows[f"PSNR at {size[0]}×{size[1]}"] = [psnr_at(each, fitted(each, clips)) for each in tokenizers.values()]
        print("\n" + markdown(names, rows))
    if args.curves:
        write_plots(args.curves, curves_of(list(tokenizers)), xlabel="step")
    if args.sheet:
        write_last_frames(args.sheet, names, list(tokenizers.values()), videos[:SHOWN])


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    with mistakes_in_one_line(__file__):
        check_targets({"--sheet": args.sheet, "--curves": args.curves})
        tokenizers = {folder: load_tokenizer(folder / "model").eval() for folder in args.folders}
        check(args, tokenizers)
        compare(args, tokenizers)


if __name__ == "__main__":
    main()
