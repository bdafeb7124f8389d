"""VideoGPT: a tokenizer and a GPT over its ids, given frames, actions, classes or a text, in any combination.

    training      video -> ids; the loss is GPT's of all ids
    generation    ids one after the other -> video; a longer video goes on from its own last frames, encoded again

Yan et al. 2021, https://arxiv.org/abs/2104.10157. Text, and videos longer than a window, are not in the paper.

b = batch · c = channels · f = frames · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.conditions.frames import FrameEncoder, FrameMapEncoder
from phenaki_pytorch.conditions.labels import Labels
from phenaki_pytorch.conditions.texts import Texts
from phenaki_pytorch.core.checks import batch_of, check_at_least, check_finite, check_fitting_ids, common_batch, one_of
from phenaki_pytorch.core.contracts import TextEncoder
from phenaki_pytorch.core.lengths import real_tokens, zero_padding
from phenaki_pytorch.core.modules import in_eval_mode, through_call, uncompiled
from phenaki_pytorch.core.saving import Stage, write_config
from phenaki_pytorch.first_stage import KINDS, encode, frozen_tokenizer, kind_of, save_tokenizer
from phenaki_pytorch.long_video import LongVideo, Window, concatenated
from phenaki_pytorch.priors.autoregressive import RasterOptions, raster_options
from phenaki_pytorch.priors.gpt import GPT, GPTLosses
from phenaki_pytorch.priors.gpt_blocks import Given
from phenaki_pytorch.systems import System, read_system, warn_of_parts

FRAME_ENCODERS = {kind.__name__: kind for kind in (FrameEncoder, FrameMapEncoder)}  # by the name that is saved
PARTS = {"tokenizer": KINDS, "frame_encoder": FRAME_ENCODERS}


class VideoGPT(System):
    """Learns from video and generates video, one id after the other.

    tokenizer      trained: VQVAE, VQGAN, CViViT, or any module with encode, decode, grid, num_frames and codebook_size,
                   and with code_dim and code_features if the GPT reads codes. It is frozen here: in eval mode for good,
                   its parameters without gradient
    gpt            the GPT to train; a window, the video of one pass, has its grid
    frame_encoder  FrameEncoder, FrameMapEncoder, or any module that turns frames (b, c, n, h, w) into what the GPT
                   reads, (b, dim_frame_vector) or (b, j, dim_frame_map); trained along. n is its `num_frames`, or 1
    num_classes    number of classes that a video can be of
    dim_action     width of an action; there is one for each frame, which shapes the ids of that frame's time step
    text_encoder   as in `Phenaki`; unused by a GPT that reads no text

    The GPT's `dim_condition` is that of `condition_width`. Raises ValueError where the parts do not fit each other.
    """

    FIRST_STAGE = "tokenizer"

    def __init__(
        self,
        *,
        tokenizer: nn.Module,
        gpt: nn.Module,
        frame_encoder: nn.Module | None = None,
        num_classes: int | None = None,
        dim_action: int | None = None,
        text_encoder: str | TextEncoder = "google/t5-v1_1-base",
    ):
        super().__init__()
        model = uncompiled(gpt)
        if not isinstance(model, GPT):
            raise TypeError(f"gpt must be a GPT, got a {type(gpt).__name__}")
        self.labels = Labels(tokenizer, num_classes, dim_action)
        if model.given_widths["dim_condition"] != self.labels.width:
            raise ValueError(
                f"gpt's dim_condition must be {self.labels.width}, got {model.given_widths['dim_condition']}"
            )
        self.frame_input = frame_input(model, frame_encoder)
        self.tokenizer = frozen_tokenizer("tokenizer", tokenizer, gpt, "gpt")
        model.use_codes(tokenizer=tokenizer)  # by name: hooks move what is given by position
        self.gpt = gpt
        self.frame_encoder = frame_encoder
        self._long_video = LongVideo(tokenizer, gpt.grid)
        self._texts = Texts(text_encoder, gpt.dim_context)

    @staticmethod
    def condition_width(
        tokenizer: nn.Module, num_classes: int | None = None, dim_action: int | None = None
    ) -> int | None:
        """The `dim_condition` of a GPT for these classes and actions; None for neither."""
        return Labels(tokenizer, num_classes, dim_action).width

    # loss

    @through_call
    def losses(
        self,
        videos: Tensor | None = None,
        *,
        video_ids: Tensor | None = None,
        frames: Tensor | None = None,
        actions: Tensor | None = None,
        classes: Tensor | None = None,
        texts: Sequence | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> GPTLosses:
        """The loss of videos, in nats an id, and that of each id.

        videos        (b, c, f, h, w) in [0, 1], or instead
        video_ids     int64 (b, t, h, w), what `tokenizer.encode` gave for them
        frames        (b, c, n, h, w) in [0, 1], or images (b, c, h, w), what the frame encoder reads; by default the
                      first frames of the videos
        actions       (b, f, dim_action), one for each frame
        classes       int64 (b,)
        texts         b captions, or instead
        text_embeds   (b, m, d) and text_mask, bool (b, m), what the text encoder gave for them
        frame_mask    bool (b, f), True for the real frames of clips that were padded at the end to one length; their
                      number is one that the tokenizer takes

        Raises ValueError for a condition that is missing, not asked for, or does not fit.
        """
        one_of(videos=videos, video_ids=video_ids)
        if videos is not None and videos.ndim not in (4, 5):
            raise ValueError(f"videos must be (b, c, f, h, w), or images (b, c, h, w), got {tuple(videos.shape)}")
        if video_ids is not None:
            check_fitting_ids(video_ids, self.gpt.num_tokens, self.gpt.grid)
        self._take_codes()
        like = self.gpt.placement()
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=like)
        if video_ids is None:
            if frames is None and self.frame_encoder is not None:
                frames = self._first_frames(videos, frame_mask)
            video_ids, token_mask = encode(self.tokenizer, videos, frame_mask)
        else:
            token_mask = None if frame_mask is None else real_tokens(frame_mask, video_ids.shape, self.tokenizer)
        if frame_mask is not None and actions is not None and actions.shape[:2] == frame_mask.shape:
            actions = actions.masked_fill(~frame_mask[..., None].to(actions.device), 0)  # padding may hold anything
        b, f = len(video_ids), self.tokenizer.num_frames(video_ids.shape[1])
        condition = self.labels.condition(classes, actions, batch_size=b, num_frames=f, like=like)
        given = self._given(frames, condition, b)
        return self.gpt.losses(video_ids, context, context_mask, token_mask, **given)

    # generation

    @torch.no_grad()
    @through_call
    def generate(
        self,
        texts: str | Sequence | None = None,
        *,
        num_frames: int,
        batch_size: int = 1,
        frames: Tensor | None = None,
        prime_frames: Tensor | None = None,
        actions: Tensor | None = None,
        classes: Tensor | None = None,
        overlap: int | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        **sampling: Unpack[RasterOptions],
    ) -> Tensor:
        """Generate `num_frames` ≥ 1 new frames: (b, c, num_frames, h, w), in [0, 1].

        frames        what the frame encoder reads in the first window, as in `losses`; by default the first of the
                      prime frames. These frames are generated too. Later windows read their own first frames
        prime_frames  (b, c, f, h, w) to continue, in whole time steps; their ids stay as they are. Of fewer frames
                      than a window the last ones are used, as many as the tokenizer takes; of more the last `overlap`
        actions       (b, prime frames + num_frames, dim_action), one for each frame, those of the prime frames first
        classes       int64 (b,)
        overlap       frames that each further window shares with those before, in a number that the tokenizer takes;
                      None: 5, or the most below it that fits; more where the frame encoder reads more
        texts, text_embeds, text_mask   as in `losses`; one caption alone is that of one video
        batch_size    how many videos to generate where nothing above says it
        sampling      see `RasterOptions`

        Whole windows are sampled and cut to the count. Raises ValueError where a size or value does not fit.
        """
        raster_options(sampling)
        check_at_least(1, num_frames=num_frames, batch_size=batch_size)
        self._take_codes()
        like = self.gpt.placement()
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=like)
        if context is None:
            batch_size = common_batch(batch_size, frames, prime_frames, actions, classes)
        batch_size = batch_of(batch_size, context)
        known = 0
        if prime_frames is not None:
            prime_frames = self._long_video.check_prime(prime_frames, batch_size).to(like.device)
            known = prime_frames.shape[2]
        labels = self._padded_actions(actions, batch_size, known + num_frames)

        def sample(window: Window) -> Tensor:
            shown = frames if window.made == 0 else None
            if shown is None and window.frames is not None and self.frame_encoder is not None:
                shown = self._first_frames(window.frames)
            first = known + window.start
            now = None if labels is None else labels[:, first : first + self.window]
            condition = self.labels.condition(classes, now, batch_size=batch_size, num_frames=self.window, like=like)
            ids = self.gpt.generate(
                batch_size=batch_size,
                context=context,
                context_mask=context_mask,
                prime_ids=None if window.frames is None else self.tokenizer.encode(window.frames),
                **self._given(shown, condition, batch_size),
                **sampling,
            )
            return self.tokenizer.decode(ids)

        with in_eval_mode(*([] if self.frame_encoder is None else [self.frame_encoder])):
            windows = self._long_video.generate(
                sample, num_frames, prime_frames=prime_frames, overlap=overlap, least=self._frames_to_read
            )
            return concatenated(windows, num_frames)

    def _padded_actions(self, actions: Tensor | None, batch_size: int, num_frames: int) -> Tensor | None:
        """The actions of all frames, and zeros for those that the last window has beyond them."""
        if actions is None or self.labels.dim_action is None:
            return actions  # what is missing or not asked for is refused with the first window
        expected = (batch_size, num_frames, self.labels.dim_action)
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions must be {expected}, those of the prime frames first, got {tuple(actions.shape)}")
        check_finite("actions", actions)
        return torch.cat((actions, actions.new_zeros(batch_size, self.window, self.labels.dim_action)), dim=1)

    # conditions

    def _take_codes(self) -> None:
        """Take the tokenizer's codes now, if it was not trained yet when this model was built."""
        if self.gpt.needs_codes:
            self.gpt.use_codes(tokenizer=self.tokenizer)

    @property
    def _frames_to_read(self) -> int:
        """How many frames the frame encoder reads."""
        return getattr(self.frame_encoder, "num_frames", 1)

    def _first_frames(self, videos: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """The frames that the frame encoder reads, of videos (b, c, f, h, w) or images (b, c, h, w); padding is 0."""
        if videos.ndim == 4:
            videos = rearrange(videos, "b c h w -> b c 1 h w")
        videos = videos if frame_mask is None else zero_padding(videos, frame_mask)
        return videos[:, :, : self._frames_to_read]

    def _given(self, frames: Tensor | None, condition: Tensor | None, batch_size: int) -> Given:
        """What the GPT is given beside a text."""
        given = Given() if condition is None else Given(condition=condition)
        if (frames is None) != (self.frame_encoder is None):
            got, expected = ("none", "some") if frames is None else ("some", "no")
            reads = "no frame encoder" if self.frame_encoder is None else "a frame encoder"
            raise ValueError(f"this model has {reads}: expected {expected} frames, got {got}")
        if frames is not None:
            if len(frames) != batch_size:
                raise ValueError(f"frames have a batch of {len(frames)}, expected {batch_size}")
            if frames.ndim == 4:
                frames = rearrange(frames, "b c h w -> b c 1 h w")
            given[self.frame_input] = self.frame_encoder(frames.to(self.gpt.placement().device))
        return given

    # saving

    def write_to(self, directory: Path, stage: Stage) -> None:
        """Write config.json and, each in a directory of its own, `tokenizer/`, `gpt/` and, if any, `frame_encoder/`.

        Modules of the user's own are left out, with a warning that names them; they have to be passed to
        `from_pretrained` again.
        """
        encoder = uncompiled(self.frame_encoder)
        names = {kind: name for name, kind in FRAME_ENCODERS.items()} | {type(None): None}
        config = {
            "tokenizer": kind_of(self.tokenizer),
            "frame_encoder": names.get(type(encoder), self.GIVEN),
            "text_encoder": self._texts.config(self.GIVEN),
            "num_classes": self.labels.num_classes,
            "dim_action": self.labels.dim_action,
        }
        self.gpt.use_codes(tokenizer=self.tokenizer)  # refuses a tokenizer that was changed since
        write_config(directory, config, stage)
        save_tokenizer(self.tokenizer, directory / "tokenizer", stage)
        uncompiled(self.gpt).write_to(directory / "gpt", stage)
        if config["frame_encoder"] in FRAME_ENCODERS:
            encoder.write_to(directory / "frame_encoder", stage)
        warn_of_parts(directory, config, PARTS, always=["gpt"])

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: object) -> "VideoGPT":
        """Build what `save_pretrained` wrote, on the CPU.

        `given`: `tokenizer`, `frame_encoder`, `text_encoder` where they were the user's own, `quantizer` if the
        tokenizer's was.
        """
        more = ["num_classes", "dim_action"]
        config = read_system(cls, directory, given, PARTS, optional=["frame_encoder"], more=more)
        for name in more:
            if not isinstance(config[name], int | None):
                raise ValueError(f"{directory} must have a whole number or null as {name}, got {config[name]!r}")
        if config.get("frame_encoder") in FRAME_ENCODERS:
            kind = FRAME_ENCODERS[config["frame_encoder"]]
            config["frame_encoder"] = kind.from_pretrained(Path(directory) / "frame_encoder")
        return cls(gpt=GPT.from_pretrained(Path(directory) / "gpt"), **config)


def frame_input(gpt: GPT, frame_encoder: nn.Module | None) -> str | None:
    """Which of the GPT's inputs reads the frame encoder's output. ValueError where they do not fit each other."""
    inputs = [name for name in ("frame_vector", "frame_map") if gpt.given_widths[f"dim_{name}"] is not None]
    if len(inputs) != (frame_encoder is not None):
        got = "a frame encoder" if frame_encoder is not None else "none"
        raise ValueError(f"the GPT reads {' and '.join(inputs) or 'no frames'}, expected one or none, got {got}")
    if not inputs:
        return None
    width, expected = getattr(frame_encoder, "dim", None), gpt.given_widths[f"dim_{inputs[0]}"]
    if isinstance(width, int) and width != expected:
        raise ValueError(f"the frame encoder is {width} wide, gpt's dim_{inputs[0]} is {expected}")
    return inputs[0]
