"""Train Latte: diffusion of the continuous latents of a trained tokenizer, or of an image VAE; then sample and measure.

    python examples/train_diffusion.py                                # after train_tokenizer.py with the same --out
    python examples/train_diffusion.py --tokenizer examples/pretrained/model --out runs/latte
    python examples/train_diffusion.py --condition classes            # each caption is a class
    python examples/train_diffusion.py --vae FOLDER --size 256 --data FOLDER   # your own clips, an image VAE
    python examples/train_diffusion.py --joint-images 8               # images follow each clip, as in Latte
    accelerate launch examples/train_diffusion.py ...                 # several devices
    python examples/train_diffusion.py --resume                       # go on where the training was stopped
    python examples/train_diffusion.py --model FOLDER ...             # begin with a trained model

Latents are computed once, before the training. Those of a tokenizer are what its decoder reads, before they are rounded
to codes; those of an image VAE are drawn once for each clip. --vae needs the package diffusers.
--flip is refused for a folder that has an actions.csv, as left and right would become wrong.

The sizes, and defaults of the recipe, are those of a small model on a processor. Latte's own: AdamW, a constant --lr of
0.0001, --ema 0.9999, and the sizes in presets.py.

Leaves in --out: model/, which generate.py and `Latte.from_pretrained` read, tokenizer included, an image VAE and the
text encoder "words" not; plan.json; latte/ with curves, checkpoints and samples; results.json.
"""

from collections.abc import Sequence

from data.flags import mistakes_in_one_line
from training.arguments import diffusion_arguments
from training.second_stage import train_second_stage
from training.stage import STOPPED, one_run


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line(__file__, STOPPED):
        args = diffusion_arguments(argv, __doc__)
        with one_run(args.out):
            train_second_stage(args)


if __name__ == "__main__":
    main()
