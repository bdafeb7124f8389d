"""The wheel holds the library and nothing else, and imports without the extras and without a network."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "phenaki_pytorch").rglob("*.py"))
MODULES = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in FILES]
EXTRAS = ("accelerate", "av", "matplotlib", "PIL", "pytest", "torchmetrics")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tree, so that no build/ is left in the tree itself."""
    pytest.importorskip("setuptools")
    copy = tmp_path_factory.mktemp("tree")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")
    shutil.copytree(ROOT, copy, ignore=ignored, dirs_exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        ".",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "made",
    ]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        command = [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", "made"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = (copy / "made").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


IMPORTS = f"""
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {EXTRAS}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
asked = []
sys.addaudithook(lambda event, arguments: asked.append(event) if event.startswith("socket.") else None)
import phenaki_pytorch
assert "transformers" not in sys.modules
assert not {{"socket.connect", "socket.getaddrinfo", "socket.sendto"}} & set(asked), asked
phenaki_pytorch.T5TextEncoder("google/t5-v1_1-base")
assert "transformers" not in sys.modules and "socket.connect" not in asked
files = [importlib.import_module(name).__file__ for name in {MODULES}]
print(json.dumps({{"names": phenaki_pytorch.__all__, "files": files}}))
"""


@pytest.fixture(scope="module")
def imported(unpacked):
    """The public names and the files of all modules, in a new interpreter without extras and outside the tree."""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}  # the wheel's content comes first
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], cwd=unpacked.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        stated = archive.read(metadata).decode()
    ours = [name for name in names if not name.startswith(metadata.split("/")[0])]
    assert sorted(ours) == sorted([*FILES, "phenaki_pytorch/py.typed"])
    assert any(name.endswith("LICENSE") for name in names)
    assert "Name: phenaki-pytorch" in stated and "\n# phenaki-pytorch" in stated
    assert {f"Provides-Extra: {extra}" in stated for extra in ("examples", "test")} == {True}


def test_every_module_imports_without_the_extras(unpacked, imported):
    files = imported["files"]
    assert len(files) == len(MODULES) and all(Path(file).is_relative_to(unpacked) for file in files)


def test_importing_asks_no_network_and_leaves_transformers_alone(imported):
    names = ["GPT", "LAION_WEIGHTS", "VQGAN", "VQVAE", "CViViT", "DiffusionOptions", "Discriminator", "FrameEncoder"]
    names += ["FrameMapEncoder", "GuidedTeacher", "ImageVAE", "Latte", "LatteTransformer", "LossWeights", "MaskGit"]
    names += ["PatchDiscriminator", "Phenaki", "RasterOptions"]
    names += ["SamplingOptions", "SelfCritic", "T5TextEncoder", "TokenCritic", "VideoGPT", "checkpoint_activations"]
    assert imported["names"] == names
