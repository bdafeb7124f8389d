"""Train the second stage: a prior over the ids of a trained tokenizer; then generate samples and measure them.

    python examples/train_prior.py                                    # after train_tokenizer.py with the same --out
    python examples/train_prior.py --prior gpt --condition classes    # each caption is a class
    python examples/train_prior.py --prior gpt --data FOLDER --condition frames actions   # with an actions.csv
    python examples/train_prior.py --tokenizer FOLDER --data FOLDER   # another tokenizer, your own captioned clips
    accelerate launch examples/train_prior.py ...                     # several devices
    python examples/train_prior.py --resume                           # go on where the training was stopped
    python examples/train_prior.py --model FOLDER ...                 # begin with a trained model
    python examples/train_prior.py --model FOLDER --distil-guidance 2 ...   # and learn to need no guidance

A maskgit predicts many ids at once, in a few steps, given captions or nothing. A gpt predicts one id after the other,
given any of: captions as texts, captions as classes, first frames, actions. Flags of the other prior are refused.
--flip is refused for a folder that has an actions.csv, as left and right would become wrong.

Leaves in --out: model/, which generate.py and `Phenaki.from_pretrained` or `VideoGPT.from_pretrained` read, tokenizer
included and the text encoder `words` not; plan.json; maskgit/ or gpt/ with curves, checkpoints and samples;
results.json; of a maskgit, story.gif.
"""

from collections.abc import Sequence

from data.flags import mistakes_in_one_line
from training.arguments import prior_arguments
from training.second_stage import train_second_stage
from training.stage import STOPPED, one_run


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line(__file__, STOPPED):
        args = prior_arguments(argv, __doc__)
        with one_run(args.out):
            train_second_stage(args)


if __name__ == "__main__":
    main()
