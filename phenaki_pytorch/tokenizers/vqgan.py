"""VQGAN: a video tokenizer of convolutions, LAION's first stage of Phenaki (https://github.com/LAION-AI/phenaki).

    video -> encoder -> batch norm -> quantizer -> decoder -> video

Images and clips of 1 + 2k frames share one stem. An image is a clip of one frame. Ids depend on frames before and
after them: the tokenizer is not causal.
"""

import copy
from collections.abc import Sequence

from torch import nn

from phenaki_pytorch.core.checks import check_at_least, pair
from phenaki_pytorch.tokenizers.quantize import Quantizer
from phenaki_pytorch.tokenizers.video_tokenizer import VideoTokenizer
from phenaki_pytorch.tokenizers.vqgan_layers import MIN_WIDTH, Decoder, Encoder

PATCH = 8
STRIDE = 2  # frames of a time step


class VQGAN(VideoTokenizer):
    """Video (b, c, 1 + 2k, h, w) in [0, 1] <-> ids (b, 1 + k, h / 8, w / 8); decoded values lie between 0 and 1.

    image_size        height and width of the learned frame, and what `grid` assumes where none are given. Any other
                      multiples of 8 work as well; the learned frame is then resized, which was not trained
    codebook_size     number of codes
    code_dim          width of a code
    dim               width of the bottlenecks, a multiple of 4; LAION's is 512
    depth             blocks of the bottlenecks of encoder and decoder each; LAION's is 8
    quantizer         "ema" (a codebook of moving averages), another name of `build_quantizer`, or a module
    quantizer_kwargs  further arguments of a quantizer that is given by its name; "ema" has LAION's weight of the
                      commitment, 0.1, unless they say otherwise

    Train it with `PatchDiscriminator` and `LAION_WEIGHTS`. In eval mode it quantizes as in training mode. Features are
    normalised by the statistics of the batch in training steps, and by running ones in eval mode and without
    gradients. Every process of DDP has its own batch statistics. Raises ValueError for sizes that do not fit and
    TypeError for videos that are not floating point.

    It differs from LAION's code in the codebook: codes start as features of the first batch and their sums at the
    codes, and a code that is hardly used restarts as a current feature. LAION's sums start at 0, so that codes without
    features in the first training step become 0 and stay unused. Its eval mode leaves the quantizer out.
    """

    def __init__(
        self,
        *,
        image_size: int | Sequence = 128,
        codebook_size: int = 8192,
        code_dim: int = 16,
        dim: int = 512,
        depth: int = 8,
        channels: int = 3,
        quantizer: str | nn.Module = "ema",
        quantizer_kwargs: dict | None = None,
    ):
        super().__init__()
        sizes = {"dim": dim, "depth": depth, "channels": channels, "code_dim": code_dim}
        config = {
            **sizes,
            "image_size": image_size,
            "codebook_size": codebook_size,
            "quantizer": quantizer if isinstance(quantizer, str) else self.GIVEN,
            "quantizer_kwargs": quantizer_kwargs,
        }
        self.config = copy.deepcopy(config)
        check_at_least(1, code_dim=code_dim, codebook_size=codebook_size, channels=channels)
        check_at_least(0, depth=depth)
        if dim < 4 * MIN_WIDTH or dim % 4:
            raise ValueError(f"dim must be a multiple of 4 and at least {4 * MIN_WIDTH}, got {dim}")
        self.channels = channels
        self.code_dim = code_dim
        self.codebook_size = codebook_size
        self.image_size = pair(image_size)
        self.patch_size = (PATCH, PATCH)
        self.frame_grid(*self.image_size)

        height, width = self.image_size
        self.encoder = Encoder(height=height, width=width, **sizes)
        self.decoder = Decoder(**sizes)
        if quantizer == "ema":
            quantizer_kwargs = {"commitment_weight": 0.1, **(quantizer_kwargs or {})}
        self.quantizer = Quantizer(quantizer, dim=code_dim, codebook_size=codebook_size, kwargs=quantizer_kwargs)

    def grid(self, num_frames: int, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """The grid (t, h, w) of the ids of a clip of `num_frames` = 1 + 2k frames."""
        h, w = self.frame_grid(height, width)
        if num_frames < 1 or num_frames % STRIDE == 0:
            raise ValueError(f"a clip needs 1 + k · {STRIDE} frames, k ≥ 0, got {num_frames}")
        return (num_frames + 1) // STRIDE, h, w

    def num_frames(self, t: int) -> int:
        """The number of frames of t time steps: 2t − 1."""
        if t < 1:
            raise ValueError(f"ids need at least 1 time step, got {t}")
        return STRIDE * t - 1
