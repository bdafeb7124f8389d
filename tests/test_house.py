"""The house: each file imports from its own folder and from floors below, and says what it is for."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the top. A file may import files of its own folder and of folders on lower floors, but no other folder on its
# own floor.
LIBRARY = ROOT / "phenaki_pytorch"
LIBRARY_FLOORS = (
    (".",),
    ("tokenizers", "priors", "diffusion", "conditions"),
    ("layers",),
    ("core",),
)
EXAMPLES = ROOT / "examples"
EXAMPLES_FLOORS = (
    (".",),
    ("training", "benchmarks"),
    ("evaluation",),
    ("data",),
)

LIBRARY_FILES = sorted(LIBRARY.rglob("*.py"))
EXAMPLES_FILES = sorted(EXAMPLES.rglob("*.py"))
LONGEST_FILE = 350
LONGEST_FUNCTION = 50
MOST_ARGUMENTS = 12


def name(path):
    return str(path.relative_to(ROOT))


def imported(tree):
    """The modules, as dotted names, that a file imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def folders_of(modules, root, package):
    """The folders below `root` that own modules belong to, "." for files of `root` itself."""
    for module in modules:
        parts = module.split(".")
        if package:
            if parts[0] != package:
                continue
            parts = parts[1:]
        if not parts or (root / f"{parts[0]}.py").is_file():
            yield "."
        elif (root / parts[0] / "__init__.py").is_file():
            yield parts[0]


def allowed(folder, floors):
    """The folder itself and those of all lower floors."""
    [floor] = [number for number, folders in enumerate(floors) if folder in folders]
    return {folder, *(other for folders in floors[floor + 1 :] for other in folders)}


def public(tree):
    """Public functions, classes and public methods, except `forward`, which the class documents."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith(("_", "forward")):
                    yield method


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def body_lines(function):
    """The lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_every_folder_stands_on_a_floor():
    for root, floors in ((LIBRARY, LIBRARY_FLOORS), (EXAMPLES, EXAMPLES_FLOORS)):
        folders = {path.parent.name for path in root.glob("*/*.py")}
        assert folders <= {folder for folders in floors for folder in folders}


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=name)
def test_the_library_imports_from_its_folder_and_from_below(path):
    folder = "." if path.parent == LIBRARY else path.parent.name
    used = set(folders_of(imported(ast.parse(path.read_text())), LIBRARY, "phenaki_pytorch"))
    assert used <= allowed(folder, LIBRARY_FLOORS)


@pytest.mark.parametrize("path", EXAMPLES_FILES, ids=name)
def test_examples_import_from_their_folder_and_from_below_and_never_a_program(path):
    modules = list(imported(ast.parse(path.read_text())))
    used = set(folders_of(modules, EXAMPLES, None))
    folder = "." if path.parent == EXAMPLES else path.parent.name
    assert used <= allowed(folder, EXAMPLES_FLOORS) - {"."}


def test_the_rule_sees_what_breaks_it():
    code = "from phenaki_pytorch.priors.maskgit import MaskGit\ndef late():\n    import phenaki_pytorch.phenaki"
    tree = ast.parse(code)
    used = set(folders_of(imported(tree), LIBRARY, "phenaki_pytorch"))
    assert used == {"priors", "."}
    assert not used <= allowed("tokenizers", LIBRARY_FLOORS)
    assert allowed("layers", LIBRARY_FLOORS) == {"layers", "core"}
    assert set(folders_of(["generate", "data.media", "torch"], EXAMPLES, None)) == {".", "data"}


@pytest.mark.parametrize("path", LIBRARY_FILES, ids=name)
def test_files_and_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert [node.name for node in public(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("folder", ["phenaki_pytorch", "tests", "examples"])
def test_files_are_short(folder):
    lengths = {name(path): len(path.read_text().splitlines()) for path in sorted((ROOT / folder).rglob("*.py"))}
    assert {path: length for path, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short():
    lengths = {
        f"{name(path)}: {function.name}": body_lines(function)
        for path in LIBRARY_FILES
        for function in functions(ast.parse(path.read_text()))
    }
    ordered = sorted(lengths.values())
    assert ordered[len(ordered) // 2] <= 6
    assert ordered[int(0.9 * len(ordered))] <= 20
    assert {function: length for function, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_only_constructors_have_many_arguments():
    for path in LIBRARY_FILES:
        for function in functions(ast.parse(path.read_text())):
            arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
            assert len(arguments) <= MOST_ARGUMENTS or function.name == "__init__", f"{name(path)}: {function.name}"


def test_the_library_imports_nothing_that_only_examples_may():
    for path in LIBRARY_FILES:
        roots = {module.split(".")[0] for module in imported(ast.parse(path.read_text()))}
        assert not roots & {"accelerate", "av", "PIL", "matplotlib", "tqdm", "torchmetrics"}, name(path)
