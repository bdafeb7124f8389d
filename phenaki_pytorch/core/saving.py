"""Saving and loading: config.json (the constructor's arguments) and safetensors, in one directory per module.

A saved model is replaced only when the new one is written whole. A config that does not fit its weights is refused
before memory is taken for it.
"""

import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from phenaki_pytorch.core.modules import HookedModule

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

MOST_UNSAVED = 2**25  # values that a module may compute beside those in its file, such as the codebook of "lfq"

Stage = Callable[[Path], Path]  # the path of a file -> the path to write it to for now


class Pretrained(HookedModule):
    """A module that can be saved to a directory and built again from it.

    Its constructor sets `self.config` to its arguments. `GIVEN` stands there for a module that is the user's own (a
    quantizer, say), which has to be passed to `from_pretrained` again.
    """

    GIVEN = "given by the user"
    config: dict[str, Any]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors into `directory`, which is created if it does not exist.

        After an error, a disk that is full, say, what was saved there before is still whole. Raises ValueError for a
        module that could not be loaded again: with adapters, parametrizations, int8 weights, or weights elsewhere.
        """
        with staged_files() as stage:
            self.write_to(Path(directory), stage)

    def write_to(self, directory: Path, stage: Stage) -> None:
        """Write the files of `save_pretrained` to where `stage` says."""
        self._check_plain(directory)
        write_config(directory, self.config, stage)
        save_model(self, str(stage(directory / WEIGHTS)))

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: Any) -> "Pretrained":
        """Build the module that was saved in `directory`, on the CPU.

        `given`: the modules that were the user's own, by the names of the constructor's arguments.
        Raises FileNotFoundError where nothing was saved, ValueError for modules that are missing or not asked for, for
        damaged files, for weights of another kind or not finite, and for a config that does not fit its weights.
        """
        config = read_config(directory, cls.GIVEN, given)
        path, weights = Path(directory) / CONFIG, Path(directory) / WEIGHTS
        stored = read_kinds(weights)
        _check_depths(path, config, len(stored))
        _check_fits(path, weights, cls._blank(path, config), stored)
        module = built(cls, path, config)
        # Where another quantizer stood in, its own tensors are known only now.
        _check_fits(path, weights, (module.state_dict(), 0), stored)
        try:
            load_model(module, str(weights))
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold the weights of {path}: {error}") from error
        for name, tensor in module.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f"{weights} must hold finite values of {tensor.dtype}, got others in {name}")
        return module

    @classmethod
    def without_values(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A config of the same shapes that can be built on the meta device, where tensors have no values.

        Where another quantizer has to stand in, it is another dictionary, and names below "quantizer." are unknown.
        """
        return config

    def given(self) -> dict[str, Any]:
        """The modules for which `GIVEN` stands in the config."""
        return {}

    @classmethod
    def _blank(cls, path: Path, config: dict[str, Any]) -> tuple[dict[str, Tensor], int]:
        """The tensors that a module of this config saves, without memory, and how many values its others have."""
        plain = cls.without_values(config)
        with torch.device("meta"):
            module = built(cls, path, plain)
        saved = module.state_dict()
        if plain is not config:
            saved = {name: tensor for name, tensor in saved.items() if not name.startswith("quantizer.")}
        tensors = dict(module.named_buffers()) | dict(module.named_parameters())
        return saved, sum(tensor.numel() for name, tensor in tensors.items() if name not in saved)

    def _check_plain(self, directory: Path) -> None:
        """Refuse to save what `from_pretrained` could not read."""
        expected, _ = self._blank(directory / CONFIG, self.config | self.given())
        own = self.state_dict()
        kinds = {name: type(tensor) for name, tensor in own.items()}
        strange = [name for name, kind in kinds.items() if kind not in (Tensor, nn.Parameter) or own[name].is_meta]
        strange += [name for name, tensor in expected.items() if name not in own or own[name].shape != tensor.shape]
        strange += [name for name in own if name not in expected and not name.startswith("quantizer.")]
        if strange:
            raise ValueError(
                f"only a plain {type(self).__name__} with its weights in memory can be saved, {strange[0]} is not "
                "as in one: merge adapters and remove parametrizations, int8 weights and offloading first, or save the "
                "module before it is wrapped"
            )


def built(cls: type[nn.Module], path: Path, config: dict[str, Any]) -> nn.Module:
    """`cls(**config)`; ValueError, with the path of the config, where these are no arguments of the class."""
    try:
        return cls(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} holds no arguments of {cls.__name__}: {error}") from error


def _check_depths(path: Path, config: dict[str, Any], most: int) -> None:
    """Refuse more layers than there are tensors: each is built, on the meta device too."""
    for name, value in config.items():
        layers = sum(each for each in value if isinstance(each, int)) if isinstance(value, list) else value
        if "depth" in name and isinstance(layers, int) and layers > most:
            raise ValueError(f"{path} asks for {name}={value}, the weights beside it have {most} tensors")


def _check_fits(path: Path, weights: Path, expected: tuple[dict[str, Tensor], int], stored: dict[str, tuple]) -> None:
    """Refuse a config that asks for other tensors than the weights beside it, before memory is taken for it."""
    saved, unsaved = expected
    for name, tensor in saved.items():
        shape, kind = stored.get(name, (None, None))
        if shape != tuple(tensor.shape):
            raise ValueError(f"{path} asks for {name} of {tuple(tensor.shape)}, {weights} has {shape}")
        if kind != _kind(str(tensor.dtype).removeprefix("torch.")):
            raise ValueError(f"{weights} must hold {tensor.dtype} or its like in {name}, got {kind} values")
    if unsaved > MOST_UNSAVED:
        raise ValueError(f"{path} asks for a codebook of {unsaved} values beside the weights, over {MOST_UNSAVED}")


def _kind(dtype: str) -> str:
    """The kind of a dtype, as PyTorch ("bfloat16") or safetensors ("BF16") call it."""
    first = dtype.lower().removeprefix("b")[0]
    return {"f": "floating point", "o": "bool", "c": "complex"}.get(first, "integer")


@contextmanager
def staged_files() -> Iterator[Stage]:
    """Files that get their names when all of them are written; after an error none does.

    They have the mode of any new file, where safetensors alone would let no other user read them.
    """
    staged: dict[Path, tuple[Path, int]] = {}

    def stage(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        temporary.touch()
        staged[path] = temporary, temporary.stat().st_mode
        return temporary

    try:
        yield stage
        for path, (temporary, mode) in staged.items():
            if temporary.stat().st_mode != mode:  # not all file systems have modes
                temporary.chmod(mode)
            temporary.replace(path)
    finally:
        for temporary, _ in staged.values():
            temporary.unlink(missing_ok=True)


def write_config(directory: Path, config: dict[str, Any], stage: Stage) -> None:
    """Write the constructor's arguments as config.json."""
    stage(directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_config(directory: str | Path, marker: str, given: dict[str, Any]) -> dict[str, Any]:
    """Read config.json and replace each marker by what is given under its name; the names must be the same."""
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"expected a directory that save_pretrained wrote, found no {path}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, got {type(config).__name__}")
    wanted = {name for name, value in config.items() if value == marker}
    if wanted != set(given):
        raise ValueError(
            f"{path} needs {sorted(wanted) or 'nothing'} passed to from_pretrained, got {sorted(given) or 'nothing'}"
        )
    return {**config, **given}


def read_kinds(weights: Path) -> dict[str, tuple[tuple, str]]:
    """The shapes and kinds of the tensors in a safetensors file, by name; ValueError for a damaged one."""
    if not weights.is_file():
        raise FileNotFoundError(f"expected the weights that save_pretrained writes at {weights}, found no file")
    try:
        with safe_open(weights, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), _kind(part.get_dtype())) for name, part in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read: {error}") from error
