"""What a failure looks like while a training runs, and what to try. A loss that is not finite ends the training.

Of the others there are warnings, each given once.

A row is what `fit` writes into the curves: the tokenizer's has the entropy of its ids, MaskGit's has its loss where all
ids are masked, with the captions ("blank_loss") and without them ("blank_loss_no_text").
"""

import math
from collections.abc import Callable

EARLY = 0.2  # share of the steps up to which there is no warning
FEW_CODES = 2.0  # perplexity of the ids below which they carry next to no information
SAME_LOSS = 0.01  # share of the loss


def check_loss(loss: float, step: int) -> None:
    """Refuse, with a ValueError, a loss that is not finite: no later step could repair the weights."""
    if not math.isfinite(loss):
        raise ValueError(f"the loss is not a finite number, step {step}: lower --lr, or use --precision no")


def collapsed(row: dict[str, float], done: float) -> bool:
    return done >= EARLY and math.exp(row.get("entropy", math.inf)) < FEW_CODES


def ignores_text(row: dict[str, float], done: float) -> bool:
    if done < EARLY or "blank_loss_no_text" not in row:
        return False
    return row["blank_loss_no_text"] - row["blank_loss"] < SAME_LOSS * row["blank_loss_no_text"]


FAILURES = {
    collapsed: (
        f"codebook collapse: the ids use fewer than {FEW_CODES:g} codes (perplexity), so they carry next to no "
        "information. Train longer, raise --lr, use --quantizer fsq, or smaller patches"
    ),
    ignores_text: (
        "the text is ignored: where all ids are masked, the loss is the same with and without the caption. Check that "
        "each clip has its own caption, train longer, use --mask-schedule cubic or --optimizer muon"
    ),
}


class Diagnosis:
    """Looks for failures in each row of the curves; `done` is the share of the steps that are done."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.left = say, dict(FAILURES)

    def __call__(self, row: dict[str, float], done: float) -> None:
        for failure in [failure for failure in self.left if failure(row, done)]:
            self.say(f"warning, step {row['step']}: {self.left.pop(failure)}")
