"""Phenaki: text to video of any length, by a tokenizer, a masked transformer over its ids, and a text encoder.

    training      video -> ids, text -> embeddings; the loss is MaskGit's of the ids given the embeddings
    generation    text -> ids of one window -> video; a longer video goes on from its own last frames, encoded
                  again, under the same text or the next one of a story (Phenaki, section 2.3,
                  https://arxiv.org/abs/2210.02399)

b = batch · c = channels · f = frames · t, h, w = grid of ids · m = text tokens · d = width of the text embeddings
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.conditions.texts import Texts
from phenaki_pytorch.core.checks import batch_of, one_of
from phenaki_pytorch.core.contracts import TextEncoder
from phenaki_pytorch.core.lengths import real_tokens
from phenaki_pytorch.core.modules import through_call, uncompiled
from phenaki_pytorch.core.saving import Stage, write_config
from phenaki_pytorch.first_stage import KINDS, encode, frozen_tokenizer, kind_of, save_tokenizer
from phenaki_pytorch.long_video import LongVideo, Window, check_scenes, concatenated
from phenaki_pytorch.priors.critic import Critic, SelfCritic, TokenCritic, fill_in
from phenaki_pytorch.priors.decoding import SamplingOptions, check_critic_options, sampling_options
from phenaki_pytorch.priors.distillation import GuidedTeacher
from phenaki_pytorch.priors.maskgit import MaskGit
from phenaki_pytorch.systems import System, read_system, warn_of_parts

CRITICS = {kind.__name__: kind for kind in (TokenCritic, SelfCritic)}  # by the name that is saved
PARTS = {"cvivit": KINDS, "critic": CRITICS}


class PhenakiLosses(NamedTuple):
    """MaskGit's loss, the critic's, which is 0 without one, and their sum."""

    total: Tensor
    maskgit: Tensor
    critic: Tensor


class Phenaki(System):
    """Learns from captioned video and generates video from text.

    cvivit        the tokenizer, trained: CViViT, VQGAN, VQVAE, or any module with encode, decode, grid, num_frames and
                  codebook_size. It is frozen here: in eval mode for good, its parameters without gradient
    maskgit       the MaskGit to train; a window, the video of one pass, has its grid
    text_encoder  a T5 name or directory, or any callable texts -> (embeddings (b, m, d), bool mask (b, m)); unused
                  by an unconditional MaskGit
    critic        a TokenCritic or SelfCritic to train along and to sample with; None for MaskGIT's confidence

    Raises ValueError where the parts do not fit each other.
    """

    FIRST_STAGE = "cvivit"

    def __init__(
        self,
        *,
        cvivit: nn.Module,
        maskgit: nn.Module,
        text_encoder: str | TextEncoder = "google/t5-v1_1-base",
        critic: nn.Module | None = None,
    ):
        super().__init__()
        if not isinstance(uncompiled(maskgit), MaskGit):
            raise TypeError(f"maskgit must be a MaskGit, got a {type(maskgit).__name__}")
        self.cvivit = frozen_tokenizer("cvivit", cvivit, maskgit, "maskgit")
        self.maskgit = maskgit
        self.critic = critic
        if critic is not None:
            if not isinstance(uncompiled(critic), Critic):
                raise TypeError(f"critic must be a TokenCritic or a SelfCritic, got a {type(critic).__name__}")
            critic.check_fits(maskgit)
        self._long_video = LongVideo(cvivit, maskgit.grid)
        self._texts = Texts(text_encoder, maskgit.dim_context)

    # loss

    @through_call
    def losses(
        self,
        videos: Tensor | None = None,
        *,
        texts: Sequence | None = None,
        video_ids: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        prime_steps: Tensor | None = None,
        teacher: GuidedTeacher | None = None,
    ) -> PhenakiLosses:
        """The loss of videos and their texts: MaskGit's, and the critic's if there is one.

        videos        (b, c, f, h, w) or images (b, c, h, w) in [0, 1], or instead
        video_ids     int64 (b, t, h, w), what `cvivit.encode` gave for them
        texts         b captions, or instead
        text_embeds   (b, m, d) and text_mask, bool (b, m), what the text encoder gave for them
        frame_mask    bool (b, f), True for the real frames of clips that were padded at the end to one length; their
                      number is one that the tokenizer takes
        prime_steps   int64 (b,), how many first time steps of each clip are not masked, as in a continuation, for
                      texts that describe only what follows them; replaces the draw by MaskGit's `prime_prob`
        teacher       a GuidedTeacher, whose distributions are MaskGit's target in place of the ids

        The critic classifies what MaskGit samples at the masked ids. Its loss has a gradient in MaskGit only if it is
        a SelfCritic.
        """
        one_of(videos=videos, video_ids=video_ids)
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=self.maskgit.placement())
        if video_ids is None:
            video_ids, token_mask = encode(self.cvivit, videos, frame_mask)
        else:
            token_mask = None if frame_mask is None else real_tokens(frame_mask, video_ids.shape, self.cvivit)
        losses = self.maskgit.losses(video_ids, context, context_mask, token_mask, prime_steps, teacher)
        if self.critic is None:
            return PhenakiLosses(losses.total, losses.total, losses.total.new_zeros(()))
        filled, wrong = fill_in(video_ids, losses)
        text = (None, None) if self.critic.backbone.dim_context is None else (context, context_mask)
        critic_loss = self.critic(filled, wrong, *text, token_mask)
        return PhenakiLosses(losses.total + critic_loss, losses.total, critic_loss)

    # generation

    @torch.no_grad()
    @through_call
    def generate(
        self,
        texts: str | Sequence | None = None,
        *,
        num_frames: int,
        batch_size: int = 1,
        prime_frames: Tensor | None = None,
        overlap: int | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Tensor:
        """Generate `num_frames` ≥ 1 new frames: (b, c, num_frames, h, w), in [0, 1].

        texts         b captions, or that of a single video; instead text_embeds (b, m, d) and text_mask, bool (b, m);
                      none for an unconditional model, which generates `batch_size` videos
        prime_frames  (b, c, f, h, w) to continue, or images (b, c, h, w) to animate. Of fewer frames than a window the
                      last ones are used, as many as the tokenizer takes; of more the last `overlap`
        overlap       frames that each further window shares with those before, in a number that the tokenizer takes;
                      None: the paper's 5, or the most below it that fits
        sampling      see `SamplingOptions`

        Whole windows are sampled and cut to the count. Raises ValueError where a size or value does not fit.
        """
        check_critic_options(sampling_options(sampling), self.critic)
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=self.maskgit.placement())
        batch_size = batch_of(batch_size, context)
        if prime_frames is not None:
            prime_frames = self._long_video.check_prime(prime_frames, batch_size)
            prime_frames = prime_frames.to(self.maskgit.placement().device)

        def sample(window: Window) -> Tensor:
            ids = self.maskgit.generate(
                batch_size=batch_size,
                context=context,
                context_mask=context_mask,
                prime_ids=None if window.frames is None else self.cvivit.encode(window.frames),
                critic=self.critic,
                **sampling,
            )
            return self.cvivit.decode(ids)

        windows = self._long_video.generate(sample, num_frames, prime_frames=prime_frames, overlap=overlap)
        return concatenated(windows, num_frames)

    @torch.no_grad()
    @through_call
    def generate_images(
        self,
        texts: str | Sequence | None = None,
        *,
        batch_size: int = 1,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Tensor:
        """Generate images, (b, c, h, w) in [0, 1]: videos of one frame. Arguments as in `generate`.

        Raises ValueError where the tokenizer takes no single frames.
        """
        check_critic_options(sampling_options(sampling), self.critic)
        grid = self.cvivit.grid(1)
        context, context_mask = self._texts.read(texts, text_embeds, text_mask, like=self.maskgit.placement())
        ids = self.maskgit.generate(
            grid,
            batch_size=batch_of(batch_size, context),
            context=context,
            context_mask=context_mask,
            critic=self.critic,
            **sampling,
        )
        return rearrange(self.cvivit.decode(ids).clamp(0, 1), "b c 1 h w -> b c h w")

    @through_call
    def generate_story(
        self,
        scenes: Sequence,
        *,
        num_frames: int | Sequence,
        overlap: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> tuple[Tensor, list]:
        """Generate videos whose prompt changes over time: each scene goes on from the last `overlap` frames.

        scenes      prompts of one story, or a list of b stories with equally many prompts
        num_frames  new frames of each scene: one number, or one per scene
        overlap, sampling   as in `generate`

        Returns the whole, (b, c, all frames, h, w) in [0, 1], and the list of the scenes' new frames, views of it.
        """
        check_critic_options(sampling_options(sampling), self.critic)
        prompts_of, counts = check_scenes(scenes, num_frames)
        shortest = self.cvivit.num_frames(1)
        if len(counts) > 1:
            overlap = self._long_video.check_overlap(overlap)
            if counts[0] < shortest:
                raise ValueError(f"the first scene must have at least {shortest} frames to go on from, got {counts[0]}")

        def new_frames() -> Iterator[Tensor]:
            known = None
            for prompts, count in zip(prompts_of, counts):
                recent = None if known is None else known[:, :, -overlap:]
                new = self.generate(prompts, num_frames=count, prime_frames=recent, overlap=overlap, **sampling)
                yield new
                known = new if recent is None else torch.cat((recent, new), dim=2)

        whole = concatenated(new_frames(), sum(counts))
        return whole, list(whole.split(counts, dim=2))

    # saving

    def write_to(self, directory: Path, stage: Stage) -> None:
        """Write config.json and, each in a directory of its own, `cvivit/`, `maskgit/` and, if there is one, `critic/`.

        Modules of the user's own, such as a text encoder that is no T5TextEncoder, are left out, with a warning that
        names them; they have to be passed to `from_pretrained` again. Directories of an earlier model's parts that
        this one does not have are left as they are, with a warning too.
        """
        critic = uncompiled(self.critic)
        names = {kind: name for name, kind in CRITICS.items()} | {type(None): None}
        config = {
            "text_encoder": self._texts.config(self.GIVEN),
            "cvivit": kind_of(self.cvivit),
            "critic": names.get(type(critic), self.GIVEN),
        }
        write_config(directory, config, stage)
        save_tokenizer(self.cvivit, directory / "cvivit", stage)
        uncompiled(self.maskgit).write_to(directory / "maskgit", stage)
        if config["critic"] in CRITICS:
            critic.write_to(directory / "critic", stage)
        warn_of_parts(directory, config, PARTS, always=["maskgit"])

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: object) -> "Phenaki":
        """Build what `save_pretrained` wrote, on the CPU.

        `given`: `text_encoder`, `cvivit`, `critic` where they were the user's own, `quantizer` if the tokenizer's was.
        Errors are those of `Pretrained.from_pretrained`.
        """
        # "cvivit" was saved when there was one kind
        config = read_system(cls, directory, given, PARTS, optional=["critic"], renamed={"cvivit": "CViViT"})
        config["maskgit"] = maskgit = MaskGit.from_pretrained(Path(directory) / "maskgit")
        if config.get("critic") in CRITICS:
            backbone = {"maskgit": maskgit} if CRITICS[config["critic"]] is SelfCritic else {}
            config["critic"] = CRITICS[config["critic"]].from_pretrained(Path(directory) / "critic", **backbone)
        return cls(**config)
