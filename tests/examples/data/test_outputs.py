"""Files appear whole or not at all, paths are checked early, and a folder belongs to one run."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.outputs import alone, check_writable, together, written


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with written(path) as temporary:
        temporary.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), written(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one" and list(path.parent.iterdir()) == [path]


def test_paths_that_cannot_be_written_are_refused_and_nothing_is_left(tmp_path):
    check_writable(tmp_path / "new" / "a.txt")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.txt"):
        with pytest.raises(OSError, match=str(tmp_path)):
            check_writable(path)
    with pytest.raises(OSError, match="too long"):
        check_writable(tmp_path / ("n" * 300))


HOLD = "import sys; from data.outputs import alone\nwith alone(sys.argv[1]): print(1, flush=True); sys.stdin.read()"


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path):
    other = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(other, **pipes, env={"PYTHONPATH": ":".join(sys.path)}) as process:
        assert process.stdout.readline() == "1\n"
        with pytest.raises(ValueError, match=r"another run is writing to .*out"), alone(tmp_path / "out"):
            pass
        process.kill()
    with alone(tmp_path / "out"):
        assert all(path.name.startswith(".") for path in (tmp_path / "out").iterdir())
    with alone(tmp_path / "out"):
        pass


def test_files_appear_together_or_not_at_all(tmp_path):
    paths = [tmp_path / name for name in ("a.txt", "b.txt")]
    with together():
        for path in paths:
            with written(path) as temporary:
                temporary.write_text("one")
            assert not path.exists()
    assert [path.read_text() for path in paths] == ["one", "one"]
    with pytest.raises(RuntimeError), together():
        with written(paths[0]) as temporary:
            temporary.write_text("two")
        with written(paths[1]) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert [path.read_text() for path in paths] == ["one", "one"] and sorted(tmp_path.iterdir()) == paths
    with written(paths[0]) as temporary:
        temporary.write_text("three")
    assert paths[0].read_text() == "three"


def test_errors_of_the_system_name_the_file_and_not_its_temporary_name(tmp_path):
    for path in (tmp_path / "a.txt", Path("a.txt")):
        with pytest.raises(FileNotFoundError) as missing, written(path) as temporary:
            temporary.read_text()
        assert str(missing.value) == f"[Errno 2] No such file or directory: '{path}'"
    with pytest.raises(FileNotFoundError, match="other"), written(tmp_path / "a.txt"):
        (tmp_path / "other").read_text()
    with pytest.raises(OSError, match="too long") as long:
        check_writable(tmp_path / ("n" * 250))
    assert ".tmp" not in str(long.value)
