"""The README's own snippets run as they stand, and its commands, and the examples', name what exists."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

import phenaki_pytorch.t5
from media import write_mp4

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"^```(?:bash|console|sh)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture(scope="module")
def small_t5(tmp_path_factory):
    """A T5 as wide as the one that the README names, with weights that have learned nothing."""
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

    directory = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(vocab_size=384, d_model=768, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(directory)
    ByT5Tokenizer().save_pretrained(directory)
    return directory


def title(snippet):
    return re.findall(r"^#+ (.*)$", README[: README.index(snippet)], re.MULTILINE)[-1]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=title)
def test_every_snippet_runs_by_itself(snippet, small_t5, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(phenaki_pytorch.t5, "_find_source", lambda name: asked.append(name) or str(small_t5))
    monkeypatch.chdir(tmp_path)
    if "clip.mp4" in snippet:
        write_mp4("clip.mp4", torch.rand(3, 9, 64, 64), fps=8)
    exec(compile(snippet, f"README.md: {title(snippet)}", "exec"), {"__name__": "__main__"})
    assert set(asked) <= {"google/t5-v1_1-base"}


def test_every_public_class_has_a_snippet():
    text = "\n".join(SNIPPETS)
    for name in phenaki_pytorch.__all__:
        assert re.search(rf"import .*\b{name}\b", text), name
    assert len(SNIPPETS) >= 12


def test_the_presets_have_the_parameters_of_the_table():
    from phenaki_pytorch import presets

    rows = re.findall(r"^\| `(\w+)` .*\| ([\d,]+) \|$", README, re.MULTILINE)
    assert len(rows) == 7
    for name, count in rows:
        with torch.device("meta"):
            module = getattr(presets, name)()
        assert sum(parameter.numel() for parameter in module.parameters()) == int(count.replace(",", "")), name


def flags(program, capsys):
    """The flags that a program's --help lists, whatever its description names."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(sys, "argv", [str(program), "--help"])
        runpy.run_path(str(program), run_name="__main__")
    assert caught.value.code == 0
    listed = re.findall(r"^  (-.*)$", capsys.readouterr().out, re.MULTILINE)
    return set(re.findall(r"--[a-z][a-z-]*", "\n".join(listed)))


def test_the_commands_name_files_and_flags_that_exist(capsys):
    known = {}
    prose = re.sub(r"(?ms)^```.*?^```", "", README)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").glob("*.py")))
    in_docstrings = re.findall(r"^    (python examples/.*)$", sources, re.MULTILINE)
    assert len(in_docstrings) > 10
    for line in (*COMMANDS, *re.findall(r"`(python examples/[^`\n]+)`", prose), *in_docstrings):
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            programs = [word for word in words if word.endswith(".py")]
            for program in programs:
                assert (ROOT / program).is_file(), line
                known[program] = known.get(program) or flags(ROOT / program, capsys)
                assert {word for word in words if word.startswith("--")} <= known[program], line
            assert programs or words[0] in ("pip", "pytest"), line
    assert {"examples/train.py", "examples/generate.py"} <= set(known)
    in_prose = set(re.findall(r"`(?:[^`\n]* )?(--[a-z][a-z-]*)", prose))
    assert in_prose - {"--index-url"} <= {flag for some in known.values() for flag in some} and in_prose


def test_links_lead_somewhere():
    headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", README, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or target[1:] in headings or (ROOT / target).is_file(), target
    assert README.count("## Results on moving shapes\n") == 1
