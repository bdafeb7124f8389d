"""Train the first stage, a tokenizer, on moving shapes or on a folder of videos and images.

    python examples/train_tokenizer.py                                        # a CViViT, on moving shapes
    python examples/train_tokenizer.py --tokenizer vqvae                      # VideoGPT's tokenizer
    python examples/train_tokenizer.py --tokenizer vqgan                      # LAION's
    python examples/train_tokenizer.py --data FOLDER --size 64 --frames 13    # your own clips and pictures
    accelerate launch examples/train_tokenizer.py ...                         # several devices
    python examples/train_tokenizer.py --resume                               # go on where the training was stopped
    python examples/train_tokenizer.py --model FOLDER ...                     # begin with a trained tokenizer
    python examples/train_tokenizer.py --overwrite ...                        # replace the training that --out holds

A CViViT is made of transformers over patches, a VQVAE of 3-D convolutions and axial attention, a VQGAN of 3-D
convolutions. With the default --strides a VQVAE takes no images. Flags of another tokenizer are refused.

Leaves in --out: the tokenizer, in model/cvivit or, of the other kinds, in model/tokenizer, which train_prior.py reads;
and tokenizer/ with plan.json, curves, checkpoints and reconstructions; with --adversarial also discriminator/.

--flip is refused for a folder that has an actions.csv, as left and right would become wrong.

--image-perceptual, --video-perceptual and --adversarial add the other terms of the paper's loss. How their weights
were found, and what makes this training unstable, is in results/adversarial.md.
"""

from collections.abc import Sequence

from data.flags import mistakes_in_one_line
from training.arguments import tokenizer_arguments
from training.stage import STOPPED, one_run
from training.tokenizer import train_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    with mistakes_in_one_line(__file__, STOPPED):
        args = tokenizer_arguments(argv, __doc__)
        with one_run(args.out):
            train_tokenizer(args)


if __name__ == "__main__":
    main()
