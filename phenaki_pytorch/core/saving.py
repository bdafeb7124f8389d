"""Saving and loading: config.json (the constructor's arguments) and safetensors, one directory per module."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

CONFIG = "config.json"
WEIGHTS = "model.safetensors"


class Pretrained(nn.Module):
    """A module that can be saved to a directory and built again from it.

    Its constructor sets `self.config` to its arguments. `GIVEN` stands there for a module that is the user's own (a
    quantizer, say), which has to be passed to `from_pretrained` again.
    """

    GIVEN = "given by the user"
    config: dict[str, Any]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors into `directory`, which is created if it does not exist."""
        write_config(directory, self.config)
        save_model(self, str(Path(directory) / WEIGHTS))

    @classmethod
    def from_pretrained(cls, directory: str | Path, **given: Any) -> "Pretrained":
        """Build the module that was saved in `directory`, on the CPU.

        `given`: the modules that were the user's own, by the names of the constructor's arguments.
        Raises FileNotFoundError where nothing was saved, ValueError for modules that are missing or not asked for.
        """
        config = read_config(directory, cls.GIVEN, given)
        module = cls(**config)
        weights = Path(directory) / WEIGHTS
        if not weights.is_file():
            raise FileNotFoundError(f"expected the weights that save_pretrained writes at {weights}, found no file")
        load_model(module, str(weights))
        return module


def write_config(directory: str | Path, config: dict[str, Any]) -> None:
    """Write the constructor's arguments as config.json."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    (Path(directory) / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_config(directory: str | Path, marker: str, given: dict[str, Any]) -> dict[str, Any]:
    """Read config.json and replace each marker by what is given under its name; the names must be the same."""
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"expected a directory that save_pretrained wrote, found no {path}")
    config = json.loads(path.read_text())
    wanted = {name for name, value in config.items() if value == marker}
    if wanted != set(given):
        raise ValueError(
            f"{path} needs {sorted(wanted) or 'nothing'} passed to from_pretrained, got {sorted(given) or 'nothing'}"
        )
    return {**config, **given}
