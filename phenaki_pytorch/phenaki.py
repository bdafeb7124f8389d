"""Phenaki: text to video of any length, by a tokenizer, a masked transformer over its ids, and a text encoder.

    training      video -> ids, text -> embeddings; the loss is MaskGit's of the ids given the embeddings
    generation    text -> ids of one window -> video; a longer video goes on from its own last frames, encoded
                  again, under the same text or the next one of a story (Phenaki, section 2.3,
                  https://arxiv.org/abs/2210.02399)

b = batch · c = channels · f = frames · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.checks import batch_of, real_tokens, scenes_of
from phenaki_pytorch.critic import Critic, SelfCritic, TokenCritic, filled_in
from phenaki_pytorch.cvivit import CViViT
from phenaki_pytorch.guidance import GuidedTeacher
from phenaki_pytorch.maskgit import MaskGit
from phenaki_pytorch.sampling import Progress, Settings
from phenaki_pytorch.saving import Pretrained, read_config, write_config
from phenaki_pytorch.t5 import T5TextEncoder
from phenaki_pytorch.texts import TextEncoder, Texts
from phenaki_pytorch.windows import Windows, joined

CRITICS = {kind.__name__: kind for kind in (TokenCritic, SelfCritic)}  # by the name that is saved


class PhenakiLosses(NamedTuple):
    """The sum of both, MaskGit's loss, and the critic's, 0 without one."""

    total: Tensor
    maskgit: Tensor
    critic: Tensor


class Phenaki(Pretrained):
    """Learns from captioned video and generates video from text.

    cvivit        the tokenizer, trained: CViViT or any module with its encode, decode, grid, num_frames and
                  codebook_size. It is frozen here: put into eval mode for good, its parameters without gradient
    maskgit       the MaskGit to train; its window is the video that one pass generates
    text_encoder  a T5 name or directory, or any callable texts -> (embeddings (b, m, d), bool mask (b, m)).
                  Not asked for by an unconditional MaskGit
    critic        a TokenCritic or SelfCritic to train along and to generate with; None for MaskGIT's confidence

    Raises ValueError where the parts do not fit each other.
    """

    def __init__(
        self,
        *,
        cvivit: nn.Module,
        maskgit: MaskGit,
        text_encoder: str | TextEncoder = "google/t5-v1_1-base",
        critic: Critic | None = None,
    ):
        super().__init__()
        self.cvivit = cvivit.requires_grad_(False).eval()
        self.maskgit = maskgit
        self.critic = critic
        if critic is not None:
            critic.check_fits(maskgit)
        if maskgit.num_tokens != cvivit.codebook_size:
            raise ValueError(
                f"maskgit must have as many tokens as the tokenizer codes, {cvivit.codebook_size}, "
                f"got {maskgit.num_tokens}"
            )
        window = cvivit.grid(cvivit.num_frames(maskgit.grid[0]))
        if window != maskgit.grid:
            raise ValueError(f"maskgit's grid must be the tokenizer's, {window}, got {maskgit.grid}")
        self._windows = Windows(cvivit, window)
        self._texts = Texts(text_encoder, maskgit.dim_context)

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The text encoder, None where the model is unconditional."""
        return self._texts.encoder

    @property
    def window(self) -> int:
        """The number of frames that one pass generates."""
        return self._windows.length

    def _apply(self, fn, recurse=True):
        """Take a T5TextEncoder along to another device; the user's own encoder stays where the user put it."""
        if self._texts.is_ours:
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
        prime_steps: Tensor | None = None,
        teacher: GuidedTeacher | None = None,
    ) -> Tensor:
        """The loss, a scalar, of videos and their texts: MaskGit's, and the critic's if there is one.

        videos        (b, c, f, h, w) or images (b, c, h, w) in [0, 1], or in their place
        video_ids     int64 (b, t, h, w), what `cvivit.encode` gave for them
        texts         b captions, or in their place
        text_embeds   (b, m, d) and text_mask, bool (b, m), what the text encoder gave for them
        frame_mask    bool (b, f), True for the real frames of clips that were padded at the end to one length;
                      each has 1 + k · temporal_patch_size of them
        prime_steps   int64 (b,), how many first time steps of each clip are given, as in a continuation, so that the
                      text may speak of what comes after them; in place of what MaskGit's `prime_prob` draws
        teacher       a GuidedTeacher: MaskGit learns what it says, in place of the ids
        """
        return self.losses(
            videos,
            texts=texts,
            video_ids=video_ids,
            text_embeds=text_embeds,
            text_mask=text_mask,
            frame_mask=frame_mask,
            prime_steps=prime_steps,
            teacher=teacher,
        ).total

    def losses(
        self,
        videos: Tensor | None = None,
        *,
        texts: Sequence[str] | None = None,
        video_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        prime_steps: Tensor | None = None,
        teacher: GuidedTeacher | None = None,
    ) -> PhenakiLosses:
        """The parts of the loss; arguments as in `forward`.

        The critic looks at what MaskGit makes of the masked ids, in the same pass that MaskGit learns from. Its loss
        leaves no gradient in MaskGit, unless it is MaskGit's own, a SelfCritic.
        """
        if (videos is None) == (video_ids is None):
            raise ValueError(f"expected either videos or video_ids, got {'none' if videos is None else 'both'}")
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=self.maskgit.to_logits.weight)
        if video_ids is None:
            video_ids = self.cvivit.encode(videos)
        token_mask = None if frame_mask is None else real_tokens(frame_mask, video_ids.shape, self._windows.step)
        losses = self.maskgit.losses(video_ids, context, context_mask, token_mask, prime_steps, teacher)
        if self.critic is None:
            return PhenakiLosses(losses.total, losses.total, losses.total.new_zeros(()))
        filled, wrong = filled_in(video_ids, losses)
        text = (None, None) if self.critic.reader.dim_context is None else (context, context_mask)
        doubts = self.critic(filled, wrong, *text, token_mask)
        return PhenakiLosses(losses.total + doubts, losses.total, doubts)

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
        critic_scale: float = 1.0,
        guide_every: int = 1,
        critic_inline: bool = False,
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
        steps and those after it   see `MaskGit.generate`

        Whole windows are drawn and cut to the count. Raises ValueError where a size or value does not fit.
        """
        settings = Settings(steps, cond_scale, temperature, token_temperature, critic_scale, guide_every, critic_inline)
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=self.maskgit.to_logits.weight)
        batch_size = batch_of(batch_size, context)
        if prime_frames is not None:
            prime_frames = self._windows.check_prime(prime_frames, batch_size)
            prime_frames = prime_frames.to(self.maskgit.to_logits.weight.device)
        draw = partial(
            self.maskgit.generate,
            batch_size=batch_size,
            context=context,
            context_mask=context_mask,
            critic=self.critic,
            **vars(settings),
            generator=generator,
            progress=progress,
        )
        windows = self._windows.generate(
            lambda ids: draw(prime_ids=ids), num_frames, prime=prime_frames, overlap=overlap
        )
        return joined(windows, num_frames)

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
        critic_scale: float = 1.0,
        guide_every: int = 1,
        critic_inline: bool = False,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Generate images, (b, c, h, w) in [0, 1]: videos of one frame. Arguments as in `generate`."""
        settings = Settings(steps, cond_scale, temperature, token_temperature, critic_scale, guide_every, critic_inline)
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=self.maskgit.to_logits.weight)
        ids = self.maskgit.generate(
            (1, *self.maskgit.grid[1:]),
            batch_size=batch_of(batch_size, context),
            context=context,
            context_mask=context_mask,
            critic=self.critic,
            **vars(settings),
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
        critic_scale: float = 1.0,
        guide_every: int = 1,
        critic_inline: bool = False,
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Generate videos whose prompt changes over time: each scene goes on from the last `overlap` frames.

        scenes      prompts of one story, or a list of b stories with equally many prompts
        num_frames  new frames of each scene: one number, or one per scene

        Returns the whole, (b, c, all frames, h, w) in [0, 1], and the list of the scenes' new frames, views of it.
        """
        scene_prompts, counts = scenes_of(scenes, num_frames)
        self._windows.check_overlap(overlap)
        settings = Settings(steps, cond_scale, temperature, token_temperature, critic_scale, guide_every, critic_inline)
        draw = partial(self.generate, overlap=overlap, **vars(settings), generator=generator, progress=progress)

        def new_frames() -> Iterator[Tensor]:
            recent = None
            for prompts, count in zip(scene_prompts, counts):
                yield (new := draw(prompts, num_frames=count, prime_frames=recent))
                before = [] if recent is None else [recent]
                recent = torch.cat((*before, new[:, :, -overlap:]), dim=2)[:, :, -overlap:]

        whole = joined(new_frames(), sum(counts))
        return whole, list(whole.split(counts, dim=2))

    # saving

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and, each in a directory of its own, `cvivit/`, `maskgit/` and, if there is one, `critic/`.

        What is the user's own, a text encoder that is no T5TextEncoder, say, has to be given to `from_pretrained`.
        """
        own = isinstance(self.cvivit, CViViT)
        names = {kind: name for name, kind in CRITICS.items()} | {type(None): None}
        config = {
            "text_encoder": self._texts.config(self.GIVEN),
            "cvivit": "cvivit" if own else self.GIVEN,
            "critic": names.get(type(self.critic), self.GIVEN),
        }
        write_config(directory, config)
        if own:
            self.cvivit.save_pretrained(Path(directory) / "cvivit")
        self.maskgit.save_pretrained(Path(directory) / "maskgit")
        if config["critic"] in CRITICS:
            self.critic.save_pretrained(Path(directory) / "critic")

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: object) -> "Phenaki":
        """Build what `save_pretrained` wrote, on the CPU.

        `given`: `text_encoder`, `cvivit`, `critic` where they were the user's own, `quantizer` if the tokenizer's was.
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
        config["maskgit"] = maskgit = MaskGit.from_pretrained(Path(directory) / "maskgit")
        if config.get("critic") in CRITICS:
            reader = {"maskgit": maskgit} if CRITICS[config["critic"]] is SelfCritic else {}
            config["critic"] = CRITICS[config["critic"]].from_pretrained(Path(directory) / "critic", **reader)
        return cls(**config)
