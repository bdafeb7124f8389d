"""Phenaki: text to video of any length. The public names, in the order in which data flows."""

from beartype import BeartypeConf
from beartype.claw import beartype_this_package

# Annotated functions refuse arguments of the wrong kind with a TypeError; ints are accepted as floats. The layers
# are left out, because checking tuples breaks the graphs of torch.compile.
beartype_this_package(
    conf=BeartypeConf(
        is_pep484_tower=True,
        violation_param_type=TypeError,
        claw_skip_package_names=("phenaki_pytorch.layers", "phenaki_pytorch.tokenizers.causal_vit"),
    )
)

from phenaki_pytorch.conditions.t5 import T5TextEncoder  # noqa: E402
from phenaki_pytorch.layers.transformer import checkpoint_activations  # noqa: E402
from phenaki_pytorch.phenaki import Phenaki  # noqa: E402
from phenaki_pytorch.priors.critic import SelfCritic, TokenCritic  # noqa: E402
from phenaki_pytorch.priors.decoding import SamplingOptions  # noqa: E402
from phenaki_pytorch.priors.distillation import GuidedTeacher  # noqa: E402
from phenaki_pytorch.priors.maskgit import MaskGit  # noqa: E402
from phenaki_pytorch.tokenizers.cvivit import CViViT  # noqa: E402
from phenaki_pytorch.tokenizers.discriminators import Discriminator  # noqa: E402
from phenaki_pytorch.tokenizers.losses import LossWeights  # noqa: E402

__all__ = [
    "CViViT",
    "Discriminator",
    "GuidedTeacher",
    "LossWeights",
    "MaskGit",
    "Phenaki",
    "SamplingOptions",
    "SelfCritic",
    "T5TextEncoder",
    "TokenCritic",
    "checkpoint_activations",
]
