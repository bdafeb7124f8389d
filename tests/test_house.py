"""The house: imports point one way, what is public says what it is for, files stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "phenaki_pytorch"

# Each may import those after it. `checks` and `saving` are below all: any module may refuse and be saved.
ORDER = (
    *(
        "__init__",
        "presets",
        "phenaki",
        "windows",
        "critic",
        "maskgit",
        "guidance",
        "token_transformer",
        "cross_entropy",
        "sampling",
        "cvivit",
        "streaming",
        "vivit",
        "losses",
        "discriminator",
    ),
    *("quantize", "texts", "t5", "attention", "attention_gradient", "position", "precision", "checks", "saving"),
)

FILES = sorted(PACKAGE.glob("*.py"))
LONGEST = 350


def imported(tree):
    """The modules of this package that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "phenaki_pytorch":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("phenaki_pytorch."):
                yield node.module.split(".")[1]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("phenaki_pytorch."))


def public(tree):
    """Public functions, classes and their public methods, but for `forward` where the class says it all."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith(("_", "forward")):
                    yield method


def test_every_file_has_its_place_in_the_order():
    assert {path.stem for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_point_down(path):
    below = ORDER[ORDER.index(path.stem) + 1 :]
    upwards = [name for name in imported(ast.parse(path.read_text())) if name not in below]
    assert upwards == []


def test_the_order_is_really_looked_at():
    tree = ast.parse("from phenaki_pytorch.maskgit import MaskGit\ndef late():\n    import phenaki_pytorch.t5")
    assert list(imported(tree)) == ["maskgit", "t5"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_public_says_what_it_is_for(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the file"
    assert [node.name for node in public(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("folder", ["phenaki_pytorch", "tests", "examples"])
def test_files_stay_short(folder):
    lengths = {
        f"{folder}/{path.name}": len(path.read_text().splitlines()) for path in sorted((ROOT / folder).glob("*.py"))
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_the_library_imports_nothing_that_only_examples_may():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"accelerate", "av", "PIL", "matplotlib", "tqdm", "torchmetrics"}, path.name
