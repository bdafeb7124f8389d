"""Train both stages on moving shapes, from nothing to video: the tokenizer, then MaskGit over its ids; then a story.

    python examples/train.py                        # takes about half an hour on two cores, needs no GPU and no files
    python examples/train.py --minutes 10           # as much training as fits, evaluation not included
    python examples/train.py --resume               # go on in the stage in which the training was stopped

This is train_tokenizer.py and then train_prior.py, with the same --out. Use those two for your own videos, other sizes,
critics, or a tokenizer that you have.

Leaves in --out what they leave: model/ (what `Phenaki.from_pretrained` and generate.py read), tokenizer/ and maskgit/
with curves, checkpoints, reconstructions and samples, story.gif, results.json, and train.json with the arguments.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from data.flags import given_names, integer, mistakes_in_one_line, number, path, refuse_idle
from training.arguments import SEED, add_overwrite, new_parser, prior_arguments, tokenizer_arguments
from training.plans import extended, follow, parsed_again, planned_of, read_saved, write_object
from training.second_stage import train_second_stage
from training.stage import STAGES, STOPPED, check_held, one_run
from training.tokenizer import train_tokenizer

STEPS = ("tokenizer_steps", "prior_steps")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--out", type=path, default=Path("runs/phenaki"), help="the folder of the results; default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out, to more steps if given")
    add_overwrite(add)
    add("--seed", type=SEED, default=0)
    add("--tokenizer-steps", type=integer(), default=1200, help="steps of training; default: %(default)s")
    add("--prior-steps", type=integer(), default=4100, help="steps of training; default: %(default)s")
    add("--minutes", type=number(above=0), help="instead of both: as many steps as fit, by short timed runs")
    add(
        "--share",
        type=number(above=0, below=1),
        default=0.2,
        help="the tokenizer's share of --minutes; default: %(default)s",
    )
    add("--compile", action="store_true", help="torch.compile the transformers")
    add("--precision", choices=("auto", "no", "bf16"), default="auto", help="auto: bf16 where the hardware has it")
    args = parser.parse_args(argv)
    args.given = given_names(parser, argv)
    if args.resume:
        refuse_idle(parser, args.given, "beside --resume", "overwrite")
        return resumed(parser, args)
    if args.minutes is None:
        refuse_idle(parser, args.given, "without --minutes", "share")
    else:
        refuse_idle(parser, args.given, "beside --minutes", *STEPS)
    return args


def resumed(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    """The arguments of train.json, with more steps where the command line asks for them.

    Raises ValueError for a damaged train.json, and for more steps of a tokenizer whose ids MaskGit has learnt.
    """
    path = args.out / "train.json"
    planned = parsed_again(parser, path, read_saved(path))
    if planned.minutes is None:
        longer = [name for name in STEPS if extended(args, planned, name)]
        if "tokenizer_steps" in longer and (args.out / "plan.json").is_file():
            raise ValueError("the second stage has begun with the tokenizer as it is: expected no more of its steps")
    return follow(args, planned, {"compile"})


def plans_of(args: argparse.Namespace) -> tuple[Path, Path]:
    """The plans of the two stages."""
    return args.out / "tokenizer" / "plan.json", args.out / "plan.json"


def stages(args: argparse.Namespace) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The arguments of the two stages, each resumed if its plan is there."""
    parses, steps, shares = (tokenizer_arguments, prior_arguments), STEPS, (args.share, 1 - args.share)
    return tuple(
        parse(stage_words(args, plan, getattr(args, name), share))
        for parse, plan, name, share in zip(parses, plans_of(args), steps, shares)
    )


def stage_words(args: argparse.Namespace, plan: Path, steps: int, share: float) -> list[str]:
    """The command line of a stage."""
    words = ["--out", str(args.out), "--seed", str(args.seed), "--precision", args.precision]
    words += ["--steps", str(steps)] if args.minutes is None else ["--minutes", str(share * args.minutes)]
    words += ["--compile"] * args.compile + ["--overwrite"] * args.overwrite
    return words + ["--resume"] * (args.resume and plan.is_file())


def remember(args: argparse.Namespace) -> None:
    """Write train.json; a new run deletes the plans of the previous one."""
    if not PartialState().is_main_process:
        return
    for plan in () if args.resume else plans_of(args):
        plan.unlink(missing_ok=True)
    write_object(args.out / "train.json", planned_of(args))


def main(argv: Sequence[str] | None = None) -> None:
    began = time.time()
    with mistakes_in_one_line(__file__, STOPPED):
        args = parse_arguments(argv)
        with one_run(args.out):
            check_held(args, *STAGES)
            first, second = stages(args)
            remember(args)
            train_tokenizer(first)
            train_second_stage(second, began=began)


if __name__ == "__main__":
    main()
