"""Train the second stage: MaskGit over the ids of a trained tokenizer, given captions; then generate a story.

    python examples/train_prior.py                                    # after train_tokenizer.py with the same --out
    python examples/train_prior.py --tokenizer FOLDER --data FOLDER   # another tokenizer, your own captioned clips
    accelerate launch examples/train_prior.py ...                     # several devices
    python examples/train_prior.py --resume                           # go on where the training was stopped
    python examples/train_prior.py --model FOLDER ...                 # begin with a trained model
    python examples/train_prior.py --model FOLDER --distil-guidance 2 ...   # and learn to need no guidance

Leaves in --out: model/, which `Phenaki.from_pretrained` and generate.py read, tokenizer included; plan.json; maskgit/
with curves, checkpoints and samples; story.gif and results.json.
"""

from collections.abc import Sequence

from data.flags import mistakes_in_one_line
from training.arguments import prior_arguments
from training.prior import train_prior
from training.stage import STOPPED, one_run


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line(__file__, STOPPED):
        args = prior_arguments(argv, __doc__)
        with one_run(args.out):
            train_prior(args)


if __name__ == "__main__":
    main()
