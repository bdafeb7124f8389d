"""Phenaki, VideoGPT and Latte: video of any length from text, frames, actions or classes. The public names."""

from beartype import BeartypeConf
from beartype.claw import beartype_this_package

# Annotated functions refuse arguments of the wrong kind with a TypeError; ints are accepted as floats. The layers
# are left out, because checking tuples breaks the graphs of torch.compile.
beartype_this_package(
    conf=BeartypeConf(
        is_pep484_tower=True,
        violation_param_type=TypeError,
        claw_skip_package_names=(
            "phenaki_pytorch.diffusion.blocks",
            "phenaki_pytorch.layers",
            "phenaki_pytorch.priors.gpt_blocks",
            "phenaki_pytorch.tokenizers.causal_vit",
        ),
    )
)

from phenaki_pytorch.conditions.frames import FrameEncoder, FrameMapEncoder  # noqa: E402
from phenaki_pytorch.conditions.t5 import T5TextEncoder  # noqa: E402
from phenaki_pytorch.core.modules import checkpoint_activations  # noqa: E402
from phenaki_pytorch.diffusion.latte_transformer import LatteTransformer  # noqa: E402
from phenaki_pytorch.diffusion.options import DiffusionOptions  # noqa: E402
from phenaki_pytorch.latte import Latte  # noqa: E402
from phenaki_pytorch.phenaki import Phenaki  # noqa: E402
from phenaki_pytorch.priors.autoregressive import RasterOptions  # noqa: E402
from phenaki_pytorch.priors.critic import SelfCritic, TokenCritic  # noqa: E402
from phenaki_pytorch.priors.decoding import SamplingOptions  # noqa: E402
from phenaki_pytorch.priors.distillation import GuidedTeacher  # noqa: E402
from phenaki_pytorch.priors.gpt import GPT  # noqa: E402
from phenaki_pytorch.priors.maskgit import MaskGit  # noqa: E402
from phenaki_pytorch.tokenizers.cvivit import CViViT  # noqa: E402
from phenaki_pytorch.tokenizers.discriminators import Discriminator, PatchDiscriminator  # noqa: E402
from phenaki_pytorch.tokenizers.image_vae import ImageVAE  # noqa: E402
from phenaki_pytorch.tokenizers.losses import LAION_WEIGHTS, LossWeights  # noqa: E402
from phenaki_pytorch.tokenizers.vqgan import VQGAN  # noqa: E402
from phenaki_pytorch.tokenizers.vqvae import VQVAE  # noqa: E402
from phenaki_pytorch.videogpt import VideoGPT  # noqa: E402

__all__ = [
    "GPT",
    "LAION_WEIGHTS",
    "VQGAN",
    "VQVAE",
    "CViViT",
    "DiffusionOptions",
    "Discriminator",
    "FrameEncoder",
    "FrameMapEncoder",
    "GuidedTeacher",
    "ImageVAE",
    "Latte",
    "LatteTransformer",
    "LossWeights",
    "MaskGit",
    "PatchDiscriminator",
    "Phenaki",
    "RasterOptions",
    "SamplingOptions",
    "SelfCritic",
    "T5TextEncoder",
    "TokenCritic",
    "VideoGPT",
    "checkpoint_activations",
]
