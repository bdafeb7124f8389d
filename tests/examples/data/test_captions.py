"""Captions: every row and every text of a folder is used, or named."""

import os
import unicodedata
import warnings
from pathlib import Path

import pytest

from data.captions import LINES, Captions, files_below, key_of, read_captions, shortened


def captions_of(folder, names, table=None):
    """The captions of files that are made here, by name, and the texts of the warnings."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if table is not None:
        (folder / "captions.csv").write_text(table, encoding="utf-8")
    found, _ = files_below(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        captions = Captions(folder, found)
    media = [path for path in found if path.suffix == ".mp4"]
    given = {path.name: captions.caption_of(path) for path in media}
    return given, [str(each.message) for each in caught], captions.not_used(found, media)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_of_another_length_are_left_out_and_named_with_their_lines(tmp_path, end):
    rows = ["file,caption", 'a.mp4,"one,', 'two"', "", "b.mp4,a fox, running", "c.mp4", ",nothing", "d.mp4,four"]
    given, [warning], unused = captions_of(tmp_path, ["a.mp4", "b.mp4", "c.mp4", "d.mp4"], end.join(rows))
    assert given == {"a.mp4": f"one,{end}two", "b.mp4": "", "c.mp4": "", "d.mp4": "four"} and not unused
    assert "3 rows" in warning and str(tmp_path / "captions.csv") in warning
    for line in ("line 5: 3 columns instead of 2", "line 6: 1 columns instead of 2", "line 7: no file"):
        assert line in warning


@pytest.mark.parametrize("number", [2, 3, 4])
def test_an_open_quote_is_refused_with_its_line_wherever_it_is(tmp_path, number):
    rows = ["file,caption", 'a.mp4,"one"', "b.mp4,two", 'c.mp4,"three"']
    rows[number - 1] = 'x.mp4,"never closed'
    with pytest.raises(ValueError, match=rf"captions\.csv, line {number}: .* quote that begins here"):
        captions_of(tmp_path, ["a.mp4"], "\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", "columns file, caption, each once, got \\[\\]"),
        ("path,text\na,b\n", "columns file, caption, each once, got \\['path', 'text'\\]"),
        ("file,caption,caption\na,b,c\n", "each once, got"),
        ("file,caption\na,b\n./x/../a,c\n", "line 3: must name a file once, got './x/../a' again"),
        ('file,caption\na,"b" c\n', "line 2: "),
    ],
)
def test_wrong_tables_are_refused(tmp_path, table, words):
    (tmp_path / "captions.csv").write_text(table)
    with pytest.raises(ValueError, match=rf"captions\.csv.* {words}"):
        read_captions(tmp_path)


def test_other_encodings_are_refused_in_one_line(tmp_path):
    (tmp_path / "captions.csv").write_bytes("file,caption\na,ü\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^.*captions\.csv must be UTF-8: [^\n]*$"):
        read_captions(tmp_path)


@pytest.mark.parametrize("table", ["NFC", "NFD"])
@pytest.mark.parametrize("disk", ["NFC", "NFD"])
def test_names_match_however_unicode_writes_them(tmp_path, disk, table):
    name = "sübe/café.mp4"
    written = unicodedata.normalize(table, f"{name},a red fox")
    given, caught, unused = captions_of(tmp_path, [unicodedata.normalize(disk, name)], f"file,caption\n{written}\n")
    assert list(given.values()) == ["a red fox"] and not caught and not unused


@pytest.mark.parametrize("text", ["NFC", "NFD"])
@pytest.mark.parametrize("suffix", [".txt", ".TXT"])
def test_texts_match_however_their_names_are_written(tmp_path, text, suffix):
    (tmp_path / unicodedata.normalize(text, f"café{suffix}")).write_text(" beside\n")
    given, _, unused = captions_of(tmp_path, [unicodedata.normalize("NFC", "café.mp4")])
    assert list(given.values()) == ["beside"] and not unused


def test_absolute_relative_and_roundabout_paths_name_the_same_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for row in ("s/a.mp4", "./s/a.mp4", "s/../s/a.mp4", f"{tmp_path}/data/s/a.mp4", "../data/s/a.mp4"):
        given, caught, unused = captions_of(Path("data"), ["s/a.mp4"], f"file,caption\n{row},a fox\n")
        assert given == {"a.mp4": "a fox"} and not caught and not unused, row


def test_two_links_to_one_file_have_captions_of_their_own(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "store.mp4").touch()
    for name in "ab":
        (tmp_path / "data" / f"{name}.mp4").symlink_to(tmp_path / "store.mp4")
    given, _, unused = captions_of(tmp_path / "data", [], "file,caption\na.mp4,one\nb.mp4,two\n")
    assert given == {"a.mp4": "one", "b.mp4": "two"} and not unused


def test_rows_and_texts_that_belong_to_no_file_are_named(tmp_path):
    names = ["a.mp4", "b.mp4", ".hidden.mp4", "folder/c.mp4", "a.txt", "b.txt", "B.TXT", "lonely.txt"]
    rows = ["gone.mp4,1", ".hidden.mp4,2", "folder,3", "../outside.mp4,4", "a.mp4,5"]
    (tmp_path / "outside.mp4").touch()
    _, _, unused = captions_of(tmp_path / "data", names, "\n".join(["file,caption", *rows]))
    reasons = {os.path.relpath(path, tmp_path / "data"): why for path, why in unused.items()}
    assert set(reasons) == {"gone.mp4", ".hidden.mp4", "folder", "../outside.mp4", "a.txt", "B.TXT", "lonely.txt"}
    assert "missing" in reasons["gone.mp4"] and "hidden" in reasons[".hidden.mp4"]
    assert all("captions.csv" in why for why in reasons.values())


def test_long_lists_are_shortened_and_say_how_many_are_left():
    for count in (0, 1, LINES, LINES + 1, 1000):
        lines = shortened([str(number) for number in range(count)]).split("\n")[1:]
        assert len(lines) == min(count, LINES + 1)
        if count > LINES:
            assert lines[-1].strip() == f"and {count - LINES} more"


def test_linked_folders_are_read_once_and_loops_end(tmp_path):
    data = tmp_path / "data"
    for name in ("data/z/a.mp4", "elsewhere/b.mp4", "elsewhere/deep/c.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (data / "loop").symlink_to(data)
    (data / "z" / "up").symlink_to("..")
    (data / "first").symlink_to(tmp_path / "elsewhere")
    (data / "second").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(data)
    (data / "a_link_to_z").symlink_to(data / "z")
    found = [path.relative_to(data).as_posix() for path in files_below(data)[0]]
    assert found == ["first/b.mp4", "first/deep/c.mp4", "z/a.mp4"]


def test_hidden_files_and_the_results_are_no_data(tmp_path):
    names = ["a", ".b", ".git/c", "runs/d", "runs/deep/e", "other/runs/f"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, leave_out=tmp_path / "runs")[0]]
    assert found == ["a", "other/runs/f"]
    inside, _ = files_below(tmp_path / "runs" / "deep", leave_out=tmp_path / "runs")  # data that a run was given inside
    assert [path.name for path in inside] == ["e"]
    with pytest.raises(ValueError, match=r"folders of their own, got .* for both"):
        files_below(tmp_path, leave_out=tmp_path / "other" / "..")


def test_a_link_to_nothing_is_found(tmp_path):
    (tmp_path / "a.mp4").symlink_to("gone.mp4")
    assert files_below(tmp_path) == ([tmp_path / "a.mp4"], {})
    assert key_of(tmp_path / "a.mp4") == str(tmp_path.resolve() / "a.mp4")


def test_captions_of_any_length_are_read(tmp_path):
    given, _, _ = captions_of(tmp_path, ["a.mp4"], "file,caption\na.mp4," + "w " * 200_000 + "\n")
    assert given == {"a.mp4": ("w " * 200_000).strip()}


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_table_that_is_no_file_is_refused(tmp_path, kind):
    table = tmp_path / "captions.csv"
    {"link": lambda: table.symlink_to("gone.csv"), "pipe": lambda: os.mkfifo(table), "folder": table.mkdir}[kind]()
    with pytest.raises(ValueError, match=r"captions\.csv must be a file, got a folder, a pipe, or a link to nothing"):
        read_captions(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "latin-1"])
def test_a_text_that_cannot_be_read_is_named_and_gives_no_caption(tmp_path, kind):
    (tmp_path / "a.mp4").touch()
    text = tmp_path / "a.txt"
    make = {
        "link": lambda: text.symlink_to("gone.txt"),
        "pipe": lambda: os.mkfifo(text),
        "folder": text.mkdir,
        "latin-1": lambda: text.write_bytes("caf\u00e9".encode("latin-1")),
    }
    make[kind]()
    found, _ = files_below(tmp_path)
    captions = Captions(tmp_path, found)
    assert captions.caption_of(tmp_path / "a.mp4") == ""
    expected = {"latin-1": "must be UTF-8: ", "folder": None}.get(kind, "no file, or a link to none")
    assert list(captions.unreadable) == ([] if expected is None else [text])
    assert all(why.startswith(expected) for why in captions.unreadable.values())


@pytest.mark.parametrize("mark", ["plan.json", "train.json"])
def test_results_of_earlier_trainings_are_left_out_and_named(tmp_path, mark):
    for name in ("a.mp4", "runs/one/x.mp4", f"runs/one/{mark}", "runs/one/deep/y.mp4", "runs/z.mp4", mark):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, left_out = files_below(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in found} == {"a.mp4", "runs/z.mp4", mark}
    assert left_out == {tmp_path / "runs" / "one": f"the results of a training, as there is a {mark}"}
    assert files_below(tmp_path, leave_out=tmp_path / "runs" / "one") == (found, {})
