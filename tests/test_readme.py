"""The documents: README's snippets run, its figures are those measured, and commands and links name what exists."""

import json
import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

import phenaki_pytorch.conditions.t5
import report
from phenaki_pytorch import presets

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DOCUMENTS = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *(EXAMPLES / name / "README.md" for name in ("", "results", "pretrained")))
}
README = DOCUMENTS[ROOT / "README.md"]
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)

RESULTS = {  # rows of the README's table -> measure and figure in results.json
    'text to video, "moves": colour, shape and motion right': ("1 text to video", "all, moves"),
    'text to video, "turns"': ("1 text to video", "all, turns"),
    "moving objects of a colour that only images show": ("3 white objects", "all"),
    "an image set in motion: motion right": ("5 animation", "motion"),
}


# snippets


@pytest.fixture
def small_t5(tmp_path):
    """The directory of an untrained T5 with embeddings as wide as those of the README's."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    config = T5Config(vocab_size=384, d_model=768, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    ByT5Tokenizer().save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def test_the_snippets_run_one_after_another(small_t5, tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(phenaki_pytorch.conditions.t5, "_find_source", lambda name: names.append(name) or str(small_t5))
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for snippet in SNIPPETS:
        first_line = README[: README.index(snippet)].count("\n")
        exec(compile("\n" * first_line + snippet, "README.md", "exec"), namespace)  # errors name the README's line
    assert namespace["video"].shape == (2, 3, 9, 32, 32)
    assert namespace["more"].shape == (1, 3, 12, 32, 32)
    assert [scene.shape[2] for scene in namespace["scenes"]] == [9, 4]
    assert torch.equal(
        namespace["tokenizer"].encode(namespace["videos"]), namespace["cvivit"].encode(namespace["videos"])
    )
    assert set(names) == {"google/t5-v1_1-base"}


def test_every_public_name_is_imported_by_a_snippet():
    text = "\n".join(SNIPPETS)
    missing = [name for name in phenaki_pytorch.__all__ if not re.search(rf"import .*\b{name}\b", text)]
    assert not missing


# length and figures


def test_the_readme_has_at_most_250_lines():
    assert len(README.splitlines()) <= 250


def test_the_results_of_the_readme_are_the_measured_ones():
    measures = json.loads((EXAMPLES / "pretrained" / "results.json").read_text())["measures"]
    table = README[README.index("| measure | result | of |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(RESULTS) <= 8
    for row, (label, (measure, name)) in zip(table, RESULTS.items()):
        value = measures[measure][name]
        assert row == f"| {label} | {report.figure(value)} | {value['of']} |"


def test_the_presets_have_the_parameters_of_their_table():
    rows = re.findall(r"^\| `(\w+)` .*\| ([\d,]+) \|$", presets.__doc__, re.MULTILINE)
    assert len(rows) == len(set(rows)) > 10
    for name, count in rows:
        with torch.device("meta"):
            module = getattr(presets, name)()
        assert sum(parameter.numel() for parameter in module.parameters()) == int(count.replace(",", "")), name


# commands


def prose_of(text):
    """A document without its code blocks."""
    return re.sub(r"(?ms)^```.*?^```", "", text)


def commands_of_block(block):
    """The commands of a shell block; `name="..."` sets a variable, which later lines have as `$name`."""
    variables = {}
    for line in filter(None, map(str.strip, block.splitlines())):
        line = re.sub(r"\$(\w+)", lambda match: variables[match[1]], line)
        if assignment := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[assignment[1]] = assignment[2]
        else:
            yield from line.split("&&")


def all_commands():
    """The commands of the documents' shell blocks and text, and of the programs' docstrings."""
    for text in DOCUMENTS.values():
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            yield from commands_of_block(block)
        yield from re.findall(r"`((?:python|accelerate launch) examples/[^`\n]+)`", prose_of(text))
    for path in sorted(EXAMPLES.glob("*.py")):
        docstring = path.read_text(encoding="utf-8").split('"""')[1]
        yield from re.findall(r"^    ((?:python|accelerate launch) examples/.*)$", docstring, re.MULTILINE)


@pytest.fixture(scope="module")
def flags():
    """The flags in the --help of every program that a command gives flags to, by the program's path."""
    programs = {program for command in all_commands() for program in re.findall(r"(examples/\w+\.py) .*--", command)}
    return {program: flags_of(ROOT / program) for program in sorted(programs) if (ROOT / program).is_file()}


def flags_of(program):
    output = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", [str(program), "--help"])
        runpy.run_path(str(program), run_name="__main__")
    assert caught.value.code == 0, program
    options = re.findall(r"^  (-.*)$", output.getvalue(), re.MULTILINE)
    return set(re.findall(r"--[a-z][a-z0-9-]*", "\n".join(options)))


def test_commands_name_programs_and_flags_that_exist(flags):
    unknown = set()
    for command in all_commands():
        words = shlex.split(command, comments=True)
        assert not words or words[0] in ("pip", "pytest", "python", "accelerate"), command
        for program in (word for word in words if word.endswith(".py")):
            named = {word for word in words if word.startswith("--")}
            unknown |= {f"{program} {flag}" for flag in named - flags.get(program, set())}
            unknown |= set() if (ROOT / program).is_file() else {program}
    assert not unknown


def test_flags_in_the_text_exist(flags):
    known = {flag for some in flags.values() for flag in some} | {"--index-url"}  # pip's
    for path, text in DOCUMENTS.items():
        named = set(re.findall(r"`(?:[^`\n]* )?(--[a-z][a-z0-9-]*)", prose_of(text)))
        assert named <= known, (path, named - known)


def test_every_program_is_listed():
    listed = re.findall(r"^\| \[(\w+\.py)\]", DOCUMENTS[EXAMPLES / "README.md"], re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))


# links


def anchors_of(text):
    """The anchors that GitHub gives to a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose_of(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[path]):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            linked = (path.parent / file).resolve() if file else path
            assert linked.is_file(), target
            assert not anchor or anchor in anchors_of(linked.read_text(encoding="utf-8")), target
