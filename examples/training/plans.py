"""plan.json: the arguments and the number of steps that a training was begun with, from which it is resumed.

The plan of train_tokenizer.py lies in OUT/tokenizer, that of a second stage in OUT. train.json, of train.py, holds its
arguments alone.
"""

import argparse
import json
from collections.abc import Collection, Sequence
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

from accelerate import PartialState

from data.flags import flag_of
from data.outputs import written
from data.runs import read_json
from data.sampling import IN_PLAN, SETTABLE

NOT_PLANNED = ("out", "resume", "overwrite", "given")

# What a resumed run takes from its command line, because no step of the training depends on it.
SAMPLING = {IN_PLAN.get(name, name) for name in SETTABLE}
FOLLOWED = {"workers", "checkpoint_every", "compile", "prompts", "stories"} | SAMPLING


# reading and writing


def read_saved(path: Path) -> dict:
    """The object in a JSON file from which a run is resumed. ValueError for other files, and where there is none."""
    if not path.is_file():
        raise ValueError(f"nothing to resume: {path} is not there")
    return read_json(path)


def load_plan(path: Path) -> dict:
    """What `write_plan` wrote. Raises ValueError for other files, and where there is none."""
    plan = read_saved(path)
    steps, arguments, files = plan.get("steps"), plan.get("arguments"), plan.get("files", [])
    named = isinstance(files, list) and all(isinstance(file, str) for file in files)
    if type(steps) is not int or steps < 1 or not isinstance(arguments, dict) or not named:
        raise ValueError(f"{path} is no plan of a training: expected its steps and arguments, got {', '.join(plan)}")
    return plan


def write_plan(path: Path, args: argparse.Namespace, steps: int, **more: object) -> None:
    """Write plan.json: the steps, the arguments, and what else is given. It is there whole or not at all."""
    write_object(path, {"steps": steps, "arguments": planned_of(args), **more})


def write_object(path: Path, values: dict) -> None:
    """Write a JSON file that is there whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def planned_of(args: argparse.Namespace) -> dict:
    """The arguments that a plan holds."""
    return {name: value for name, value in vars(args).items() if name not in NOT_PLANNED}


# resuming


def resumed(parser: argparse.ArgumentParser, args: argparse.Namespace, path: Path) -> argparse.Namespace:
    """The arguments of a plan; what the command line adds to them is followed, or named as ignored.

    Followed are more --steps, and what no step of the training depends on. The names of the arguments that are
    followed are the new `given`, so that only these are checked for an effect. Raises ValueError for a damaged plan.
    """
    plan = load_plan(path)
    planned = parsed_again(parser, path, plan["arguments"])
    planned.steps = plan["steps"]
    if extended(args, planned, "steps"):
        say(f"--resume: {args.steps} steps in place of {plan['steps']}; the schedule follows the new number")
    return follow(args, planned, FOLLOWED)


def parsed_again(parser: argparse.ArgumentParser, path: Path, arguments: dict) -> argparse.Namespace:
    """Saved arguments, parsed like a command line. What is not saved has its default.

    Raises ValueError for unknown names and for values out of range.
    """
    words = [word for name, value in arguments.items() for word in words_of(name, value)]
    said = StringIO()
    try:
        with redirect_stderr(said):
            return parser.parse_args(words)
    except SystemExit:
        reason = said.getvalue().partition("error: ")[2].strip() or "--help among them"
        raise ValueError(f"{path} does not hold the arguments of this program: {reason}") from None


def words_of(name: str, value: object) -> Sequence[str]:
    """An argument as a command line has it; none for a switch that is off."""
    if value is None or value is False:
        return []
    if value is True:
        return [flag_of(name)]
    if isinstance(value, list):
        return [flag_of(name), *map(str, value)]
    return [f"{flag_of(name)}={value}"]


def extended(args: argparse.Namespace, planned: argparse.Namespace, name: str) -> bool:
    """Take a number of steps from the command line, if it is larger than the planned one; whether it is."""
    longer = name in args.given and getattr(args, name) > getattr(planned, name)
    if longer:
        setattr(planned, name, getattr(args, name))
    return longer


def follow(args: argparse.Namespace, planned: argparse.Namespace, followed: Collection[str]) -> argparse.Namespace:
    """The planned arguments with those of the command line that are `followed`; a line names the others that differ."""
    planned.out, planned.resume, planned.given = args.out, args.resume, args.given & set(followed)
    for name in planned.given:
        setattr(planned, name, getattr(args, name))
    ignored = [flag_of(name) for name in sorted(args.given - {"out", "resume"}) if _differs(args, planned, name)]
    if ignored:
        say(f"--resume: ignored {', '.join(ignored)}, because the training was begun with other values")
    return planned


def _differs(args: argparse.Namespace, planned: argparse.Namespace, name: str) -> bool:
    one, other = (_comparable(getattr(each, name)) for each in (args, planned))
    return one != other and one != Path("auto")  # "auto" is what the plan resolved


def _comparable(value: object) -> object:
    return Path(value) if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else value


def say(text: str) -> None:
    """Print a line, once for all processes of a run."""
    PartialState().print(text, flush=True)


# the files of a folder of data


def files_of(sets: Sequence[object]) -> list[str]:
    """The paths of the files that data sets read, relative to their folder; none of data that is drawn."""
    return sorted({file for dataset in sets for file in getattr(dataset, "files", ())})


def change_of_files(planned: Collection[str], files: Collection[str]) -> str | None:
    """A line that says how the files differ from those of the plan; None where they do not."""
    added, removed = set(files) - set(planned), set(planned) - set(files)
    if not (added or removed):
        return None
    names = ", ".join(sorted(added | removed)[:3])
    return f"the files of --data have changed since the plan: {len(added)} added, {len(removed)} removed ({names} ...)"
