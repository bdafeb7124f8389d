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
import json
import time
from collections.abc import Sequence
from pathlib import Path

from training.arguments import new_parser, prior_arguments, tokenizer_arguments
from training.prior import train_prior
from training.tokenizer import train_tokenizer


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/phenaki"), help="the folder of the results; default: %(default)s")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --out, with the same arguments")
    add("--seed", type=int, default=0)
    add("--tokenizer-steps", type=int, default=1200, help="steps of training; default: %(default)s")
    add("--prior-steps", type=int, default=4100, help="steps of training; default: %(default)s")
    add("--minutes", type=float, help="instead of both: as many steps as fit, by short timed runs")
    add("--share", type=float, default=0.2, help="the tokenizer's share of --minutes; default: %(default)s")
    add("--compile", action="store_true", help="torch.compile the transformers")
    add("--precision", choices=("auto", "no", "bf16"), default="auto", help="auto: bf16 where the hardware has it")
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        parser.error(f"--share must be above 0 and below 1, got {args.share}")
    return args


def remembered(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments, of a resumed run those of its start; a new run deletes the plans of the previous one."""
    path = args.out / "train.json"
    if args.resume:
        if not path.is_file():
            raise SystemExit(f"nothing to resume: {path} is not there")
        return argparse.Namespace(**vars(args) | json.loads(path.read_text()))
    for plan in (args.out / "tokenizer" / "plan.json", args.out / "plan.json"):
        plan.unlink(missing_ok=True)
    args.out.mkdir(parents=True, exist_ok=True)
    arguments = {name: value for name, value in vars(args).items() if name not in ("out", "resume")}
    path.write_text(json.dumps(arguments, indent=2) + "\n")
    return args


def stage_arguments(args: argparse.Namespace, plan: Path, steps: int, share: float) -> list[str]:
    """The command line of a stage, which is resumed if its plan is there."""
    words = ["--out", str(args.out), "--seed", str(args.seed), "--precision", args.precision, "--steps", str(steps)]
    words += [] if args.minutes is None else ["--minutes", str(share * args.minutes)]
    return words + ["--compile"] * args.compile + ["--resume"] * plan.is_file()


def main(argv: Sequence[str] | None = None) -> None:
    began = time.time()
    args = remembered(parse_arguments(argv))
    plans = args.out / "tokenizer" / "plan.json", args.out / "plan.json"
    train_tokenizer(tokenizer_arguments(stage_arguments(args, plans[0], args.tokenizer_steps, args.share)))
    train_prior(prior_arguments(stage_arguments(args, plans[1], args.prior_steps, 1 - args.share)), began=began)


if __name__ == "__main__":
    main()
