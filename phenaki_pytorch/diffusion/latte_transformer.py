"""LatteTransformer: predicts the noise in the continuous latents of a video, given classes, a text or neither (Latte,
https://arxiv.org/abs/2401.03048).

    latents -> patches -> + positions -> blocks of spatial and temporal attention -> noise (and its variance)

All four variants of the paper's blocks, both ways to cut patches, to condition and to give positions. Images may
follow the video, as in the paper's joint training: they are read and predicted as further time steps that temporal
attention does not see.

b = batch · t = time steps of the video · i = images · h, w = height and width of the latents · e = code_dim
c = dim_context · m = text tokens · d = dim · n = patches of a time step · s = 1 + i, the video and each image
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_at_least, check_features, check_probabilities, grid_of
from phenaki_pytorch.core.saving import Pretrained
from phenaki_pytorch.diffusion.blocks import (
    VECTORS,
    FinalLayer,
    Given,
    ParallelBlock,
    SequentialBlock,
    SpatialBlock,
    TemporalBlock,
    TextAttention,
    Widths,
)
from phenaki_pytorch.diffusion.conditioning import Conditioning, Conditions, RawConditions
from phenaki_pytorch.diffusion.embedders import PatchEmbedding, TimeUpsampling, unpatched
from phenaki_pytorch.layers.modulation import ToModulation
from phenaki_pytorch.layers.positions import ConcatenatedPositions, check_dim_head, rotary
from phenaki_pytorch.layers.transformer import Stack

# The kind of each block, by variant and depth.
BLOCKS = {
    1: lambda depth: [SpatialBlock, TemporalBlock] * (depth // 2),
    2: lambda depth: [SpatialBlock] * (depth // 2) + [TemporalBlock] * (depth // 2),
    3: lambda depth: [SequentialBlock] * depth,
    4: lambda depth: [ParallelBlock] * depth,
}
CHOICES = {
    "variant": tuple(BLOCKS),
    "patches": ("uniform", "compressed"),
    "conditioning": ("adaln", "tokens"),
    "time_positions": ("absolute", "rotary"),
}


class LatteTransformer(Pretrained):
    """Latents with noise (b, t, h, w, e), and how much of it -> the noise, and what its variance is made of.

    code_dim             channels of the latents, e
    grid                 (t, h, w) of the latents that it is trained with; see below for others
    dim, depth, heads    width, number of blocks (even for variants 1 and 2), attention heads (even for variant 4)
    patch_size           height and width of a patch
    variant              1: spatial and temporal blocks in turn; 2: first all spatial, then all temporal blocks; 3: both
                         attentions in each block, one after the other; 4: both side by side, half of the heads each
    num_classes          None for none
    dim_context          width of the text embeddings, None for none
    learned_variance     2 e outputs for each latent: the noise, then v, from which the variance is interpolated
    patches              "uniform": of one time step; "compressed": of `temporal_patch_size` time steps
    conditioning         "adaln": time and class shape norms and gates, by a linear layer of each block (S-AdaLN) or, if
                         there is a text, by one that all share (adaLN-single), and cross-attention reads the text;
                         "tokens": time, class and text are tokens of each time step
    time_positions       "absolute": sines added before the first temporal attention; "rotary": relative ones in each
    temporal_patch_size  only for compressed patches
    cond_drop_prob       share of the classes and texts that training replaces by the null class and the null context

    A call may have any t, h and w that the patch divides. Absolute positions are sines, which have no largest size, but
    training has shown only those of its own sizes. With rotary time, temporal attention depends on distances alone, so
    that a video may be longer than in training. A video of one time step has no absolute position of time.

    Before training the output is 0, and with "adaln" each block is the identity. Raises ValueError for sizes that do
    not fit.
    """

    def __init__(
        self,
        *,
        code_dim: int,
        grid: Sequence,
        dim: int,
        depth: int,
        heads: int,
        patch_size: int = 2,
        variant: int = 1,
        num_classes: int | None = None,
        dim_context: int | None = None,
        learned_variance: bool = True,
        patches: str = "uniform",
        conditioning: str = "adaln",
        time_positions: str = "absolute",
        temporal_patch_size: int = 2,
        cond_drop_prob: float = 0.1,
    ):
        super().__init__()
        sizes = {"code_dim": code_dim, "dim": dim, "depth": depth, "heads": heads, "patch_size": patch_size}
        sizes |= {"num_classes": num_classes, "dim_context": dim_context, "temporal_patch_size": temporal_patch_size}
        choices = {"variant": variant, "patches": patches, "conditioning": conditioning}
        choices |= {"time_positions": time_positions}
        self.config = {**sizes, **choices, "grid": list(grid), "learned_variance": learned_variance}
        self.config["cond_drop_prob"] = cond_drop_prob
        check_at_least(1, **sizes)
        check_probabilities(cond_drop_prob=cond_drop_prob)
        _check_choices(choices)
        _check_fits(dim, depth, heads, variant, rotary_time=time_positions == "rotary")
        self.code_dim, self.grid, self.patch_size = code_dim, grid_of(grid), patch_size
        self.num_classes, self.dim_context = num_classes, dim_context
        compressed, self.tokens = patches == "compressed", conditioning == "tokens"
        self.temporal_patch_size = temporal_patch_size if compressed else 1
        self._check_sizes("grid", *self.grid)

        self.patches = PatchEmbedding(
            code_dim, dim, patch_size=patch_size, temporal_patch_size=self.temporal_patch_size
        )
        self.space_positions = ConcatenatedPositions(dim, self.grid, axes=(2, 1), learned=False)  # first the column
        absolute = time_positions == "absolute"
        self.time_positions = ConcatenatedPositions(dim, self.grid, axes=(0,), learned=False) if absolute else None
        self.dim_head = dim // heads if variant < 4 else 2 * (dim // heads)
        self.conditioning = Conditioning(
            dim, num_classes=num_classes, dim_context=dim_context, drop_prob=cond_drop_prob
        )
        reads_text = dim_context is not None and not self.tokens
        self.shared_modulation = ToModulation(dim, VECTORS) if reads_text else None
        widths = Widths(dim, heads, None if self.tokens else "shared" if reads_text else "own", reads_text)
        kinds = BLOCKS[variant](depth)
        self.first_temporal = next(i for i, kind in enumerate(kinds) if kind is not SpatialBlock)
        self.transformer = Stack((kind(widths) for kind in kinds), nn.Identity())
        outputs = 2 * code_dim if learned_variance else code_dim
        self.final = FinalLayer(widths, patch_size**2 * outputs)
        self.upsampling = TimeUpsampling(outputs, temporal_patch_size) if compressed else nn.Identity()
        self.register_buffer("_placement", torch.zeros(()), persistent=False)
        init_weights(self)

    def placement(self) -> Tensor:
        """A tensor on the device and of the dtype of the features."""
        return self._placement

    def forward(
        self,
        latents: Tensor,
        time: Tensor,
        classes: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        *,
        images: int = 0,
        image_classes: Tensor | None = None,
        image_context: Tensor | None = None,
        image_context_mask: Tensor | None = None,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Latents (b, t + i, h, w, e) -> the noise and then v, (b, t + i, h, w, 2 e); without v, (b, t + i, h, w, e).

        time           (b,), the diffusion step of each sample, which is that of its images too
        classes        int64 (b,), in [0, num_classes)
        context        text embeddings (b, m, c); context_mask: bool (b, m), True where real
        images         i, how many of the last time steps are images, which are no part of the video; 0 with compressed
                       patches
        image_classes  int64 (b, i)
        image_context  (b, i, m, c), padded as the context; image_context_mask: bool (b, i, m)
        dropped        bool (b,), which samples have the null class and the null context, and so have their images. By
                       default none; in training mode a random share, drawn once for the video and once for its images

        Raises ValueError where a shape, a size or (on the CPU) a value does not fit.
        """
        self._check_inputs(latents, time, images)
        raw = RawConditions(
            time, classes, context, context_mask, images, image_classes, image_context, image_context_mask, dropped
        )
        conditions = self.conditioning(raw)
        height, width = latents.shape[2:4]
        x = self.patches(latents)  # (b, f, n, d)
        n = x.shape[2]
        x = x + self.space_positions((1, height // self.patch_size, width // self.patch_size), x.device).to(x.dtype)
        time_steps = x.shape[1] - images
        if self.tokens:
            x = torch.cat((conditions.tokens(time_steps, images).to(x.dtype), x), dim=2)  # (b, f, k + n, d)
        x = self._through_blocks(x, self._given(conditions, time_steps, images, n))
        x = self._final(x[:, :, -n:], conditions, time_steps)
        return self.upsampling(unpatched(x, height, width, self.patch_size))

    def check_conditions(self, batch_size: int, **given: Tensor | int | None) -> None:
        """Refuse what a call with so many samples would refuse, before anything is computed; arguments as there."""
        self.conditioning.check(RawConditions(torch.zeros(batch_size), **given))

    def _given(self, conditions: Conditions, time_steps: int, images: int, patches: int) -> Given:
        """What all blocks read."""
        device = conditions.time.device
        angles = rotary((time_steps,), self.dim_head, device) if self.time_positions is None else None
        if self.tokens:
            return Given(time_steps, rotary=angles, mask=conditions.token_mask(time_steps, images, patches))
        condition = conditions.vector()
        if self.shared_modulation is not None:
            condition = self.shared_modulation(condition)
        text, image_text = conditions.contexts()
        return Given(time_steps, condition=condition, rotary=angles, text=text, image_text=image_text)

    def _through_blocks(self, x: Tensor, given: Given) -> Tensor:
        with_time = given
        if self.time_positions is not None and given.time_steps > 1:
            positions = self.time_positions((given.time_steps, 1, 1), x.device)
            with_time = given._replace(time_positions=positions[:, None])

        def options(i: int) -> dict:
            return {"given": with_time if i == self.first_temporal else given}

        return self.transformer.through_blocks(x, options, caching=False)

    def _final(self, x: Tensor, conditions: Conditions, time_steps: int) -> Tensor:
        condition = None if self.tokens else conditions.vector()
        if self.shared_modulation is not None:
            condition = condition[:, :, None]  # the table of the last layer is added to the time itself
        return self.final(x, condition, time_steps)

    # checks

    def _check_inputs(self, latents: Tensor, time: Tensor, images: int) -> None:
        check_features(latents, self.code_dim, name="latents")
        self._check_sizes("latents", *latents.shape[1:4])
        if time.shape != latents.shape[:1] or time.dtype == torch.bool or time.is_complex():
            raise ValueError(
                f"time must be ({len(latents)},), integers or floats, got {time.dtype} {tuple(time.shape)}"
            )
        if not 0 <= images < latents.shape[1]:
            raise ValueError(f"images must be at least 0 and fewer than {latents.shape[1]} time steps, got {images}")
        if images and self.temporal_patch_size > 1:
            raise ValueError(f"with compressed patches there must be no images, got {images}")

    def _check_sizes(self, name: str, t: int, h: int, w: int) -> None:
        s, p = self.temporal_patch_size, self.patch_size
        if t % s or h % p or w % p:
            raise ValueError(f"the (t, h, w) of {name} must be multiples of the patch {s}×{p}×{p}, got {(t, h, w)}")


def _check_choices(choices: dict) -> None:
    for name, choice in choices.items():
        if choice not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {CHOICES[name]}, got {choice!r}")


def _check_fits(dim: int, depth: int, heads: int, variant: int, rotary_time: bool) -> None:
    if dim % heads or dim % 4:
        raise ValueError(f"heads and 4 must divide dim, got dim {dim} and {heads} heads")
    if variant in (1, 2) and depth % 2:
        raise ValueError(f"variants 1 and 2 have as many spatial as temporal blocks: depth must be even, got {depth}")
    if variant == 4 and heads % 2:
        raise ValueError(
            f"variant 4 has half of the heads for space and half for time: heads must be even, got {heads}"
        )
    if rotary_time:
        check_dim_head(dim // heads, axes=1)


def init_weights(model: LatteTransformer) -> None:
    """As in Latte's code: linear layers Xavier, biases 0, time and classes σ = 0.02; modulations and last layer 0.

    Cross-attention adds 0 at first, too, as in PixArt-α.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear | nn.ConvTranspose3d):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
    for part in model.modules():
        if isinstance(part, ToModulation):
            nn.init.zeros_(part.linear.weight)
        elif isinstance(part, TextAttention):
            nn.init.zeros_(part.attention.to_out.weight)
    nn.init.zeros_(model.final.linear.weight)
    time = model.conditioning.time.mlp
    for weight in (time[0].weight, time[2].weight):
        nn.init.normal_(weight, std=0.02)
    if model.num_classes is not None:
        nn.init.normal_(model.conditioning.classes.weight, std=0.02)
