"""Write the figures of evaluate.py into Markdown files, so that no figure is copied by hand.

    python examples/report.py examples/pretrained/results.json examples/README.md examples/pretrained/README.md

The text between `<!-- claims -->` and `<!-- /claims -->` is replaced by the table of the claims, between
`<!-- measures -->` and `<!-- /measures -->` by that of all figures, and between `<!-- curves -->` and
`<!-- /curves -->` by a table of the training curves of each stage. The rest of a file stays as it is. Measures that the
results lack are left out and named.
"""

import argparse
import math
import re
import sys
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

from data.flags import mistakes_in_one_line, path
from data.outputs import check_writable, written
from data.runs import read_json

# label -> "measure / figure" in results.json
CLAIMS = {
    'text to video, "moves": all right': "1 text to video / all, moves",
    'text to video, "turns": all right': "1 text to video / all, turns",
    "pairs of colour and shape that are in no captioned video: all right": "2 held-out pairs / all",
    "a pair of colour and shape that is in no caption: all right": "2 unseen pair / all",
    "videos of a colour that only images show: all right": "3 white objects / all",
    "the same with a model trained without images": "3 white objects, trained without images / all",
    "text to image: all right": "4 text to image / all",
    "animation of an image: motion right": "5 animation / motion",
    "animation of an image: colour and shape kept": "5 animation / object kept",
    "prediction from 5 frames: mean distance from the true position, pixels": "6 prediction / error",
    "the same for an object that stands still": "6 prediction / error, standing still",
    "the same for an object of constant velocity": "6 prediction / error, constant velocity",
    'story of three prompts, "moves": every scene right': "7 story, moves / every scene right",
    'story of three prompts, "turns": every scene right': "7 story, turns / every scene right",
    'story, "turns": change between frames at the seams, over that within scenes': "7 story, turns / seam ratio",
    'story, "turns": speed of the object, over that of drawn clips': "7 story, turns / speed over the drawn one",
    "ten windows of one prompt: all right in the first window": "8 ten windows / window 1",
    "ten windows of one prompt: all right in the tenth window": "8 ten windows / window 10",
    "distance between the starts of 64 videos of one prompt, over that of drawn clips": (
        "9 variety / spread over the data's"
    ),
}


def figure(value: dict | float | None) -> str:
    """A share in percent, or another figure, with its 95 % interval if it has one; "-" for None."""
    if value is None:
        return "-"
    if not isinstance(value, dict):
        return f"{value:.3g}"
    middle, low, high = (value[name] for name in ("value", "low", "high"))
    if value["kind"] == "share":
        return f"{100 * middle:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
    return "-" if middle is None else f"{middle:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def claims(results: dict) -> str:
    """The table of the claims; those that were not measured are left out and named on stderr."""
    rows = ["| claim | measured | of |", "|---|---|---|"]
    for claim, key in CLAIMS.items():
        measure, _, name = key.partition(" / ")
        if value := results["measures"].get(measure, {}).get(name):
            rows.append(f"| {claim} | {figure(value)} | {value['of']} |")
        else:
            print(f"not measured, left out: {claim}", file=sys.stderr)
    return "\n".join(rows)


def measures(results: dict) -> str:
    """The table of all figures."""
    rows = ["| measure | figure | value | of |", "|---|---|---|---|"]
    for measure, figures in results["measures"].items():
        for name, value in figures.items():
            rows.append(f"| {measure} | {name} | {figure(value)} | {value['of'] if isinstance(value, dict) else ''} |")
    return "\n".join(rows)


def curves(results: dict) -> str:
    """A table for each stage, with the rows of its training curves; a stage without any is named on stderr."""
    tables = []
    for stage in ("tokenizer", "maskgit"):
        if not results["curves"].get(stage):
            print(f"no curves, left out: {stage}", file=sys.stderr)
    for stage, rows in results["curves"].items():
        if not rows:
            continue
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in ("step", "lr")]
        lines = [f"| {stage}, step | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        lines += [f"| {row['step']:,.0f} | {' | '.join(figure(row.get(name)) for name in names)} |" for row in rows]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


TABLES: dict[str, Callable[[dict], str]] = {"claims": claims, "measures": measures, "curves": curves}


def read_results(path: Path) -> dict:
    """The results of evaluate.py. ValueError, with the file's name, where they are something else."""
    results = read_json(path)
    fits = is_table(results.get("measures"), lambda figures: is_table(figures, is_figure))
    fits = fits and is_table(results.setdefault("curves", {}), is_curve)
    if not fits:
        raise ValueError(f"{path} must hold what evaluate.py writes: figures as measures, and curves")
    return results


def is_table(value: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(map(fits, value.values()))


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_figure(value: object) -> bool:
    """A number or null, or a share or a mean with its interval and the number of trials."""
    if not isinstance(value, dict):
        return value is None or is_number(value)
    numbers = [value.get(name) for name in ("value", "low", "high")]
    fits = all(number is None or is_number(number) for number in numbers) and isinstance(value.get("of"), int)
    return fits and (value.get("kind") == "mean" or (value.get("kind") == "share" and None not in numbers))


def is_curve(rows: object) -> bool:
    """Rows with a step, of numbers or null."""
    return isinstance(rows, list) and all(
        is_table(row, lambda value: value is None or is_number(value)) and is_number(row.get("step")) for row in rows
    )


def filled(text: str, results: dict) -> str:
    """The text with the tables of the results, whose lines end as those of the text do.

    Raises ValueError where it has no place for any table, and for markers that are not in pairs.
    """
    names = places_of(text)
    if not names:
        raise ValueError(f"expected a place for one of {', '.join(TABLES)}: <!-- claims --> ... <!-- /claims -->")
    end = "\r\n" if "\r\n" in text else "\n"
    for name in dict.fromkeys(names):
        table = f"<!-- {name} -->\n\n{TABLES[name](results)}\n\n<!-- /{name} -->".replace("\n", end)
        text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, table=table: table, text, flags=re.DOTALL)
    return text


def places_of(text: str) -> list[str]:
    """The names of the tables that a text has places for. ValueError for markers that are not in pairs."""
    markers = re.findall(rf"<!-- /?(?:{'|'.join(TABLES)}) -->", text)
    for first, second in zip_longest(markers[::2], markers[1::2]):
        if first.startswith("<!-- /") or second != first.replace("<!-- ", "<!-- /"):
            raise ValueError(f"expected pairs such as <!-- claims --> ... <!-- /claims -->, got {first} {second or ''}")
    return [marker.split()[1] for marker in markers[::2]]


def rewritten(path: Path, results: dict) -> str:
    """The text of a file with the tables of the results. Errors have the file's name."""
    check_writable(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return filled(file.read(), results)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=path, help="results.json of evaluate.py")
    parser.add_argument("files", type=path, nargs="+", help="Markdown to write the tables into")
    args = parser.parse_args(argv)
    with mistakes_in_one_line(__file__):
        results = read_results(args.results)
        texts = {file: rewritten(file, results) for file in args.files}
        for place, text in texts.items():
            # A link stays one, and the line ends stay as they are.
            with written(place.resolve()) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(text)


if __name__ == "__main__":
    main()
