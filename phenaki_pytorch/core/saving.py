"""Saving and loading: config.json (the constructor's arguments) and safetensors, in one directory per module.

A saved model is replaced only when the new one is written whole. A config that does not fit its weights is refused
before memory is taken for it.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from phenaki_pytorch.core.modules import HookedModule

CONFIG = "config.json"
WEIGHTS = "model.safetensors"

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

        After an error, a disk that is full, say, what was saved there before is still whole.
        """
        with staged_files() as stage:
            self.write_to(Path(directory), stage)

    def write_to(self, directory: Path, stage: Stage) -> None:
        """Write the files of `save_pretrained` to where `stage` says."""
        write_config(directory, self.config, stage)
        save_model(self, str(stage(directory / WEIGHTS)))

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: Any) -> "Pretrained":
        """Build the module that was saved in `directory`, on the CPU.

        `given`: the modules that were the user's own, by the names of the constructor's arguments.
        Raises FileNotFoundError where nothing was saved, ValueError for modules that are missing or not asked for, and
        for damaged files and a config that does not fit its weights.
        """
        config = read_config(directory, cls.GIVEN, given)
        path, weights = Path(directory) / CONFIG, Path(directory) / WEIGHTS
        shapes = read_shapes(weights)
        _check_depths(path, config, len(shapes))
        with torch.device("meta"):  # takes no memory, whatever the config says
            expected = built(cls, path, cls.without_values(config)).state_dict()
        for name, tensor in expected.items():
            if not name.startswith("quantizer.") and shapes.get(name) != tuple(tensor.shape):
                raise ValueError(f"{path} asks for {name} of {tuple(tensor.shape)}, {weights} has {shapes.get(name)}")
        module = built(cls, path, config)
        try:
            load_model(module, str(weights))
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold the weights of {path}: {error}") from error
        return module

    @classmethod
    def without_values(cls, config: dict[str, Any]) -> dict[str, Any]:
        """A config of the same shapes that can be built on the meta device, where tensors have no values."""
        return config


def built(cls: type[nn.Module], path: Path, config: dict[str, Any]) -> nn.Module:
    """`cls(**config)`; ValueError, with the path of the config, where these are no arguments of the class."""
    try:
        return cls(**config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} holds no arguments of {cls.__name__}: {error}") from error


def _check_depths(path: Path, config: dict[str, Any], most: int) -> None:
    """Refuse more layers than there are tensors: each is built, on the meta device too."""
    for name, value in config.items():
        if "depth" in name and isinstance(value, int) and value > most:
            raise ValueError(f"{path} asks for {name}={value}, the weights beside it have {most} tensors")


@contextmanager
def staged_files() -> Iterator[Stage]:
    """Files that get their names when all of them are written; after an error none does."""
    staged: dict[Path, Path] = {}

    def stage(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        staged[path] = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        return staged[path]

    try:
        yield stage
        for path, temporary in staged.items():
            temporary.replace(path)
    finally:
        for temporary in staged.values():
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
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold an object, got {type(config).__name__}")
    wanted = {name for name, value in config.items() if value == marker}
    if wanted != set(given):
        raise ValueError(
            f"{path} needs {sorted(wanted) or 'nothing'} passed to from_pretrained, got {sorted(given) or 'nothing'}"
        )
    return {**config, **given}


def read_shapes(weights: Path) -> dict[str, tuple]:
    """The names and shapes of the tensors in a safetensors file; ValueError for a damaged one."""
    if not weights.is_file():
        raise FileNotFoundError(f"expected the weights that save_pretrained writes at {weights}, found no file")
    try:
        with safe_open(weights, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{weights} cannot be read: {error}") from error
