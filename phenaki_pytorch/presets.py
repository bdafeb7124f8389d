"""The papers' configurations, each a function that returns the module.

    cvivit = presets.cvivit()
    maskgit = presets.maskgit_1_8b(grid=cvivit.grid(11))

    with torch.device("meta"):  # a model without memory, to count its parameters
        cvivit = presets.cvivit()

| preset | ids of a clip | parameters |
|---|---|---|
| `cvivit` | 11 × 128 × 128 -> 6 × 16 × 16 | 51,044,448 |
| `cvivit_bair` | 17 × 64 × 64 -> 9 × 16 × 16 | 88,413,360 |
| `cvivit_kinetics600` | 17 × 64 × 64 -> 9 × 16 × 16 | 101,017,264 |
| `vit_per_frame` | 10 × 128 × 128 -> 10 × 16 × 16 | 50,845,600 |
| `maskgit_1_8b` | | 1,846,243,328 |
| `maskgit_0_9b` | | 937,914,880 |
| `maskgit_prediction` | | 182,680,832 |
| `vqvae_bair` | 16 × 64 × 64 -> 8 × 16 × 16 | 21,144,819 |
| `gpt_bair` | | 39,903,872 |
| `gpt_bair_frames` | | 57,205,376 |
| `videogpt_vizdoom` | 16 × 64 × 64 -> 8 × 16 × 16 | 61,048,691 |
| `vqvae_2x2x2` | 16 × 64 × 64 -> 8 × 32 × 32 | 13,774,099 |
| `gpt_2x2x2` | | 25,875,984 |
| `vqvae_4x2x2` | 16 × 64 × 64 -> 4 × 32 × 32 | 21,147,059 |
| `gpt_4x2x2` | | 33,238,464 |
| `vqgan_laion` | 11 × 128 × 128 -> 6 × 16 × 16 | 43,258,244 |
| `discriminator_laion` | | 1,568,833 |
| `latte_s` | 16 × 32 × 32 latents | 32,480,672 |
| `latte_b` | 16 × 32 × 32 latents | 129,547,040 |
| `latte_l` | 16 × 32 × 32 latents | 456,815,648 |
| `latte_xl` | 16 × 32 × 32 latents | 673,681,568 |
| `latte_text` | 16 × 64 × 64 latents | 1,057,250,976 |

The first seven are Phenaki's (https://arxiv.org/abs/2210.02399, Tables 6 and B.1), the next eight VideoGPT's, the next
two LAION's (https://github.com/LAION-AI/phenaki), the last five Latte's (https://arxiv.org/abs/2401.03048).

The transformers of the three MaskGits alone have 1,812,588,544, 912,668,672 and 170,057,472 parameters; the others
embed ids and positions and compute logits. The codebook is a buffer and is not counted.

The `temporal_window` of a tokenizer is the length of the paper's clips. What the paper leaves open is chosen so that
its numbers of parameters are met: plain MLPs, and in every layer a cross-attention whose keys and values are projected
from T5-XXL's 4096-wide embeddings directly.

VideoGPT's paper (https://arxiv.org/abs/2104.10157) does not state the heads and dropouts of its prior. Here it has
heads of width 64 and the dropout 0.2 of its code for BAIR. `gpt_4x2x2` is that of the later code,
https://github.com/wilson1yan/VideoGPT. A code of VQ-VAE or VQGAN is a buffer, too.

Latte's read the latents of Stable Diffusion's VAE, 4 channels at 1/8 of the height and width: of 256×256 pixels, and
of 512×512 with a text. Variants 3 and 4 have fewer blocks, with about as many parameters. The published text model has
1,057,246,880 parameters, and no null context.
"""

from phenaki_pytorch.diffusion.latte_transformer import LatteTransformer
from phenaki_pytorch.priors.gpt import GPT
from phenaki_pytorch.priors.maskgit import MaskGit
from phenaki_pytorch.tokenizers.cvivit import CViViT
from phenaki_pytorch.tokenizers.discriminators import PatchDiscriminator
from phenaki_pytorch.tokenizers.vqgan import VQGAN
from phenaki_pytorch.tokenizers.vqvae import VQVAE
from phenaki_pytorch.videogpt import VideoGPT

T5_XXL_DIM = 4096


def cvivit() -> CViViT:
    """The tokenizer of Moments in Time and of text to video, 51 M: 11×128×128 -> 6×16×16 ids."""
    sizes = {"image_size": 128, "patch_size": 8, "temporal_patch_size": 2, "temporal_window": 6}
    return CViViT(dim=512, spatial_depth=4, temporal_depth=4, **sizes)


def cvivit_bair() -> CViViT:
    """The tokenizer of BAIR robot pushing, 88 M: 17×64×64 -> 9×16×16 ids."""
    sizes = {"image_size": 64, "patch_size": 4, "temporal_patch_size": 2, "temporal_window": 9}
    return CViViT(dim=512, spatial_depth=8, temporal_depth=6, **sizes)


def cvivit_kinetics600() -> CViViT:
    """The tokenizer of Kinetics-600, 101 M: 17×64×64 -> 9×16×16 ids."""
    sizes = {"image_size": 64, "patch_size": 4, "temporal_patch_size": 2, "temporal_window": 9}
    return CViViT(dim=512, spatial_depth=8, temporal_depth=8, **sizes)


def vit_per_frame() -> CViViT:
    """The per-frame baseline of the paper's Table 3: 10×128×128 -> 10×16×16 ids, each frame by itself."""
    return CViViT(dim=512, image_size=128, patch_size=8, temporal_patch_size=1, spatial_depth=8, temporal_depth=0)


def maskgit_1_8b(grid: tuple[int, int, int] = (6, 16, 16)) -> MaskGit:
    """Text to video with 1.8 billion parameters, over T5-XXL's embeddings."""
    return MaskGit(num_tokens=8192, grid=grid, dim=2048, depth=24, heads=32, dim_context=T5_XXL_DIM)


def maskgit_0_9b(grid: tuple[int, int, int] = (6, 16, 16)) -> MaskGit:
    """Text to video with 0.9 billion parameters, over T5-XXL's embeddings."""
    return MaskGit(num_tokens=8192, grid=grid, dim=1536, depth=20, heads=24, dim_context=T5_XXL_DIM)


def maskgit_prediction(grid: tuple[int, int, int] = (9, 16, 16)) -> MaskGit:
    """Video prediction on BAIR and Kinetics-600: unconditional, 170 M in its blocks, both dropouts 0.1."""
    return MaskGit(
        num_tokens=8192, grid=grid, dim=768, depth=24, heads=16, dim_head=48, attn_dropout=0.1, ff_dropout=0.1
    )


def vqvae_bair() -> VQVAE:
    """The tokenizer of VideoGPT on BAIR robot pushing: strides 2×4×4, 2048 codes, pixels of variance 0.06."""
    return VQVAE(video_shape=(16, 64, 64), strides=(2, 4, 4), codebook_size=2048, data_variance=0.06)


def gpt_bair() -> GPT:
    """The prior of VideoGPT on BAIR robot pushing, over the codes of `vqvae_bair`, without a condition."""
    return _gpt_2x4x4()


def gpt_bair_frames() -> GPT:
    """The prior of BAIR that reads the vector of one frame, that of a `FrameEncoder()`."""
    return _gpt_2x4x4(dim_frame_vector=512)


def videogpt_vizdoom(tokenizer: VQVAE | None = None, dim_action: int | None = None) -> VideoGPT:
    """VideoGPT on ViZDoom: the tokenizer and prior of BAIR, without frames, with or without actions.

    tokenizer   trained on ViZDoom; None: a new one, whose weights are to be loaded before the prior is trained
    dim_action  width of an action, None for none
    """
    if tokenizer is None:
        tokenizer = VQVAE(video_shape=(16, 64, 64), strides=(2, 4, 4), codebook_size=2048)
    width = VideoGPT.condition_width(tokenizer, dim_action=dim_action)
    return VideoGPT(tokenizer=tokenizer, gpt=_gpt_2x4x4(dim_condition=width), dim_action=dim_action)


def _gpt_2x4x4(**conditions: int | None) -> GPT:
    sizes = {"num_tokens": 2048, "grid": (8, 16, 16), "code_dim": 256, "dim": 384, "depth": 22, "heads": 6}
    return GPT(**sizes, ff_dropout=0.2, **conditions)


def vqvae_2x2x2() -> VQVAE:
    """The tokenizer of VideoGPT's code for its paper on BAIR, with 1024 codes: 8×32×32 ids."""
    return VQVAE(video_shape=(16, 64, 64), strides=(2, 2, 2), codebook_size=1024, data_variance=0.06)


def gpt_2x2x2() -> GPT:
    """The prior over the codes of `vqvae_2x2x2`."""
    sizes = {"num_tokens": 1024, "grid": (8, 32, 32), "code_dim": 256, "dim": 512, "depth": 8, "heads": 4}
    return GPT(**sizes, ff_dropout=0.2)


def vqvae_4x2x2() -> VQVAE:
    """The tokenizer of VideoGPT's later code, for clips of BAIR's size: 4×32×32 ids."""
    return VQVAE(video_shape=(16, 64, 64), strides=(4, 2, 2), codebook_size=2048)


def gpt_4x2x2() -> GPT:
    """The prior over the codes of `vqvae_4x2x2`, with dropout of the attention weights too."""
    sizes = {"num_tokens": 2048, "grid": (4, 32, 32), "code_dim": 256, "dim": 576, "depth": 8, "heads": 4}
    return GPT(**sizes, ff_dropout=0.2, attn_dropout=0.3)


def vqgan_laion() -> VQGAN:
    """LAION's tokenizer, 43 M: images and clips of 11×128×128 -> 6×16×16 ids."""
    return VQGAN(image_size=128, codebook_size=8192)


def discriminator_laion() -> PatchDiscriminator:
    """The discriminator with which LAION trains its tokenizer."""
    return PatchDiscriminator()


def latte_s(*, variant: int = 1, num_classes: int | None = None) -> LatteTransformer:
    """Latte-S, 32 M: 16×32×32 latents of 4 channels, given classes or nothing."""
    return _latte(384, 6, 12, 10, variant, num_classes)


def latte_b(*, variant: int = 1, num_classes: int | None = None) -> LatteTransformer:
    """Latte-B, 130 M."""
    return _latte(768, 12, 12, 10, variant, num_classes)


def latte_l(*, variant: int = 1, num_classes: int | None = None) -> LatteTransformer:
    """Latte-L, 457 M."""
    return _latte(1024, 16, 24, 20, variant, num_classes)


def latte_xl(*, variant: int = 1, num_classes: int | None = None) -> LatteTransformer:
    """Latte-XL, 674 M, the model of the paper's results; with the 101 classes of UCF-101, 673,799,072 parameters."""
    return _latte(1152, 16, 28, 23, variant, num_classes)


def _latte(
    dim: int, heads: int, depth: int, depth_of_both: int, variant: int, num_classes: int | None
) -> LatteTransformer:
    """`depth_of_both`: of the variants whose blocks have both attentions."""
    depth = depth if variant in (1, 2) else depth_of_both
    sizes = {"code_dim": 4, "grid": (16, 32, 32), "dim": dim, "depth": depth, "heads": heads}
    return LatteTransformer(**sizes, variant=variant, num_classes=num_classes)


def latte_text() -> LatteTransformer:
    """The published text-to-video model, 28 spatial and 28 temporal blocks, over T5-XXL's embeddings.

    `diffusion.conversion.from_diffusers` reads its weights.
    """
    return LatteTransformer(code_dim=4, grid=(16, 64, 64), dim=1152, depth=56, heads=16, dim_context=T5_XXL_DIM)
