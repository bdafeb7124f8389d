"""Latte: latent diffusion. A codec, a LatteTransformer that removes noise from its latents, and classes or a text.

    training      video -> latents + noise; the loss is that of the noise which the transformer predicts
    generation    noise -> latents -> video; a longer video goes on from its own last frames, encoded again

Ma et al. 2024, https://arxiv.org/abs/2401.03048. There the codec is an image VAE (`ImageVAE`); here any tokenizer will
do. Frames to go on from, and so videos longer than a window, are not in the paper: their latents, with as much noise
as the sample has, take the place of the sample's first time steps at each step of sampling.

b = batch · c = channels · f = frames · t, h, w = grid of latents · e = code_dim · i = images of each clip
m = text tokens · d = width of the text embeddings
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

import torch
from einops import rearrange
from torch import Tensor, nn

from phenaki_pytorch.conditions.texts import Texts, padded_to_one_length
from phenaki_pytorch.core.checks import (
    batch_of,
    check_at_least,
    check_features,
    check_same,
    common_batch,
    one_of,
)
from phenaki_pytorch.core.contracts import Denoiser, TextEncoder
from phenaki_pytorch.core.modules import in_eval_mode, through_call, uncompiled
from phenaki_pytorch.core.saving import CONFIG, Stage, built, write_config
from phenaki_pytorch.diffusion.latte_transformer import LatteTransformer
from phenaki_pytorch.diffusion.options import DiffusionOptions, diffusion_options, sample
from phenaki_pytorch.diffusion.process import Diffusion, DiffusionLosses
from phenaki_pytorch.diffusion.samplers import guided
from phenaki_pytorch.diffusion.standardisation import Standardisation
from phenaki_pytorch.first_stage import KINDS, frozen_codec, kind_of, save_tokenizer
from phenaki_pytorch.long_video import LongVideo, Window, concatenated
from phenaki_pytorch.systems import System, read_system, warn_of_parts

PARTS = {"codec": KINDS}


class Latte(System):
    """Learns from videos, and from images beside them, and generates video from classes, texts or nothing.

    codec         ImageVAE, CViViT, VQGAN, VQVAE, or any module with latents, decode_features, grid, num_frames and
                  code_dim; trained. It is frozen here: in eval mode for good, its parameters without gradient
    transformer   the LatteTransformer to train; a window, the video of one pass, has its grid
    text_encoder  as in `Phenaki`; None where text embeddings are given; unused by a transformer that reads no text
    standardise   give each channel of the latents mean 0 and variance 1, by what the first 100 batches of videos in
                  training measure; False: leave them as they are, as published weights have them of an `ImageVAE`

    Raises ValueError where the parts do not fit each other.
    """

    FIRST_STAGE = "codec"

    def __init__(
        self,
        *,
        codec: nn.Module,
        transformer: nn.Module,
        text_encoder: str | TextEncoder | None = None,
        standardise: bool = True,
    ):
        super().__init__()
        if not isinstance(uncompiled(transformer), LatteTransformer):
            raise TypeError(f"transformer must be a LatteTransformer, got a {type(transformer).__name__}")
        self.codec = frozen_codec(codec, transformer)
        self.transformer = transformer
        self.standardise = standardise
        self.standardisation = Standardisation(code_dim=codec.code_dim)
        self.diffusion = Diffusion()
        self._long_video = LongVideo(codec, transformer.grid)
        self._texts = Texts(text_encoder, transformer.dim_context)

    @property
    def _device(self) -> torch.device:
        return self.transformer.placement().device

    @property
    def num_classes(self) -> int | None:
        """The number of classes, None where the model reads none."""
        return self.transformer.num_classes

    # loss

    @through_call
    def losses(
        self,
        videos: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        classes: Tensor | None = None,
        texts: Sequence | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        images: Tensor | None = None,
        image_latents: Tensor | None = None,
        image_classes: Tensor | None = None,
        image_text_embeds: Tensor | None = None,
        image_text_mask: Tensor | None = None,
    ) -> DiffusionLosses:
        """The loss of videos, and of the images that are trained beside each.

        videos             (b, c, f, h, w) or images (b, c, h, w) in [0, 1], or instead
        latents            (b, t, h, w, e), what `codec.latents` gave for them
        classes            int64 (b,)
        texts              b captions, or instead
        text_embeds        (b, m, d) and text_mask, bool (b, m), what the text encoder gave for them
        images             (b, i, c, h, w) in [0, 1], i images for each video, drawn independently of it, or instead
        image_latents      (b, i, h, w, e)
        image_classes      int64 (b, i)
        image_text_embeds  (b, i, m, d) and image_text_mask, bool (b, i, m), what the text encoder gave for the images'
                           captions; m may be another than that of the videos

        Each image counts as much as a time step of the video. Raises ValueError for a condition that is missing, not
        asked for, or does not fit.
        """
        b = len(one_of(videos=videos, latents=latents))
        given = self._told(texts, text_embeds, text_mask, classes)
        of_images = (images, image_latents, image_classes, image_text_embeds, image_text_mask)
        joint = any(value is not None for value in of_images)
        if joint:
            shape = one_of(images=images, image_latents=image_latents).shape
            if len(shape) != 5 or shape[0] != b or shape[1] == 0:
                raise ValueError(f"images must be ({b}, i, ...), i at least 1, 5 axes in all, got {tuple(shape)}")
            if given["context"] is not None and image_text_embeds is None:
                raise ValueError("expected image_text_embeds for the images, from the text encoder, got none")
            given |= {"images": shape[1], "image_classes": self._moved(image_classes)}
            texts_of_both = given["context"], given["context_mask"], image_text_embeds, image_text_mask
            names = ("context", "context_mask", "image_context", "image_context_mask")
            given |= dict(zip(names, padded_to_one_length(*texts_of_both)))
        self.transformer.check_conditions(b, **given)
        latents = self._latents(videos) if latents is None else self._given_latents("latents", latents)
        pictures = [self._image_latents(images, image_latents, like=latents)] if joint else []
        if self.training and self.standardise:
            self.standardisation.measure(latents)
        standardised = self.standardisation.standardised(torch.cat((latents, *pictures), dim=1))
        return self.diffusion.losses(partial(self.transformer, **given), standardised)

    # generation

    @torch.no_grad()
    @through_call
    def generate(
        self,
        texts: str | Sequence | None = None,
        *,
        num_frames: int,
        batch_size: int = 1,
        classes: Tensor | None = None,
        prime_frames: Tensor | None = None,
        overlap: int | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        **sampling: Unpack[DiffusionOptions],
    ) -> Tensor:
        """Generate `num_frames` ≥ 1 new frames: (b, c, num_frames, h, w), in [0, 1].

        classes       int64 (b,)
        prime_frames  (b, c, f, h, w) to continue, or images (b, c, h, w) to animate. Of fewer frames than a window the
                      last ones are used, as many as the codec takes; of more the last `overlap`
        overlap       frames that each further window shares with those before, in a number that the codec takes; None:
                      5, or the most below it that fits
        texts, text_embeds, text_mask   as in `losses`; one caption alone is that of one video
        batch_size    how many videos to generate where nothing above says it
        sampling      see `DiffusionOptions`

        Whole windows are sampled and cut to the count. The transformer is in eval mode meanwhile, so another thread
        must not train it. Raises ValueError where a size or value does not fit.
        """
        options = diffusion_options(sampling)
        check_at_least(1, num_frames=num_frames)
        given, batch_size = self._conditions(texts, text_embeds, text_mask, classes, batch_size, prime_frames)
        if prime_frames is not None:
            prime_frames = self._long_video.check_prime(prime_frames, batch_size).to(self._device)
        model = self._denoiser(options["cond_scale"], batch_size, given)

        def sample_window(window: Window) -> Tensor:
            known = window.frames
            if known is not None:
                known = self.standardisation.standardised(self._latents(known, options["generator"]))
            return self._sampled(model, batch_size, self.transformer.grid, options, known)

        with in_eval_mode(self.transformer):
            windows = self._long_video.generate(sample_window, num_frames, prime_frames=prime_frames, overlap=overlap)
            return concatenated(windows, num_frames)

    @torch.no_grad()
    @through_call
    def generate_images(
        self,
        texts: str | Sequence | None = None,
        *,
        batch_size: int = 1,
        classes: Tensor | None = None,
        text_embeds: Tensor | None = None,
        text_mask: Tensor | None = None,
        **sampling: Unpack[DiffusionOptions],
    ) -> Tensor:
        """Generate images, (b, c, h, w) in [0, 1]: videos of one frame. Arguments as in `generate`.

        For a model that was trained on images, too. Raises ValueError where the codec takes no single frames.
        """
        options, grid = diffusion_options(sampling), self.codec.grid(1)
        given, batch_size = self._conditions(texts, text_embeds, text_mask, classes, batch_size)
        model = self._denoiser(options["cond_scale"], batch_size, given)
        with in_eval_mode(self.transformer):
            video = self._sampled(model, batch_size, grid, options)
        return rearrange(video.clamp(0, 1), "b c 1 h w -> b c h w")

    def _sampled(
        self,
        model: Denoiser,
        batch_size: int,
        grid: tuple[int, int, int],
        options: DiffusionOptions,
        prime_latents: Tensor | None = None,
    ) -> Tensor:
        """Videos of a grid, (b, c, f, h, w), not clamped."""
        like = self.transformer.placement()
        shape = (batch_size, *grid, self.transformer.code_dim)
        dtype = torch.promote_types(like.dtype, torch.float32)
        noise = torch.randn(shape, generator=options["generator"], device=like.device, dtype=dtype)
        latents = sample(model, noise, self.diffusion, options, prime_latents)
        return self.codec.decode_features(self.standardisation.restored(latents))

    def _denoiser(self, cond_scale: float, batch_size: int, given: dict[str, Tensor | None]) -> Denoiser:
        """The transformer with its conditions, guided where there are some."""
        given = {name: value for name, value in given.items() if value is not None}
        if not given or cond_scale == 1:
            return partial(self.transformer, **given)
        twice = {name: torch.cat((value, value)) for name, value in given.items()}
        dropped = torch.arange(2 * batch_size, device=self._device) >= batch_size
        return guided(partial(self.transformer, **twice, dropped=dropped), cond_scale)

    # latents

    @torch.no_grad()
    def _latents(self, videos: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Latents (b, t, h, w, e) of videos (b, c, f, h, w) or images (b, c, h, w)."""
        latents = self._given_latents("the codec's latents", self.codec.latents(videos, generator=generator))
        sizes = (1, *videos.shape[2:]) if videos.ndim == 4 else videos.shape[2:]
        expected = (len(videos), *self.codec.grid(*sizes))
        if latents.shape[:4] != expected:
            raise ValueError(f"the codec's latents must be {(*expected, latents.shape[4])}, got {tuple(latents.shape)}")
        return latents

    def _given_latents(self, name: str, latents: Tensor) -> Tensor:
        check_features(latents, self.transformer.code_dim, name=name)
        return latents.to(self._device)

    def _image_latents(self, images: Tensor | None, image_latents: Tensor | None, *, like: Tensor) -> Tensor:
        """Latents of i images of each of b clips, (b, i, h, w, e), of the size of the clips' latents, `like`."""
        if images is None:
            latents = self._given_latents("image_latents", image_latents)
        else:
            latents = self._latents(rearrange(images, "b i c h w -> (b i) c 1 h w"))
            latents = rearrange(latents, "(b i) 1 h w e -> b i h w e", b=len(like))
        if latents.shape[2:] != like.shape[2:]:
            raise ValueError(
                f"images must have the size of the videos, latents of {tuple(like.shape[2:4])}, "
                f"got {tuple(latents.shape[2:4])}"
            )
        return latents

    # conditions

    def _conditions(
        self,
        texts: str | Sequence | None,
        text_embeds: Tensor | None,
        text_mask: Tensor | None,
        classes: Tensor | None,
        batch_size: int,
        prime_frames: Tensor | None = None,
    ) -> tuple[dict[str, Tensor | None], int]:
        """What the transformer is told of the videos to generate, and their number."""
        given = self._told(texts, text_embeds, text_mask, classes)
        if given["context"] is None:
            batch_size = common_batch(batch_size, classes, prime_frames)
        batch_size = batch_of(batch_size, given["context"])
        self.transformer.check_conditions(batch_size, **given)
        return given, batch_size

    def _told(
        self, texts: str | Sequence | None, embeds: Tensor | None, mask: Tensor | None, classes: Tensor | None
    ) -> dict[str, Tensor | None]:
        """Classes and text embeddings as the transformer takes them, not checked; None for what is not given."""
        context, context_mask = self._texts.read(texts, embeds, mask, like=self.transformer.placement())
        return {"classes": self._moved(classes), "context": context, "context_mask": context_mask}

    def _moved(self, classes: Tensor | None) -> Tensor | None:
        return None if classes is None else classes.to(self._device)

    # saving

    def write_to(self, directory: Path, stage: Stage) -> None:
        """Write config.json and, each in a directory of its own, `codec/`, `transformer/` and `standardisation/`.

        Modules of the user's own, an image VAE among them, are left out, with a warning that names them; they have to
        be passed to `from_pretrained` again.
        """
        config = {
            "codec": kind_of(self.codec),
            "text_encoder": self._texts.config(self.GIVEN),
            "standardise": self.standardise,
        }
        write_config(directory, config, stage)
        save_tokenizer(self.codec, directory / "codec", stage)
        uncompiled(self.transformer).write_to(directory / "transformer", stage)
        self.standardisation.write_to(directory / "standardisation", stage)
        warn_of_parts(directory, config, PARTS, always=["transformer", "standardisation"])

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: object) -> "Latte":
        """Build what `save_pretrained` wrote, on the CPU.

        `given`: `codec`, `text_encoder` where they were the user's own, `quantizer` if the codec's was.
        """
        config = read_system(cls, directory, given, PARTS, more=["standardise"])
        transformer = LatteTransformer.from_pretrained(Path(directory) / "transformer")
        latte = built(cls, Path(directory) / CONFIG, config | {"transformer": transformer})
        latte.standardisation = Standardisation.from_pretrained(Path(directory) / "standardisation")
        check_same(
            latte.standardisation, transformer, "code_dim", message="the standardisation's {} must be that of the model"
        )
        return latte
