"""Video of any length in bounded memory: feed frames as they come, get ids as they complete; feed ids, get frames.

    encoder = cvivit.encoder_stream()                decoder = cvivit.decoder_stream()
    ids = encoder(frames)                            frames = decoder(ids)

Temporal attention looks back a bounded number of time steps, so a stream keeps the keys and values of that many and
no more; of a tokenizer that was neither trained nor given a `temporal_window`, all. The pieces may be of any lengths:
put together, they are what one call with the whole clip gives.

b = batch · c = channels · f = frames · t = time steps · h, w = grid · e = code_dim
"""

import torch
from torch import Tensor, nn

from phenaki_pytorch.checks import check_ids
from phenaki_pytorch.precision import autocast_dtype


class EncoderStream:
    """Frames (b, c, f, height, width) in [0, 1], in pieces of any f ≥ 1 -> the ids they complete, (b, t, h, w).

    The first frame of all is a time step of its own; from there on every `temporal_patch_size` frames make one.
    Those that do not make one yet wait for the next piece: there are `pending` of them. No gradient.
    """

    def __init__(self, cvivit: nn.Module):
        self._cvivit = cvivit
        self._window = cvivit.window
        self._caches = cvivit.encoder.temporal.caches(self._window)
        self._begun = False
        self._waiting: Tensor | None = None

    @property
    def pending(self) -> int:
        """How many frames wait for others to make a time step with."""
        return 0 if self._waiting is None else self._waiting.shape[2]

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """The next frames -> ids (b, t, h, w), int64; t may be 0."""
        return self._cvivit.nearest(self.features(frames))

    @torch.no_grad()
    def features(self, frames: Tensor) -> Tensor:
        """In place of a call: the next frames -> what the quantizer is given for them, (b, t, h, w, e)."""
        frames = self._cvivit.check_frames(frames)
        if self._waiting is not None:
            if (len(frames), *frames.shape[3:]) != (len(self._waiting), *self._waiting.shape[3:]):
                raise ValueError(
                    "the pieces of a stream must agree in batch, height and width: "
                    f"got {tuple(frames.shape)} after {tuple(self._waiting.shape)}"
                )
            frames = torch.cat((self._waiting, frames), dim=2)
        b, _, f, height, width = frames.shape
        first = 0 if self._begun else 1
        steps = (f - first) // self._cvivit.temporal_patch_size
        whole = first + steps * self._cvivit.temporal_patch_size
        # A copy: a view would hold on to the memory of all the frames.
        self._waiting = frames[:, :, whole:].clone()
        if whole == 0:
            _, h, w = self._cvivit.grid(1, height, width)
            like = self._cvivit.encoder.to_code.weight
            dtype = autocast_dtype(like.device.type) or like.dtype
            return torch.empty(b, 0, h, w, self._cvivit.code_dim, device=like.device, dtype=dtype)
        begins, self._begun = not self._begun, True
        return self._cvivit.encoder(frames[:, :, :whole], begins=begins, window=self._window, caches=self._caches)


class DecoderStream:
    """Ids (b, t, h, w) in pieces of any t ≥ 1 -> their frames (b, c, f, height, width), near [0, 1], not clamped.

    No gradient: what is kept of each piece would hold on to the graphs of all before it.
    """

    def __init__(self, cvivit: nn.Module):
        self._cvivit = cvivit
        self._window = cvivit.window
        self._caches = cvivit.decoder.temporal.caches(self._window)
        self._shape: tuple[int, ...] | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """The next ids -> the frames they stand for."""
        check_ids(ids, self._cvivit.codebook_size)
        b, _, h, w = ids.shape
        if self._shape not in (None, (b, h, w)):
            raise ValueError(
                f"the pieces of a stream must agree in batch, height and width: got (b, h, w) = {(b, h, w)} "
                f"after {self._shape}"
            )
        begins, self._shape = self._shape is None, (b, h, w)
        features = self._cvivit.code_features(ids)
        return self._cvivit.decoder(features, begins=begins, window=self._window, caches=self._caches)
