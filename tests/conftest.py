"""Tiny models and data that the tests share."""

import pytest
import torch
from einops import rearrange, reduce, repeat
from torch import nn

from phenaki_pytorch import (
    GPT,
    VQGAN,
    VQVAE,
    CViViT,
    Discriminator,
    FrameEncoder,
    FrameMapEncoder,
    Latte,
    LatteTransformer,
    MaskGit,
    Phenaki,
    TokenCritic,
    VideoGPT,
)

pytest_plugins = ["t5_models"]

torch.set_num_threads(1)  # tests run in as many processes as there are cores

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


@pytest.fixture
def einops_as_operations():
    """Dynamo takes einops' functions as single operations, which saves most of the time of a compilation.

    By default it traces them; tests that compile without this fixture show that this works as well.
    """
    functions = rearrange, reduce, repeat
    for function in functions:
        torch.compiler.allow_in_graph(function)
    yield
    for function in functions:
        torch._dynamo.trace_rules._allowed_callable_ids.remove(id(function))


class WordEncoder:
    """A text encoder of the user's own: one vector per word, the same in every process; padding holds noise."""

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
                seed = sum(n * ord(letter) for n, letter in enumerate(word, 1))
                embeds[i, j] = torch.randn(self.dim, generator=torch.Generator().manual_seed(seed))
                mask[i, j] = True
        return embeds, mask


class ToyTokenizer(nn.Module):
    """The mean of 8×8 pixels over the frames of a time step, rounded to one of 32 levels.

    The first time step has `first` frames, each further one `stride`: first 1 takes 1 + k · stride frames, first =
    stride takes k · stride.
    """

    codebook_size = 32
    code_dim = 1
    pixels = 8

    def __init__(self, first, stride):
        super().__init__()
        self.first, self.stride = first, stride

    def grid(self, num_frames, height=None, width=None):
        if num_frames < self.first or (num_frames - self.first) % self.stride:
            raise ValueError(f"this tokenizer takes {self.first} + k · {self.stride} frames, got {num_frames}")
        h, w = (16 if side is None else side for side in (height, width))
        return 1 + (num_frames - self.first) // self.stride, h // self.pixels, w // self.pixels

    def num_frames(self, t):
        return self.first + (t - 1) * self.stride

    def features(self, video):
        if video.ndim == 4:
            video = rearrange(video, "b c h w -> b c 1 h w")
        self.grid(video.shape[2])
        axes = {"ph": self.pixels, "pw": self.pixels}
        first, rest = video[:, :, : self.first], video[:, :, self.first :]
        first = reduce(first, "b c f (h ph) (w pw) -> b 1 h w 1", "mean", **axes)
        if rest.shape[2] == 0:
            return first
        rest = reduce(rest, "b c (t f) (h ph) (w pw) -> b t h w 1", "mean", f=self.stride, **axes)
        return torch.cat((first, rest), dim=1)

    def latents(self, video, *, generator=None):
        return self.features(video)

    def encode(self, video):
        return rearrange((self.features(video) * 31).round().long().clamp(0, 31), "b t h w 1 -> b t h w")

    def code_features(self, ids):
        return rearrange(ids / 31, "b t h w -> b t h w 1")

    def decode_features(self, features):
        def frames(steps, f):
            return repeat(steps, "b t h w 1 -> b 3 (t f) (h ph) (w pw)", f=f, ph=self.pixels, pw=self.pixels)

        return torch.cat((frames(features[:, :1], self.first), frames(features[:, 1:], self.stride)), dim=2)

    def decode(self, ids):
        return self.decode_features(self.code_features(ids))


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


def tiny_vqvae(*, trained=True, **changes):
    """Clips of up to 12 frames of 16×16 pixels, strides 2×8×8: (t, 2, 2) ids of 32 codes, which a batch has set."""
    sizes = {
        "video_shape": (12, 16, 16),
        "strides": (2, 8, 8),
        "dim": 8,
        "depth": 1,
        "codebook_size": 32,
        "code_dim": 8,
    }
    model = VQVAE(**{**sizes, **changes})
    return with_codes(model) if trained else model


def tiny_vqgan(*, trained=True, **changes):
    """1 + 2k frames of 16×16 pixels: (t, 2, 2) ids of 32 codes, which batches have set."""
    sizes = {"image_size": 16, "codebook_size": 32, "code_dim": 8, "dim": 16, "depth": 1}
    model = VQGAN(**{**sizes, **changes})
    return with_codes(model, batches=10) if trained else model


def with_codes(tokenizer, batches=1):
    """The tokenizer after batches that have given it codes: 4 tokens or more for each of 32."""
    for _ in range(batches):
        tokenizer(torch.rand(8, 3, tokenizer.num_frames(4), *tokenizer.image_size))
    return tokenizer


def make_ids(b=2, grid=(6, 2, 2)):
    """Random ids of the tiny MaskGit."""
    return torch.randint(0, 32, (b, *grid))


def make_context(b=2):
    """A text for the tiny MaskGit: random embeddings, and a mask that excludes the last one."""
    return torch.randn(b, 3, 12), torch.tensor([[True, True, False]] * b)


def tiny_discriminator(**changes):
    """For frames of 16×16 pixels."""
    return Discriminator(**{"image_size": 16, "dim": 8, **changes})


def tiny_maskgit(**changes):
    """A window of (6, 2, 2) ids, which is 11 frames of the tiny tokenizer; text embeddings of width 12."""
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


def tiny_gpt(*, started=True, **changes):
    """A window of (6, 2, 2) ids. `started`: the last layer is not 0, as it is at first, so that logits differ."""
    sizes = {"num_tokens": 32, "grid": (6, 2, 2), "dim": 24, "depth": 2, "heads": 2}
    model = GPT(**{**sizes, **changes})
    if started:
        nn.init.normal_(model.to_logits.weight, std=0.2)
    return model


def tiny_latte_transformer(*, started=True, **changes):
    """For latents (b, 4, 4, 4, 4) in 4 patches a time step. `started`: nothing is 0, as much is at first."""
    sizes = {"code_dim": 4, "grid": (4, 4, 4), "dim": 16, "depth": 2, "heads": 2}
    model = LatteTransformer(**{**sizes, **changes})
    if started:
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model


def tiny_latte(*, codec=None, text_encoder=None, standardise=True, **transformer):
    """A window of 4 time steps over the tiny CViViT, 7 frames; one token for each latent; texts are read as words."""
    codec = tiny_cvivit() if codec is None else codec
    grid = codec.grid(codec.num_frames(4))
    transformer = {"code_dim": codec.code_dim, "grid": grid, "patch_size": 1, **transformer}
    if text_encoder is None and transformer.get("dim_context") is not None:
        text_encoder = WordEncoder(transformer["dim_context"])
    model = tiny_latte_transformer(**transformer)
    return Latte(codec=codec, transformer=model, text_encoder=text_encoder, standardise=standardise)


def tiny_frame_encoder(**changes):
    """Vectors of width 12."""
    return FrameEncoder(**{"dims": (4, 12), "depths": (1, 1), **changes})


def tiny_frame_map_encoder(**changes):
    """Maps of width 12 of frames of 16×16 pixels."""
    return FrameMapEncoder(**{"image_size": 16, "dims": (4, 12), "depths": (1, 1), **changes})


def tiny_videogpt(*, tokenizer=None, frame_encoder=None, num_classes=None, dim_action=None, text_encoder=None, **gpt):
    """The tiny VQVAE and a GPT that reads its codes, and what the other parts give."""
    tokenizer = tiny_vqvae() if tokenizer is None else tokenizer
    width = VideoGPT.condition_width(tokenizer, num_classes, dim_action)
    sizes = {"code_dim": tokenizer.code_dim, "dim_condition": width}
    if frame_encoder is not None:
        kind = "dim_frame_map" if isinstance(frame_encoder, FrameMapEncoder) else "dim_frame_vector"
        sizes[kind] = frame_encoder.dim
    return VideoGPT(
        tokenizer=tokenizer,
        gpt=tiny_gpt(**{**sizes, **gpt}),
        frame_encoder=frame_encoder,
        num_classes=num_classes,
        dim_action=dim_action,
        text_encoder=WordEncoder() if text_encoder is None else text_encoder,
    )


def tiny_token_critic(**changes):
    """For the ids and texts of the tiny MaskGit, half as deep."""
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
    """The tiny tokenizer and MaskGit, with a `WordEncoder`; `critic`: a callable that builds one for a MaskGit."""
    prior = tiny_maskgit(**maskgit)
    return Phenaki(
        cvivit=tiny_cvivit() if cvivit is None else cvivit,
        maskgit=prior,
        text_encoder=WordEncoder() if text_encoder is None else text_encoder,
        critic=None if critic is None else critic(prior),
    )


def train(module, loss, steps, lr=3e-3, weight_decay=0.0):
    """Train all parameters of a module with AdamW; returns the losses."""
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
    """Whether two state_dicts are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def modes(*modules):
    """Which parts of the modules are in training mode, by name."""
    return [{name: part.training for name, part in module.named_modules()} for module in modules]


def compute_all_positions(monkeypatch):
    """Make MaskGit and the critics compute the features of all ids, not of the masked ones only."""
    monkeypatch.setattr("phenaki_pytorch.priors.token_transformer.masked_positions", lambda mask: None)


def seed(number=0):
    """A new generator."""
    return torch.Generator().manual_seed(number)
