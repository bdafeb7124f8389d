"""Write videos and plots: mp4, gif, sheets of frames, curves, confusion matrices.

A video is float (3, f, h, w), RGB in [0, 1]; values outside are clamped. Every file is written under a temporary name
and then renamed, so that an incomplete file is never visible. Missing folders are created.
"""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import matplotlib
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from einops import rearrange, repeat
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.clip_arguments import MAX_FPS, MIN_FPS
from data.frames import FINE, THREADS
from data.outputs import written

# crf 8 is nearly lossless, and small videos stay small. chromaloc: colour is sampled at the centre of 2 × 2 pixels.
H264 = {"crf": "8", "x264-params": "chromaloc=1"}
FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # has most alphabets
GAP = 4  # pixels between the frames of a sheet


def _pixels(video: Tensor, scale: int) -> np.ndarray:
    """float (3, f, h, w) in [0, 1] -> uint8 (f, h · scale, w · scale, 3); pixels become squares."""
    if not isinstance(video, Tensor) or not video.is_floating_point():
        raise TypeError(f"video must be a float tensor, got {getattr(video, 'dtype', type(video))}")
    if video.ndim != 4 or video.shape[0] != 3 or 0 in video.shape:
        raise ValueError(f"video must be (3, f, h, w), got {tuple(video.shape)}")
    if not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, got {scale!r}")
    video = (video.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    return repeat(video, "c f h w -> f (h sh) (w sw) c", sh=scale, sw=scale).contiguous().numpy()


def _check_fps(fps: float, most: float) -> Fraction:
    if not MIN_FPS <= fps <= most:
        raise ValueError(f"fps must be at least {MIN_FPS} and at most {most}, got {fps}")
    return Fraction(fps).limit_denominator(1001)


def _as_file(path: Path) -> str:
    """The name under which FFmpeg writes a file, whatever it looks like: "md5:a.mp4" would be no file."""
    return f"file:{path.absolute()}"


def write_mp4(path: str | Path, video: Tensor, fps: float) -> None:
    """Write a video (3, f, h, w) in [0, 1] as h264 in yuv420p, which every player and browser reads.

    Height and width must be even, since yuv420p has one colour for 2 × 2 pixels. Raises ValueError for another shape,
    an odd size or an fps out of 0.01 to 1000, TypeError for a tensor that is not float.
    """
    rate, frames = _check_fps(fps, MAX_FPS), _pixels(video, 1)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even for mp4, got {height} × {width}")
    with written(path) as temporary, av.open(_as_file(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=H264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = THREADS
        # Without these marks players guess what the colours mean.
        codec.colorspace, codec.color_range = Colorspace.ITU709, ColorRange.MPEG
        codec.color_primaries, codec.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            colours = {"format": "yuv420p", "dst_colorspace": Colorspace.ITU709}
            frame = frame.reformat(**colours, interpolation=FINE, threads=THREADS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_gif(path: str | Path, video: Tensor, fps: float, scale: int = 1) -> None:
    """Write a video (3, f, h, w) in [0, 1], `scale` times larger, as a looping gif with up to 256 colours per frame.

    Times in a gif are multiples of 1/100 s; those of the frames are rounded. Raises ValueError for another shape, a
    scale below 1 or an fps out of 0.01 to 50, above which browsers slow down, TypeError for a tensor that is not float.
    """
    rate, frames = _check_fps(fps, 50), _pixels(video, scale)
    starts = [round(number * 100 / rate) for number in range(len(frames) + 1)]
    loop = {"loop": "0", "final_delay": str(starts[-1] - starts[-2])}
    with written(path) as temporary, av.open(_as_file(temporary), "w", format="gif", options=loop) as container:
        stream = container.add_stream("gif", rate=100)
        stream.codec_context.thread_count = THREADS
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "pal8"
        for start, pixels in zip(starts, frames):
            frame = av.VideoFrame.from_ndarray(_paletted(pixels), format="pal8")
            frame.pts, frame.time_base = start, Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _paletted(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (h, w, 3) -> indices (h, w) into a palette, and the palette (256, 4); exact up to 256 colours."""
    colours, indices = np.unique(rearrange(pixels, "h w c -> (h w) c"), axis=0, return_inverse=True)
    if len(colours) <= 256:
        indices = rearrange(indices.astype(np.uint8), "(h w) -> h w", h=len(pixels))
    else:
        image = Image.fromarray(pixels).quantize(256, kmeans=1)
        indices = np.asarray(image)
        colours = rearrange(np.array(image.getpalette("RGB")), "(n c) -> n c", c=3)
    palette = np.full((256, 4), 255, dtype=np.uint8)  # alpha first
    palette[: len(colours), 1:] = colours
    return indices, palette


def write_sheet(path: str | Path, rows: Sequence[tuple[str, Tensor]], *, columns: int = 8, scale: int = 1) -> None:
    """Write a png with a row of frames for each (label, video (3, f, h, w) in [0, 1]), the label above the row.

    columns  the most frames of a row: of more frames, those at even distances from the first to the last are shown
    scale    how many times larger the frames are shown

    Raises ValueError for no rows, columns or scale below 1 and other shapes, TypeError for a tensor that is not float.
    """
    if not rows:
        raise ValueError("rows must have at least one (label, video), got none")
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    strips = [_strip(video, columns, scale) for _, video in rows]
    width = max(strip.width for strip in strips)
    labels = [_label(label, width) for label, _ in rows]
    parts = [part for pair in zip(labels, strips) for part in pair if part is not None]
    sheet = Image.new("RGB", (width + 2 * GAP, sum(part.height + GAP for part in parts) + GAP), "white")
    top = GAP
    for part in parts:
        sheet.paste(part, (GAP, top))
        top += part.height + GAP
    with written(path) as temporary:
        sheet.save(temporary, format="png")


def _strip(video: Tensor, columns: int, scale: int) -> Image.Image:
    frames = _pixels(video, scale)
    frames = frames[np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)]
    frames = np.pad(frames, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return Image.fromarray(rearrange(frames, "f h w c -> h (f w) c")[:, :-GAP])


def _label(text: str, width: int) -> Image.Image | None:
    """The text in black on white, wrapped to the width; None for an empty text."""
    font = ImageFont.truetype(FONT, size=12)
    lines = textwrap.wrap(text, max(8, int(width / font.getlength("n"))))
    if not lines:
        return None
    label = Image.new("RGB", (width, 17 * len(lines)), "white")
    ImageDraw.Draw(label).multiline_text((0, 0), "\n".join(lines), fill="black", font=font)
    return label


def write_curves(path: str | Path, csv_path: str | Path) -> None:
    """Write a png of the training curves in a csv file with a column "step": one panel for each other column.

    Empty cells are left out; they are values that are not measured at every step. Columns with "loss" in their name
    have a logarithmic axis where all values are above 0. Raises ValueError for a file without the column step, without
    other columns or without values, and for a cell that is not a number.
    """
    curves = read_curves(Path(csv_path))
    # A Figure made directly, without pyplot, needs no display and changes no global state.
    figure = Figure(figsize=(6 * min(3, len(curves)), 3.5 * -(-len(curves) // 3)), layout="constrained")
    for number, (name, points) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(-(-len(curves) // 3), min(3, len(curves)), number)
        steps, values = zip(*points)
        axes.plot(steps, values, linewidth=1, marker="." if len(values) < 30 else None)
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
        if "loss" in name and min(values) > 0:
            axes.set_yscale("log")
    with written(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def write_plots(
    path: str | Path,
    panels: dict[str, dict[str, list[tuple[float, float]]]],
    *,
    xlabel: str = "",
    ylabel: str = "",
    from_zero: bool = False,
) -> None:
    """Write a png with one panel for each title; a panel has one line through the points (x, y) of each name.

    from_zero  let the y axes begin at 0
    """
    names = list(next(iter(panels.values())))
    shared = len(panels) > 1 and len(names) > 1 and all(list(lines) == names for lines in panels.values())
    height = 3.5 + 0.2 * len(names) * shared  # one legend below all panels
    figure = Figure(figsize=(5 * len(panels), height), layout="constrained")
    for number, (title, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), number)
        for name, points in lines.items():
            axes.plot(*zip(*points), linewidth=1.2, marker="." if len(points) < 30 else None, label=name)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.3)
        if from_zero:
            axes.update_datalim([(axes.dataLim.x0, 0)])  # so that the margin above is a share of the whole height
            axes.autoscale_view()
            axes.set_ylim(bottom=0)
        if len(lines) > 1 and not shared:
            axes.legend()
    if shared:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    with written(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def write_confusion(path: str | Path, tables: dict[str, dict[str, dict[str, int]]]) -> None:
    """Write a png with a confusion matrix for each title, in percent: rows are expected values, columns those read.

    tables  title -> expected value -> value that was read -> count
    """
    figure = Figure(figsize=(4.5 * len(tables), 4), layout="constrained")
    for number, (title, counts) in enumerate(tables.items(), start=1):
        expected = sorted(counts)
        read = [*expected, *sorted({name for row in counts.values() for name in row} - set(expected))]
        shares = [[counts[e].get(r, 0) / sum(counts[e].values()) for r in read] for e in expected]
        axes = figure.add_subplot(1, len(tables), number)
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        for row, column in np.ndindex(len(expected), len(read)):
            if share := shares[row][column]:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(read)), read, rotation=45, ha="right")
        axes.set_yticks(range(len(expected)), expected)
        axes.set(title=f"{title}, %", xlabel="read", ylabel="in the prompt")
    with written(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """The points (step, value) of each column with values, from a csv file with a column "step".

    Errors as in `write_curves`.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or () if name != "step"]
        if "step" not in (reader.fieldnames or ()) or not names:
            raise ValueError(f"{path} must have the columns step and another, got {reader.fieldnames}")
        curves: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for row in reader:
            for name in names:
                if row[name]:
                    curves[name].append((float(row["step"]), float(row[name])))
    if not any(curves.values()):
        raise ValueError(f"{path} must have a value, got only the names {names}")
    return {name: points for name, points in curves.items() if points}


def side_by_side(*rows: Tensor) -> Tensor:
    """Clips (b, c, f, h, w) next to each other, one row of them above the next: (c, f, rows · h, b · w)."""
    lines = [rearrange(clips.cpu(), "b c f h w -> c f h (b w)") for clips in rows]
    return torch.cat(lines, dim=-2)
