"""Compare tokenizers of moving shapes by their reconstructions of the same clips: a table, a sheet and curves.

    python examples/compare_tokenizers.py runs/pixels runs/full --size 64 --sheet sheet.png --curves curves.png
    python examples/compare_tokenizers.py runs/mixed --sizes 16 32 48 64 32x64

Each folder is the --out of a training of a tokenizer. None of the clips is in the training data.

b = batch · c = channels · f = frames
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.media import read_curves, write_plots, write_sheet
from data.moving_shapes import MovingShapes
from evaluation.measures import BATCH, judged_reconstruction, psnr, reconstruction
from phenaki_pytorch import CViViT

SHOWN = 4  # clips on the sheet
SHOWN_SIZE = 256  # about the size, in pixels, to which the frames on the sheet are enlarged
CURVES = {
    "PSNR of first frames, dB": "psnr_first",
    "PSNR of the other frames, dB": "psnr_others",
    "edge energy over the original's": "edge_energy",
}


def height_and_width(text: str) -> tuple[int, int]:
    """ "32" -> (32, 32), "32x64" -> (32, 64)."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def clips_of(size: tuple[int, int], *, frames: int, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Moving shapes (b, 3, f, h, w), drawn as squares of the longer side and cropped to the centre; their captions."""
    side = max(size)
    videos, captions = MovingShapes("tokenizer", size=side, num_frames=frames, length=count, seed=seed).told(count)
    top, left = ((side - length) // 2 for length in size)
    return videos[..., top : top + size[0], left : left + size[1]], captions


def below_best(folder: Path) -> float:
    """The best PSNR of a training minus that at its end, in dB."""
    curves = read_curves(folder / "tokenizer" / "curves.csv")
    psnrs = [value for _, value in curves.get("psnr_others", curves.get("psnr_first"))]  # images have only first frames
    return max(psnrs) - psnrs[-1]


def psnr_at(cvivit: CViViT, videos: Tensor) -> float:
    """The PSNR, in dB, of the reconstruction of videos (b, c, f, h, w)."""
    return psnr(torch.cat([cvivit.reconstruct(part) for part in videos.split(BATCH)]), videos)


def curves_of(folders: Sequence[Path]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """The curves of `CURVES` that all runs have, by title, with a line for each run."""
    curves = {folder.name: read_curves(folder / "tokenizer" / "curves.csv") for folder in folders}
    shared = {title: column for title, column in CURVES.items() if all(column in curve for curve in curves.values())}
    return {title: {name: curve[column] for name, curve in curves.items()} for title, column in shared.items()}


def measure(folder: Path, cvivit: CViViT, videos: Tensor, captions: Sequence[str]) -> dict[str, float | str]:
    """The column of one tokenizer."""
    ids = "×".join(map(str, cvivit.grid(videos.shape[2], *videos.shape[3:])))
    return {
        "parameters": f"{sum(parameter.numel() for parameter in cvivit.parameters()):,}",
        "ids of a clip": ids,
        **reconstruction(cvivit, videos),
        **judged_reconstruction(cvivit, videos, captions),
        "PSNR below the run's best": below_best(folder),
    }


def markdown(head: Sequence[str], rows: dict[str, Sequence[float | str]]) -> str:
    """A table whose first column has the names of the rows."""
    lines = [["", *head], ["---"] * (1 + len(head))]
    for name, values in rows.items():
        shown = [f"{each:.3f}" if type(each) is float else str(each).strip() for each in values]
        lines.append([name, *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_last_frames(path: Path, names: Sequence[str], tokenizers: Sequence[CViViT], clips: Tensor) -> None:
    """Write a PNG with a row for each clip: the last frame of the original and of each reconstruction."""
    versions = [clips, *(cvivit.reconstruct(clips) for cvivit in tokenizers)]
    last = torch.stack([version[:, :, -1] for version in versions], dim=2)
    title = " | ".join(["original", *names])
    scale = max(1, SHOWN_SIZE // clips.shape[-1])
    write_sheet(path, [(title, row) for row in last], columns=1 + len(names), scale=scale)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", help="the --out of each training")
    add("--size", type=int, default=32, help="of the clips that are judged, in pixels; default: %(default)s")
    add("--frames", type=int, default=9, help="of each clip; default: %(default)s")
    add("--count", type=int, default=200, help="number of clips; default: %(default)s")
    add("--seed", type=int, default=1, help="of the clips; default: %(default)s")
    add("--sizes", type=height_and_width, nargs="*", default=(), help="PSNR at these sizes, such as 32x64")
    add("--sheet", type=Path, help="a PNG: the last frames of clips and of their reconstructions")
    add("--curves", type=Path, help="a PNG: PSNR and edge energy of all trainings against their steps")
    return parser.parse_args(argv)


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    tokenizers = [CViViT.from_pretrained(folder / "model" / "cvivit").eval() for folder in args.folders]
    names = [folder.name for folder in args.folders]
    options = {"frames": args.frames, "count": args.count, "seed": args.seed}
    videos, captions = clips_of((args.size, args.size), **options)
    columns = [measure(folder, cvivit, videos, captions) for folder, cvivit in zip(args.folders, tokenizers)]
    print(markdown(names, {row: [column[row] for column in columns] for row in columns[0]}))
    if args.sizes:
        rows = {}
        for size in args.sizes:
            clips, _ = clips_of(size, **options)
            rows[f"PSNR at {size[0]}×{size[1]}"] = [psnr_at(cvivit, clips) for cvivit in tokenizers]
        print("\n" + markdown(names, rows))
    if args.curves:
        write_plots(args.curves, curves_of(args.folders), xlabel="step")
    if args.sheet:
        write_last_frames(args.sheet, names, tokenizers, videos[:SHOWN])


if __name__ == "__main__":
    main()
