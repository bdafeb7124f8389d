"""Tiny models and data that the tests share."""

import pytest
import torch

from phenaki_pytorch import CViViT, Discriminator, MaskGit, Phenaki, TokenCritic

pytest_plugins = ["t5_models"]

torch.set_num_threads(1)  # as many processes run tests as there are cores

QUANTIZERS = {
    "vq": {},
    "lfq": {},
    "fsq": {"levels": [8, 4]},
    "simvq": {},
}


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same global random state."""
    torch.manual_seed(0)


class WordEncoder:
    """A text encoder of the user's own: one vector a word, the same in every process; padding holds noise."""

    def __init__(self, dim=12):
        self.dim = dim
        self.calls = []

    def __call__(self, texts):
        self.calls.append(list(texts))
        words = [text.split() for text in texts]
        longest = max(1, *(len(each) for each in words))
        embeds = torch.randn(len(texts), longest, self.dim, generator=torch.Generator().manual_seed(0))
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        mask[:, 0] = True
        for i, each in enumerate(words):
            for j, word in enumerate(each):
                seed = sum(place * ord(letter) for place, letter in enumerate(word, 1))
                embeds[i, j] = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
                mask[i, j] = True
        return embeds, mask


def tiny_cvivit(**changes):
    """16×16 pixels in patches of 8×8, tubelets of 2 frames: (t, 2, 2) ids of 32 codes."""
    sizes = {
        "dim": 32,
        "image_size": 16,
        "patch_size": 8,
        "temporal_patch_size": 2,
        "spatial_depth": 1,
        "temporal_depth": 1,
        "codebook_size": 32,
        "code_dim": 8,
        "heads": 2,
        "dim_head": 16,
    }
    return CViViT(**{**sizes, **changes})


def make_ids(b=2, grid=(6, 2, 2)):
    """Ids that the tiny MaskGit can see."""
    return torch.randint(0, 32, (b, *grid))


def make_context(b=2):
    """A text that the tiny MaskGit can read: embeddings, and a mask that leaves the last of them out."""
    return torch.randn(b, 3, 12), torch.tensor([[True, True, False]] * b)


def tiny_discriminator(**changes):
    """Of frames of 16×16."""
    return Discriminator(**{"image_size": 16, "dim": 8, **changes})


def tiny_maskgit(**changes):
    """A window of (6, 2, 2) ids, which is 11 frames of the tiny tokenizer; texts 12 wide."""
    sizes = {
        "num_tokens": 32,
        "grid": (6, 2, 2),
        "dim": 32,
        "depth": 2,
        "heads": 2,
        "dim_head": 16,
        "dim_context": 12,
    }
    return MaskGit(**{**sizes, **changes})


def tiny_token_critic(**changes):
    """Of the ids and texts of the tiny MaskGit, half as deep."""
    sizes = {
        "num_tokens": 32,
        "grid": (6, 2, 2),
        "dim": 32,
        "depth": 1,
        "heads": 2,
        "dim_head": 16,
        "dim_context": 12,
    }
    return TokenCritic(**{**sizes, **changes})


def tiny_phenaki(*, text_encoder=None, cvivit=None, critic=None, **maskgit):
    """Both of them and, where there are texts, a `WordEncoder`; `critic`: a callable that makes one for a MaskGit."""
    prior = tiny_maskgit(**maskgit)
    return Phenaki(
        cvivit=tiny_cvivit() if cvivit is None else cvivit,
        maskgit=prior,
        text_encoder=WordEncoder() if text_encoder is None else text_encoder,
        critic=None if critic is None else critic(prior),
    )


def train(module, loss, steps, lr=3e-3, weight_decay=0.0):
    """Steps of AdamW over all of a module's parameters; the losses come back."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=weight_decay)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return losses


def state(module):
    """A copy of a module's state_dict."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same_state(one, other):
    """Whether two state_dicts agree bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def seed(number=0):
    """A generator of its own."""
    return torch.Generator().manual_seed(number)
