"""Phenaki: text to video of any length. The public names, in the order in which data flows."""

from beartype import BeartypeConf
from beartype.claw import beartype_this_package

# Every annotated function refuses arguments of the wrong kind with a TypeError; where a float is asked for, an int
# will do. Not inside the transformers: looking into tuples breaks the graphs of torch.compile.
beartype_this_package(
    conf=BeartypeConf(
        is_pep484_tower=True,
        violation_param_type=TypeError,
        claw_skip_package_names=("phenaki_pytorch.attention", "phenaki_pytorch.position", "phenaki_pytorch.vivit"),
    )
)

from phenaki_pytorch.attention import checkpoint_activations  # noqa: E402
from phenaki_pytorch.critic import SelfCritic, TokenCritic  # noqa: E402
from phenaki_pytorch.cvivit import CViViT  # noqa: E402
from phenaki_pytorch.discriminator import Discriminator  # noqa: E402
from phenaki_pytorch.guidance import GuidedTeacher  # noqa: E402
from phenaki_pytorch.losses import LossWeights  # noqa: E402
from phenaki_pytorch.maskgit import MaskGit  # noqa: E402
from phenaki_pytorch.phenaki import Phenaki  # noqa: E402
from phenaki_pytorch.t5 import T5TextEncoder  # noqa: E402

__all__ = [
    "CViViT",
    "Discriminator",
    "GuidedTeacher",
    "LossWeights",
    "MaskGit",
    "Phenaki",
    "SelfCritic",
    "T5TextEncoder",
    "TokenCritic",
    "checkpoint_activations",
]
