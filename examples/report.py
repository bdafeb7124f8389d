"""Write the figures of evaluate.py into Markdown files, so that no figure is copied by hand.

    python examples/report.py examples/pretrained/results.json examples/README.md examples/pretrained/README.md

The text between `<!-- claims -->` and `<!-- /claims -->` is replaced by the table of the claims, between
`<!-- measures -->` and `<!-- /measures -->` by that of all figures, and between `<!-- curves -->` and
`<!-- /curves -->` by a table of the training curves of each stage. The rest of a file stays as it is.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
    """A table for each stage, with the rows of its training curves."""
    tables = []
    for stage, rows in results["curves"].items():
        names = [name for name in rows[0] if name not in ("step", "lr")]
        lines = [f"| {stage}, step | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        lines += [f"| {row['step']:,.0f} | {' | '.join(figure(row[name]) for name in names)} |" for row in rows]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


TABLES: dict[str, Callable[[dict], str]] = {"claims": claims, "measures": measures, "curves": curves}


def filled(text: str, results: dict) -> str:
    """The text with the tables of the results. Raises ValueError where it has no place for any table."""
    places = [name for name in TABLES if f"<!-- {name} -->" in text and f"<!-- /{name} -->" in text]
    if not places:
        raise ValueError(f"expected a place for one of {', '.join(TABLES)}: <!-- claims --> ... <!-- /claims -->")
    for name in places:
        table = f"<!-- {name} -->\n\n{TABLES[name](results)}\n\n<!-- /{name} -->"
        text = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, table=table: table, text, flags=re.DOTALL)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of evaluate.py")
    parser.add_argument("files", type=Path, nargs="+", help="Markdown to write the tables into")
    args = parser.parse_args(argv)
    try:
        results = json.loads(args.results.read_text())
        texts = {path: path.read_text(encoding="utf-8") for path in args.files}
    except (ValueError, OSError) as error:
        raise SystemExit(f"report.py: {error}") from error
    for path, text in texts.items():
        try:
            texts[path] = filled(text, results)
        except ValueError as error:
            raise SystemExit(f"report.py: {path}: {error}") from error
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
