"""What a training that fails looks like while it runs, and what to try: said once for each trouble.

A row is what `fit` writes into the curves: of the tokenizer with the entropy of its ids, of MaskGit with its loss on
clips of which nothing is known but the caption ("blank_loss"), and not even that ("blank_loss_no_text").
"""

import math
from collections.abc import Callable

EARLY = 0.2  # share of the steps before which nothing but a broken loss is said
FEW_CODES = 2.0  # perplexity of the ids below which they say next to nothing
SAME_LOSS = 0.01  # share of the loss


def broken(row: dict[str, float], done: float) -> bool:
    return not math.isfinite(row["loss"])


def collapsed(row: dict[str, float], done: float) -> bool:
    return done >= EARLY and math.exp(row.get("entropy", math.inf)) < FEW_CODES


def ignores_text(row: dict[str, float], done: float) -> bool:
    if done < EARLY or "blank_loss_no_text" not in row:
        return False
    return row["blank_loss_no_text"] - row["blank_loss"] < SAME_LOSS * row["blank_loss_no_text"]


TROUBLES = {
    broken: "the loss is not a finite number: lower --lr, or use --precision no",
    collapsed: (
        f"codebook collapse: the ids are worth fewer than {FEW_CODES:g} codes, so they say next to nothing of the "
        "video. Train longer, raise --lr, use --quantizer fsq, or smaller patches"
    ),
    ignores_text: (
        "the text is ignored: with nothing else known, the loss is the same without the caption. Look at the captions "
        "(are they there, does each belong to its clip?), train longer, use --mask-schedule cubic or --optimizer muon"
    ),
}


class Diagnosis:
    """Looks at each row of the curves; `done` is the share of the steps behind it."""

    def __init__(self, say: Callable[[str], None]):
        self.say, self.left = say, dict(TROUBLES)

    def __call__(self, row: dict[str, float], done: float) -> None:
        for trouble in [trouble for trouble in self.left if trouble(row, done)]:
            self.say(f"warning, step {row['step']}: {self.left.pop(trouble)}")
