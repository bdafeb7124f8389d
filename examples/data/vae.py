"""The image VAE of --vae: a folder that diffusers' AutoencoderKL has written, or a pipeline's, with vae/ inside."""

from pathlib import Path

from phenaki_pytorch import ImageVAE


def load_vae(folder: Path, size: int | None) -> ImageVAE:
    """The VAE for square frames of `size` pixels, on the CPU; None: of the size that its config names.

    ValueError without the package diffusers, and without a VAE.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError('--vae needs the package diffusers: pip install ".[vae]"') from error
    place = next((place for place in (folder, folder / "vae") if (place / "config.json").is_file()), None)
    if place is None:
        raise ValueError(f"no VAE in {folder}: expected the config.json and weights of diffusers' AutoencoderKL")
    vae = AutoencoderKL.from_pretrained(place, local_files_only=True, use_safetensors=True)
    return ImageVAE(vae, image_size=size)
