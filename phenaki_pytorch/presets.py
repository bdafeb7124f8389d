"""The paper's configurations, each a function that returns the module (Phenaki, Tables 6 and B.1).

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

The transformers of the three MaskGits alone have 1,812,588,544, 912,668,672 and 170,057,472 parameters; the others
embed ids and positions and compute logits. The codebook is a buffer and is not counted.

The `temporal_window` of a tokenizer is the length of the paper's clips. What the paper leaves open is chosen so that
its numbers of parameters are met: plain MLPs, and in every layer a cross-attention whose keys and values are projected
from T5-XXL's 4096-wide embeddings directly.
"""

from phenaki_pytorch.priors.maskgit import MaskGit
from phenaki_pytorch.tokenizers.cvivit import CViViT

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
