"""Write the figures of evaluate.py into Markdown, so that none is copied by hand.

    python examples/report.py examples/pretrained/results.json README.md examples/pretrained/README.md

What stands between `<!-- claims -->` and `<!-- /claims -->` becomes the table of the claims, between
`<!-- measures -->` and `<!-- /measures -->` that of all figures, and between `<!-- curves -->` and `<!-- /curves -->`
one for each stage, of how its training went. The rest of a file stays as it is.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CLAIMS = {
    'text to video, "moves": all right': "1 text to video / all, moves",
    'text to video, "turns": all right': "1 text to video / all, turns",
    "pairs of colour and shape that no captioned video shows": "2 held-out pairs / all",
    "a pair that no caption names": "2 unseen pair / all",
    "a colour that only images show, moving": "3 white objects / all",
    "the same, by a model trained without images": "3 white objects, trained without images / all",
    "text to image": "4 text to image / all",
    "an image set in motion: motion right": "5 animation / motion",
    "an image set in motion: object kept": "5 animation / object kept",
    "prediction from 5 frames: error, pixels": "6 prediction / error",
    "the same, standing still": "6 prediction / error, standing still",
    "the same, constant velocity": "6 prediction / error, constant velocity",
    'a story of three prompts, "moves": every scene right': "7 story, moves / every scene right",
    'a story of three prompts, "turns": every scene right': "7 story, turns / every scene right",
    'the same stories, "turns": change across the seams over that within the scenes': "7 story, turns / seam ratio",
    'the same stories, "turns": speed of the object over that of drawn clips': (
        "7 story, turns / speed over the drawn one"
    ),
    "ten windows of one prompt: all right in the first": "8 ten windows / window 1",
    "the same, in the tenth": "8 ten windows / window 10",
    "variety: how far apart 64 videos of one prompt start, over the same of drawn clips": (
        "9 variety / spread over the data's"
    ),
}


def figure(value: dict | float | None) -> str:
    """A share in percent, another figure as it is; with its 95 % interval, where it has one. "-" is not a number."""
    if value is None:
        return "-"
    if not isinstance(value, dict):
        return f"{value:.3g}"
    middle, low, high = (value[name] for name in ("value", "low", "high"))
    if value["kind"] == "share":
        return f"{100 * middle:.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
    return "-" if middle is None else f"{middle:.2f}" + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def claims(results: dict) -> str:
    """The table of what is claimed; what was not measured is left out, and named on the way."""
    rows = ["| claim | measured | of |", "|---|---|---|"]
    for claim, place in CLAIMS.items():
        measure, _, name = place.partition(" / ")
        if value := results["measures"].get(measure, {}).get(name):
            rows.append(f"| {claim} | {figure(value)} | {value['of']} |")
        else:
            print(f"not measured, left out: {claim}", file=sys.stderr)
    return "\n".join(rows)


def measures(results: dict) -> str:
    """The table of every figure."""
    rows = ["| measure | figure | value | of |", "|---|---|---|---|"]
    for measure, figures in results["measures"].items():
        for name, value in figures.items():
            rows.append(f"| {measure} | {name} | {figure(value)} | {value['of'] if isinstance(value, dict) else ''} |")
    return "\n".join(rows)


def curves(results: dict) -> str:
    """A table for each stage, of some rows of its curves."""
    tables = []
    for stage, rows in results["curves"].items():
        names = [name for name in rows[0] if name not in ("step", "lr")]
        lines = [f"| {stage}, step | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        lines += [f"| {row['step']:,.0f} | {' | '.join(figure(row[name]) for name in names)} |" for row in rows]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


TABLES: dict[str, Callable[[dict], str]] = {"claims": claims, "measures": measures, "curves": curves}


def filled(text: str, results: dict) -> str:
    """The text with its tables as the results have them. ValueError where it has no place for one."""
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
