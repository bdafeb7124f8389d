"""Phenaki: text to video of any length, by a tokenizer, a masked transformer over its ids, and a text encoder.

    training      video -> ids, text -> embeddings; the loss is MaskGit's of the ids given the embeddings
    generation    text -> ids of one window -> video; a longer video goes on from its own last frames, encoded
                  again, under the same text or the next one of a story (Phenaki, section 2.3,
                  https://arxiv.org/abs/2210.02399)

b = batch · c = channels · f = frames · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.checks import batch_of, real_tokens, scenes_of
from phenaki_pytorch.cvivit import CViViT
from phenaki_pytorch.maskgit import MaskGit
from phenaki_pytorch.sampling import Progress, check_sampling
from phenaki_pytorch.saving import Pretrained, read_config, write_config
from phenaki_pytorch.t5 import T5TextEncoder

TextEncoder = Callable[[list[str]], tuple[Tensor, Tensor]]


class Phenaki(Pretrained):
    """Learns from captioned video and generates video from text.

    cvivit        the tokenizer, trained: CViViT or any module with its encode, decode, grid, num_frames and
                  codebook_size. It is frozen here: put into eval mode for good, its parameters without gradient
    maskgit       the MaskGit to train; its window is the video that one pass generates
    text_encoder  a T5 name or directory, or any callable texts -> (embeddings (b, m, d), bool mask (b, m)).
                  Not asked for by an unconditional MaskGit

    Raises ValueError where the parts do not fit each other.
    """

    def __init__(self, *, cvivit: nn.Module, maskgit: MaskGit, text_encoder: str | TextEncoder = "google/t5-v1_1-base"):
        super().__init__()
        self.cvivit = cvivit.requires_grad_(False).eval()
        self.maskgit = maskgit
        if maskgit.num_tokens != cvivit.codebook_size:
            raise ValueError(
                f"maskgit must have as many tokens as the tokenizer codes, {cvivit.codebook_size}, "
                f"got {maskgit.num_tokens}"
            )
        window = cvivit.grid(cvivit.num_frames(maskgit.grid[0]))
        if window != maskgit.grid:
            raise ValueError(f"maskgit's grid must be the tokenizer's, {window}, got {maskgit.grid}")
        if isinstance(text_encoder, str):
            text_encoder = T5TextEncoder(text_encoder)
        # In a tuple, so that a module is not registered: its weights are no part of this one's.
        self._text_encoder = (text_encoder if maskgit.dim_context is not None else None,)
        width = getattr(self.text_encoder, "dim", None)
        if isinstance(width, int) and width != maskgit.dim_context:
            raise ValueError(f"the text encoder is {width} wide, maskgit's dim_context is {maskgit.dim_context}")

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The text encoder, None where the model is unconditional."""
        return self._text_encoder[0]

    @property
    def window(self) -> int:
        """The number of frames that one pass generates."""
        return self.cvivit.num_frames(self.maskgit.grid[0])

    @property
    def _frames_per_step(self) -> int:
        return self.cvivit.num_frames(2) - 1

    def _apply(self, fn, recurse=True):
        """Take a T5TextEncoder along to another device; the user's own encoder stays where the user put it."""
        if isinstance(self.text_encoder, T5TextEncoder):
            self.text_encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> "Phenaki":
        """Put MaskGit into training mode; the tokenizer stays in eval mode."""
        super().train(mode)
        self.cvivit.eval()
        return self

    # loss

    def forward(
        self,
        videos: Tensor | None = None,
        *,
        texts: Sequence[str] | None = None,
        video_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """MaskGit's loss, a scalar, of videos and their texts.

        videos        (b, c, f, h, w) or images (b, c, h, w) in [0, 1], or in their place
        video_ids     int64 (b, t, h, w), what `cvivit.encode` gave for them
        texts         b captions, or in their place
        text_embeds   (b, m, d) and text_mask, bool (b, m), what the text encoder gave for them
        frame_mask    bool (b, f), True for the real frames of clips that were padded at the end to one length;
                      each has 1 + k · temporal_patch_size of them
        """
        if (videos is None) == (video_ids is None):
            raise ValueError(f"expected either videos or video_ids, got {'none' if videos is None else 'both'}")
        context, context_mask = self._context(texts, text_embeds, text_mask)
        if video_ids is None:
            video_ids = self.cvivit.encode(videos)
        token_mask = None
        if frame_mask is not None:
            token_mask = real_tokens(frame_mask, video_ids.shape, self._frames_per_step)
        return self.maskgit(video_ids, context, context_mask, token_mask)

    # generation

    @torch.no_grad()
    def generate(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        num_frames: int,
        batch_size: int = 1,
        prime_frames: Tensor | None = None,
        overlap: int = 5,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        steps: int = 24,
        cond_scale: float = 7.0,
        temperature: float = 4.0,
        token_temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Generate `num_frames` ≥ 1 new frames: (b, c, num_frames, h, w), in [0, 1].

        texts         one caption or b of them; in their place text_embeds (b, m, d) and text_mask, bool (b, m);
                      none for an unconditional model, which draws `batch_size` videos
        prime_frames  (b, c, f, h, w) to continue, or images (b, c, h, w) to set in motion. As many of the last ones
                      are looked at as the tokenizer takes (1 + k · temporal_patch_size) and the window leaves room
                      for; from longer ones the last `overlap`
        overlap       frames that each further window shares with what is there already, 1 + k · temporal_patch_size
        steps, cond_scale, temperature, token_temperature, generator, progress   see `MaskGit.generate`

        Whole windows are drawn and cut to the count. Raises ValueError where a size or value does not fit.
        """
        check_sampling(steps, temperature, token_temperature)
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        context, context_mask = self._context(texts, text_embeds, text_mask)
        batch_size = batch_of(batch_size, context)
        recent = None if prime_frames is None else self._check_prime(prime_frames, batch_size)
        known = 0 if recent is None else recent.shape[2]
        if num_frames > self.window - self._usable(known) or self._usable(known) >= self.window:
            self._check_overlap(overlap)

        windows, made = [], 0
        while made < num_frames:
            keep = self._usable(known + made)
            if keep >= self.window:
                keep = overlap
            ids = self.maskgit.generate(
                batch_size=batch_size,
                context=context,
                context_mask=context_mask,
                prime_ids=None if keep == 0 else self.cvivit.encode(recent[:, :, -keep:]),
                steps=steps,
                cond_scale=cond_scale,
                temperature=temperature,
                token_temperature=token_temperature,
                generator=generator,
                progress=progress,
            )
            new = self.cvivit.decode(ids)[:, :, keep:].clamp(0, 1)
            recent = new if recent is None else torch.cat((recent, new.to(recent.dtype)), dim=2)[:, :, -self.window :]
            windows.append(new)
            made += new.shape[2]
        return torch.cat(windows, dim=2)[:, :, :num_frames]

    @torch.no_grad()
    def generate_images(
        self,
        texts: str | Sequence[str] | None = None,
        *,
        batch_size: int = 1,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        steps: int = 24,
        cond_scale: float = 7.0,
        temperature: float = 4.0,
        token_temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Generate images, (b, c, h, w) in [0, 1]: videos of one frame. Arguments as in `generate`."""
        check_sampling(steps, temperature, token_temperature)
        context, context_mask = self._context(texts, text_embeds, text_mask)
        ids = self.maskgit.generate(
            (1, *self.maskgit.grid[1:]),
            batch_size=batch_of(batch_size, context),
            context=context,
            context_mask=context_mask,
            steps=steps,
            cond_scale=cond_scale,
            temperature=temperature,
            token_temperature=token_temperature,
            generator=generator,
            progress=progress,
        )
        return rearrange(self.cvivit.decode(ids).clamp(0, 1), "b c 1 h w -> b c h w")

    def generate_story(
        self,
        scenes: Sequence[str] | Sequence[Sequence[str]],
        *,
        num_frames: int | Sequence[int],
        overlap: int = 5,
        steps: int = 24,
        cond_scale: float = 7.0,
        temperature: float = 4.0,
        token_temperature: float | Sequence[float] = 1.0,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Generate videos whose prompt changes over time: each scene goes on from the last `overlap` frames.

        scenes      prompts of one story, or a list of b stories with equally many prompts
        num_frames  new frames of each scene: one number, or one per scene

        Returns the whole, (b, c, all frames, h, w) in [0, 1], and the list of the scenes' new frames.
        """
        scene_prompts, counts = scenes_of(scenes, num_frames)
        self._check_overlap(overlap)
        videos, recent = [], None
        for prompts, count in zip(scene_prompts, counts):
            new = self.generate(
                prompts,
                num_frames=count,
                prime_frames=recent,
                overlap=overlap,
                steps=steps,
                cond_scale=cond_scale,
                temperature=temperature,
                token_temperature=token_temperature,
                generator=generator,
                progress=progress,
            )
            videos.append(new)
            recent = (new if recent is None else torch.cat((recent, new), dim=2))[:, :, -overlap:]
        return torch.cat(videos, dim=2), videos

    # saving

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and, each in a directory of its own, `cvivit/` and `maskgit/`.

        A text encoder that is not a T5TextEncoder is the user's own, and has to be given to `from_pretrained`.
        """
        encoder, saved = self.text_encoder, None
        if isinstance(encoder, T5TextEncoder):
            saved = {"name": encoder.name, "max_length": encoder.max_length}
        elif encoder is not None:
            saved = self.GIVEN
        own = isinstance(self.cvivit, CViViT)
        write_config(directory, {"text_encoder": saved, "cvivit": "cvivit" if own else self.GIVEN})
        if own:
            self.cvivit.save_pretrained(Path(directory) / "cvivit")
        self.maskgit.save_pretrained(Path(directory) / "maskgit")

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: object) -> "Phenaki":
        """Build what `save_pretrained` wrote, on the CPU.

        `given`: `text_encoder` and `cvivit` where they were the user's own, `quantizer` where the tokenizer's was.
        """
        quantizer = {"quantizer": given.pop("quantizer")} if "quantizer" in given else {}
        config = read_config(directory, cls.GIVEN, given)
        if config["cvivit"] == "cvivit":
            config["cvivit"] = CViViT.from_pretrained(Path(directory) / "cvivit", **quantizer)
        elif quantizer:
            raise ValueError("the tokenizer is the user's own: expected cvivit=, got quantizer=")
        if config["text_encoder"] is None:
            del config["text_encoder"]
        elif isinstance(config["text_encoder"], dict):
            config["text_encoder"] = T5TextEncoder(**config["text_encoder"])
        return cls(**config, maskgit=MaskGit.from_pretrained(Path(directory) / "maskgit"))

    # inside

    def _context(
        self, texts: str | Sequence[str] | None, text_embeds: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What MaskGit is given of the texts; it checks shapes and values, this the relations."""
        given = (texts is not None) + (text_embeds is not None)
        if self.maskgit.dim_context is None:
            if given:
                raise ValueError("this model is unconditional: expected neither texts nor text_embeds, got some")
            return None, None
        if given != 1:
            raise ValueError(f"expected either texts or text_embeds, got {('none', 'one', 'both')[given]}")
        if text_embeds is None:
            if text_mask is not None:
                raise ValueError("text_mask goes with text_embeds, got it with texts")
            texts = [texts] if isinstance(texts, str) else list(texts)
            if not texts:
                raise ValueError("texts must not be empty, got none")
            text_embeds, text_mask = self.text_encoder(texts)
            if len(text_embeds) != len(texts):
                raise ValueError(f"the text encoder gave {len(text_embeds)} embeddings for {len(texts)} texts")
        weight = self.maskgit.to_logits.weight
        text_mask = None if text_mask is None else text_mask.to(weight.device)
        return text_embeds.to(weight.device, weight.dtype), text_mask

    def _usable(self, known: int) -> int:
        """Of so many known frames, how many of the last the tokenizer takes: the largest 1 + k · pt, or 0."""
        return 1 + (known - 1) // self._frames_per_step * self._frames_per_step if known else 0

    def _check_prime(self, prime_frames: Tensor, batch_size: int) -> Tensor:
        """Refuse what the window does not go on from; images (b, c, h, w) come back as (b, c, 1, h, w)."""
        if prime_frames.ndim == 4:
            prime_frames = rearrange(prime_frames, "b c h w -> b c 1 h w")
        if prime_frames.ndim != 5 or 0 in prime_frames.shape or not prime_frames.is_floating_point():
            raise ValueError(
                f"prime_frames must be floating point (b, c, f, h, w), or images (b, c, h, w), none empty, "
                f"got {prime_frames.dtype} {tuple(prime_frames.shape)}"
            )
        if len(prime_frames) != batch_size:
            raise ValueError(f"prime_frames have a batch of {len(prime_frames)}, expected {batch_size}")
        grid = self.cvivit.grid(1, *prime_frames.shape[3:])
        if grid[1:] != self.maskgit.grid[1:]:
            raise ValueError(
                f"prime_frames must have the size of the window, {self.maskgit.grid[1:]} ids a frame, "
                f"got {tuple(prime_frames.shape[3:])} pixels, {grid[1:]} ids"
            )
        return prime_frames.to(self.maskgit.to_logits.weight.device)

    def _check_overlap(self, overlap: int) -> None:
        if overlap < 1 or overlap != self._usable(overlap) or overlap >= self.window:
            raise ValueError(
                f"overlap must be 1 + k · {self._frames_per_step} and less than the window of {self.window} frames, "
                f"got {overlap}"
            )
