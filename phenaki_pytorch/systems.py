"""What Phenaki, VideoGPT and Latte share: first stage, text encoder and window, and a directory of saved parts."""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from phenaki_pytorch.conditions.t5 import T5TextEncoder
from phenaki_pytorch.conditions.texts import Texts
from phenaki_pytorch.core.contracts import TextEncoder
from phenaki_pytorch.core.saving import CONFIG, Pretrained, built, read_config
from phenaki_pytorch.first_stage import load_tokenizer
from phenaki_pytorch.long_video import LongVideo

Parts = Mapping[str, Collection[str]]  # the name of a part -> the kinds of it that are saved, in a folder of its name

# Of all systems: an earlier model may have left them.
FOLDERS = (
    "cvivit",
    "maskgit",
    "critic",
    "tokenizer",
    "gpt",
    "frame_encoder",
    "codec",
    "transformer",
    "standardisation",
)


class System(Pretrained):
    """A first and a second stage, which may read a text; the constructor sets the two members.

    FIRST_STAGE  the name of the first stage among the members, the arguments and the saved folders
    """

    FIRST_STAGE: str
    _texts: Texts
    _long_video: LongVideo

    def train(self, mode: bool = True) -> "System":
        """Set the mode of all but the first stage, which stays in eval mode."""
        super().train(mode)
        getattr(self, self.FIRST_STAGE).eval()
        return self

    @property
    def text_encoder(self) -> TextEncoder | None:
        """The text encoder, None where the model reads no text."""
        return self._texts.encoder

    @property
    def window(self) -> int:
        """The number of frames that one pass generates."""
        return self._long_video.window

    def _apply(self, fn, recurse=True):
        """Move a T5TextEncoder along to another device; the user's own encoder stays where it is."""
        if self._texts.is_ours:
            self.text_encoder._apply(fn, recurse)
        return super()._apply(fn, recurse)


def warn_of_parts(directory: Path, config: Mapping[str, Any], parts: Parts, *, always: Collection[str]) -> None:
    """Name, in warnings, modules of the user's own that are not saved, and folders that an earlier model has left.

    always  folders that are written whatever the config says
    """
    if left_out := [name for name, value in config.items() if value == Pretrained.GIVEN]:
        warnings.warn(f"left out of the saved model, to be given to from_pretrained: {left_out}", stacklevel=7)
    written = {*always, *(name for name, kinds in parts.items() if config[name] in kinds)}
    old = [name for name in FOLDERS if name not in written and (directory / name).exists()]
    if old:
        warnings.warn(f"{directory} holds parts of an earlier model, which are not this one's: {old}", stacklevel=7)


def read_system(
    system: type[System],
    directory: str | Path,
    given: dict[str, object],
    parts: Parts,
    *,
    optional: Collection[str] = (),
    more: Collection[str] = (),
    renamed: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The arguments of a saved system, with its first stage and, if it has one, its text encoder.

    given     modules of the user's own, and `quantizer` if the first stage's was
    renamed   what older versions called a kind of first stage -> its name now
    others    as in `check_parts`
    """
    quantizer = {"quantizer": given.pop("quantizer")} if "quantizer" in given else {}
    config, name = read_config(directory, system.GIVEN, given), system.FIRST_STAGE
    for old, new in (renamed or {}).items():
        config |= {name: new} if config.get(name) == old else {}
    check_parts(directory, config, given, parts, optional=optional, more=more)
    config[name] = load_tokenizer(config[name], Path(directory) / name, quantizer)
    encoder = saved_text_encoder(directory, config)
    del config["text_encoder"]
    return config | encoder


def check_parts(
    directory: str | Path,
    config: Mapping[str, Any],
    given: Mapping[str, object],
    parts: Parts,
    *,
    optional: Collection[str] = (),
    more: Collection[str] = (),
) -> None:
    """Refuse, with a ValueError, a config that no saved system has; with a TypeError, parts that are no modules.

    optional  parts that there need not be
    more      names of further values
    """
    path, required = Path(directory) / CONFIG, {"text_encoder", *parts, *more} - {*optional}
    if missing := required - config.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    if foreign := config.keys() - required - {*optional}:
        raise ValueError(f"{path} holds {', '.join(sorted(foreign))}, which no such system has")
    for name, kinds in parts.items():
        if name in given and not isinstance(given[name], nn.Module | None):
            raise TypeError(f"{name} must be a module, got a {type(given[name]).__name__}")
        known = [*kinds, *([None] if name in optional else [])]
        if name not in given and config.get(name) not in known:
            raise ValueError(f"{path} must have one of {known} as {name}, got {config[name]!r}")
    encoder = config["text_encoder"]
    if "text_encoder" not in given and not isinstance(encoder, dict | str | None):
        raise ValueError(f"{path} must have the arguments of a T5TextEncoder as text_encoder, got {encoder!r}")


def saved_text_encoder(directory: str | Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The argument text_encoder= of a saved system, if it has one."""
    encoder = config["text_encoder"]
    if isinstance(encoder, dict):
        encoder = built(T5TextEncoder, Path(directory) / CONFIG, encoder)
    return {} if encoder is None else {"text_encoder": encoder}
