"""What all programs share: ranges of their numbers, files that cannot be written, broken models, one line for each."""

import argparse
import importlib
import json
import shutil
from pathlib import Path

import pytest

import share
from conftest import tiny_cvivit, tiny_maskgit
from data.flags import path, path_text
from data.targets import png
from data.word_vectors import WordVectors
from phenaki_pytorch import Phenaki

EXAMPLES = Path(share.__file__).parent
PROGRAMS = sorted(path.stem for path in EXAMPLES.glob("*.py"))
WITHOUT_NUMBERS = {"minimal", "report"}
LOADERS = ("load_model", "load_tokenizer")


class ParserFoundError(Exception):
    """Carries the parser of a program."""


def parser_of(program, monkeypatch):
    """The parser that the program's `main` builds."""

    def found(parser, *given):
        raise ParserFoundError(parser)

    with monkeypatch.context() as patch, pytest.raises(ParserFoundError) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_args", found)
        if program == "minimal":
            argparse.ArgumentParser().parse_args()
        importlib.import_module(program).main([])
    return caught.value.args[0]


def takes_numbers(action):
    """Whether what an argument's type makes of 1, or of 1000, is a number or several."""
    for text in ("1", "0.5", "1000"):
        try:
            value = action.type(text)
        except (argparse.ArgumentTypeError, ValueError, TypeError):
            continue
        return isinstance(value, int | float | tuple)
    return False


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_has_a_range(program, monkeypatch, capsys):
    main = importlib.import_module(program).main
    numbers = [action for action in parser_of(program, monkeypatch)._actions if action.type and takes_numbers(action)]
    assert bool(numbers) == (program not in WITHOUT_NUMBERS)
    for action in numbers:
        flag, count = action.option_strings[0], action.nargs if isinstance(action.nargs, int) else 1
        for text in ("nan", "inf", "1e400", "-1000000000", "many", ""):
            with pytest.raises(SystemExit) as caught:
                main([flag, *[text] * count])
            assert caught.value.code == 2, (flag, text)
            assert capsys.readouterr().err.splitlines()[-1].find(f"error: argument {flag}: ") > 0, (flag, text)


@pytest.mark.parametrize("program", sorted({*PROGRAMS} - {"minimal", "benchmark", "gpt_speed", "latte_speed"}))
def test_an_empty_name_of_a_file_or_folder_is_refused(program, monkeypatch, capsys):
    main = importlib.import_module(program).main
    paths = [action for action in parser_of(program, monkeypatch)._actions if action.type in (path, path_text, png)]
    assert paths
    for action in paths:
        if flag := action.option_strings[:1]:
            with pytest.raises(SystemExit) as caught:
                main([*flag, ""])
            assert caught.value.code == 2
            assert f"argument {flag[0]}: expected the name of a" in capsys.readouterr().err, flag


# files that cannot be written

WRITTEN = {
    "generate": (["a red circle", "--out", "OUT"], "OUT.mp4"),
    "generate, sheet": (["a red circle", "--out", "OUT"], "OUT.png"),
    "generate, samples": (["a red circle", "--count", "2", "--out", "OUT"], "OUT-2.gif"),
    "encode": (["clip.mp4", "--out", "OUT.safetensors"], "OUT.safetensors"),
    "encode, decode": (["ids.safetensors", "--out", "OUT.mp4"], "OUT.mp4"),
    "evaluate": (["--out", "OUT"], "OUT/results.json"),
    "share": (["run", "OUT"], "OUT/plan.json"),
    "share, model": (["run", "OUT"], "OUT/model/config.json"),
    "sampling_study": (["--csv", "OUT.csv"], "OUT.csv"),
    "sampling_study, plot": (["--csv", "study.csv", "--plot", "OUT.png"], "OUT.png"),
    "compare_tokenizers": (["run", "--sheet", "OUT.png"], "OUT.png"),
    "compare_tokenizers, curves": (["run", "--curves", "OUT.png"], "OUT.png"),
    "benchmark": (["--csv", "OUT.csv"], "OUT.csv"),
    "benchmark, cost": (["--cost", "OUT.png"], "OUT.png"),
}


def nothing_is_loaded(module, monkeypatch):
    """Let every model that is loaded, and every measurement of the benchmark, fail the test."""

    def load(*given, **named):
        pytest.fail("loaded before OUT was checked")

    for name in (*LOADERS, "measured"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, load)


@pytest.mark.parametrize("where", ["a folder has its name", "its folder is a file", "its folder cannot be made"])
@pytest.mark.parametrize("case", WRITTEN)
def test_a_file_that_cannot_be_written_ends_a_program_before_a_model_is_loaded(case, where, tmp_path, monkeypatch):
    (words, written), module = WRITTEN[case], importlib.import_module(case.split(",")[0])
    monkeypatch.chdir(tmp_path)
    nothing_is_loaded(module, monkeypatch)
    out = "out/file"
    if where == "a folder has its name":
        Path(written.replace("OUT", out)).mkdir(parents=True)
    elif where == "its folder is a file":
        Path("out").write_text("no folder")
    else:
        out = "/proc/nope/file"
    with pytest.raises(SystemExit) as caught:
        module.main([word.replace("OUT", out) for word in words])
    message = str(caught.value)
    assert message.startswith(f"{module.__name__}.py: ") and "\n" not in message, message
    assert ("nope" if "nope" in out else "out") in message, message


# models that are not what they should be


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training: a model, its plan, and the curves of its tokenizer."""
    run = tmp_path_factory.mktemp("whole") / "run"
    cvivit = tiny_cvivit()
    maskgit = tiny_maskgit(grid=cvivit.grid(9), dim_context=64)
    Phenaki(cvivit=cvivit, maskgit=maskgit, text_encoder=WordVectors()).save_pretrained(run / "model")
    (run / "plan.json").write_text(json.dumps({"arguments": {"sampling_steps": 1}}))
    (run / "tokenizer").mkdir()
    (run / "tokenizer" / "curves.csv").write_text("step,psnr_others\n1,20\n")
    return run


READING = {
    "generate": ["a red circle", "--model", "run/model"],
    "evaluate": ["--model", "run/model", "--only", "1"],
    "share": ["run", "shared"],
    "sampling_study": ["run/model", "--ways", "confidence"],
    "encode": ["clip.mp4", "--tokenizer", "run/model"],
    "stream": ["--model", "run/model"],
    "compare_tokenizers": ["run"],
}
TOKENIZER_ONLY = ("encode", "stream", "compare_tokenizers")
BROKEN = {
    "model/cvivit/model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "model/cvivit/config.json": lambda path: path.write_text("no JSON"),
    "model/config.json": lambda path: path.write_text("[1]"),
    "model/maskgit/config.json": lambda path: path.write_text('{"dim_context": 64}'),
    "model/maskgit/model.safetensors": lambda path: path.unlink(),
    "plan.json": lambda path: path.write_text('{"arguments": {"sampling_steps": "many"}}'),
}


@pytest.mark.parametrize(
    "program, file",
    [(program, file) for program in READING for file in BROKEN if "cvivit" in file or program not in TOKENIZER_ONLY],
)
def test_a_broken_model_ends_a_program_with_the_name_of_the_file(program, file, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    BROKEN[file](tmp_path / "run" / file)
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(program).main(READING[program])
    message = str(caught.value)
    assert message.startswith(f"{program}.py: ") and file in message and "\n" not in message, message
