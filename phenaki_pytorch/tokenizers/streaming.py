"""Video of any length in bounded memory: feed frames and get ids as they complete; feed ids and get frames.

    encoder = cvivit.encoder_stream()                decoder = cvivit.decoder_stream()
    ids = encoder(frames)                            frames = decoder(ids)

A stream caches the keys and values of the last `temporal_window` time steps of a CViViT, or of all without one. The
pieces may have any lengths: concatenated, the results are those of one call with the whole clip.

b = batch · c = channels · f = frames · t = time steps · h, w = grid · e = code_dim
"""

import torch
from torch import Tensor, nn

from phenaki_pytorch.core.checks import check_ids
from phenaki_pytorch.tokenizers.causal_vit import temporal_caches


class EncoderStream:
    """Frames (b, c, f, height, width) in [0, 1], in pieces of any f ≥ 1 -> the ids they complete, (b, t, h, w).

    The first frame of the clip is a time step of its own; after it, every `temporal_patch_size` frames make one.
    `pending` frames wait for the next piece to complete their time step. No gradient.
    """

    def __init__(self, cvivit: nn.Module):
        self._cvivit = cvivit
        self._caches = temporal_caches(cvivit.encoder.temporal, cvivit.temporal_window)
        self._started = False
        self._pending: Tensor | None = None

    @property
    def pending(self) -> int:
        """The number of frames that wait for others to complete their time step."""
        return 0 if self._pending is None else self._pending.shape[2]

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """The next frames -> ids (b, t, h, w), int64; t may be 0."""
        return self._cvivit.nearest(self.features(frames))

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """As a call, but the features before quantization, (b, t, h, w, e), instead of ids."""
        frames = self._cvivit.check_frames(frames)
        if self._pending is not None:
            if (len(frames), *frames.shape[3:]) != (len(self._pending), *self._pending.shape[3:]):
                raise ValueError(
                    "the pieces of a stream must agree in batch, height and width: "
                    f"got {tuple(frames.shape)} after {tuple(self._pending.shape)}"
                )
            frames = torch.cat((self._pending, frames), dim=2)
        first = 0 if self._started else 1
        stride = self._cvivit.temporal_patch_size
        complete = max(0, first + (frames.shape[2] - first) // stride * stride)
        # Copied, because a view would keep the memory of all the frames.
        self._pending = frames[:, :, complete:].clone()
        has_first = not self._started and complete > 0
        self._started |= complete > 0
        return self._cvivit.encode_piece(frames[:, :, :complete], has_first, self._caches)


class DecoderStream:
    """Ids (b, t, h, w) in pieces of any t ≥ 1 -> their frames (b, c, f, height, width), not clamped.

    No gradient, because the caches would hold on to the graphs of all earlier pieces.
    """

    def __init__(self, cvivit: nn.Module):
        self._cvivit = cvivit
        self._caches = temporal_caches(cvivit.decoder.temporal, cvivit.temporal_window)
        self._shape: tuple[int, ...] | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """The next ids -> their frames."""
        check_ids(ids, self._cvivit.codebook_size)
        b, _, h, w = ids.shape
        if self._shape not in (None, (b, h, w)):
            raise ValueError(
                f"the pieces of a stream must agree in batch, height and width: got (b, h, w) = {(b, h, w)} "
                f"after {self._shape}"
            )
        has_first, self._shape = self._shape is None, (b, h, w)
        return self._cvivit.decode_piece(ids, has_first, self._caches)
