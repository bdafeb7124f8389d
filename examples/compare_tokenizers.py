"""Compare tokenizers of moving shapes: what is left of the same clips after encoding and decoding, as table and sheet.

    python examples/compare_tokenizers.py runs/pixels runs/full --size 64 --sheet sheet.png --curves curves.png
    python examples/compare_tokenizers.py runs/mixed --sizes 16 32 48 64 32x64

Each folder is an --out of train.py; all are given the same clips, which none was trained on.

b = batch · c = channels · f = frames
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from arguments import scale_of
from measures import BATCH, judged_reconstruction, psnr, reconstruction
from media import read_curves, write_plots, write_sheet
from moving_shapes import MovingShapes
from phenaki_pytorch import CViViT

SHOWN = 4  # clips on the sheet
CURVES = {
    "PSNR of first frames, dB": "psnr_first",
    "PSNR of the others, dB": "psnr_others",
    "edge energy over the original's": "edge_energy",
}


def height_and_width(text: str) -> tuple[int, int]:
    """ "32" -> (32, 32), "32x64" -> (32, 64)."""
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def clips_of(size: tuple[int, int], *, frames: int, count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Moving shapes (b, 3, f, h, w), the middle of a square of the longer side, and what they show in words."""
    side = max(size)
    videos, captions = MovingShapes("tokenizer", size=side, num_frames=frames, length=count, seed=seed).told(count)
    top, left = ((side - length) // 2 for length in size)
    return videos[..., top : top + size[0], left : left + size[1]], captions


def below_best(folder: Path) -> float:
    """How far the PSNR at the end of the training lies below the best on its way, dB."""
    curves = read_curves(folder / "tokenizer" / "curves.csv")
    psnrs = [value for _, value in curves.get("psnr_others", curves.get("psnr_first"))]  # images have no others
    return max(psnrs) - psnrs[-1]


def psnr_at(cvivit: CViViT, videos: Tensor) -> float:
    return psnr(torch.cat([cvivit.reconstruct(part) for part in videos.split(BATCH)]), videos)


def curves_of(folders: Sequence[Path]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """What the runs' curves have in common of PSNR and edges, by title: a line for each run."""
    curves = {folder.name: read_curves(folder / "tokenizer" / "curves.csv") for folder in folders}
    shared = {title: column for title, column in CURVES.items() if all(column in curve for curve in curves.values())}
    return {title: {name: curve[column] for name, curve in curves.items()} for title, column in shared.items()}


def measure(folder: Path, cvivit: CViViT, videos: Tensor, captions: Sequence[str]) -> dict[str, float | str]:
    ids = "×".join(map(str, cvivit.grid(videos.shape[2], *videos.shape[3:])))
    return {
        "parameters": f"{sum(parameter.numel() for parameter in cvivit.parameters()):,}",
        "ids of a clip": ids,
        **reconstruction(cvivit, videos),
        **judged_reconstruction(cvivit, videos, captions),
        "PSNR below the run's best": below_best(folder),
    }


def markdown(head: Sequence[str], rows: dict[str, Sequence[float | str]]) -> str:
    """A table whose first column are the names of the rows."""
    lines = [["", *head], ["---"] * (1 + len(head))]
    for name, values in rows.items():
        shown = [f"{each:.3f}" if type(each) is float else str(each).strip() for each in values]
        lines.append([name, *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of train.py's runs")
    parser.add_argument("--size", type=int, default=32, help="of the clips that are judged, pixels")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--count", type=int, default=200, help="clips to judge")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sizes", type=height_and_width, nargs="*", default=(), help="PSNR at these, such as 32x64")
    parser.add_argument("--sheet", type=Path, help="a PNG: the last frames of clips, and what becomes of them")
    parser.add_argument("--curves", type=Path, help="a PNG: PSNR and edges of all runs against their steps")
    args = parser.parse_args()
    tokenizers = [CViViT.from_pretrained(folder / "model" / "cvivit").eval() for folder in args.folders]
    names = [folder.name for folder in args.folders]
    draw = {"frames": args.frames, "count": args.count, "seed": args.seed}
    videos, captions = clips_of((args.size, args.size), **draw)
    columns = [measure(folder, cvivit, videos, captions) for folder, cvivit in zip(args.folders, tokenizers)]
    print(markdown(names, {row: [column[row] for column in columns] for row in columns[0]}))
    if args.sizes:
        rows = {}
        for size in args.sizes:
            clips, _ = clips_of(size, **draw)
            rows[f"PSNR at {size[0]}×{size[1]}"] = [psnr_at(cvivit, clips) for cvivit in tokenizers]
        print("\n" + markdown(names, rows))
    if args.curves:
        write_plots(args.curves, curves_of(args.folders), xlabel="step")
    if args.sheet:
        clips = videos[:SHOWN]
        last = torch.stack(
            [made[:, :, -1] for made in (clips, *(each.reconstruct(clips) for each in tokenizers))], dim=2
        )
        title = " | ".join(["original", *names])
        write_sheet(args.sheet, [(title, row) for row in last], columns=1 + len(names), scale=2 * scale_of(args))


if __name__ == "__main__":
    main()
