"""compare_tokenizers.py: a column for each training, clips of any aspect ratio, a sheet and curves."""

import pytest
import torch
from PIL import Image

import compare_tokenizers
from compare_tokenizers import below_best, clips_of, curves_of, height_and_width
from conftest import tiny_cvivit, tiny_vqvae


def run_of(folder, curve, tokenizer=None):
    """What a training of a tokenizer writes, without most of its curves."""
    (tokenizer or tiny_cvivit()).save_pretrained(folder / "model" / ("tokenizer" if tokenizer else "cvivit"))
    (folder / "tokenizer").mkdir()
    rows = [f"{200 * (i + 1)},{value}" for i, value in enumerate(curve)]
    (folder / "tokenizer" / "curves.csv").write_text("\n".join(["step,psnr_others", *rows, ""]))
    return folder


def test_other_aspect_ratios_are_the_centre_of_a_square():
    options = {"frames": 5, "count": 2, "seed": 0}
    square, wide, tall = (clips_of(size, **options)[0] for size in ((32, 32), (16, 32), (32, 16)))
    assert torch.equal(wide, square[..., 8:24, :]) and torch.equal(tall, square[..., 8:24])
    assert height_and_width("32") == (32, 32) and height_and_width("16x32") == (16, 32)


def test_below_best_is_the_best_psnr_minus_the_last(tmp_path):
    assert below_best(run_of(tmp_path / "fell", [20.0, 26.0, 24.5])) == pytest.approx(1.5)
    assert below_best(run_of(tmp_path / "rose", [20.0, 26.0])) == 0


def test_the_program_writes_a_column_for_each_training_a_sheet_and_curves(tmp_path, capsys):
    one, two = run_of(tmp_path / "one", [20.0]), run_of(tmp_path / "two", [22.0, 21.0], tiny_vqvae())
    options = ["--size", "16", "--frames", "9", "--count", "6", "--sizes", "16", "16x8"]
    sheet, curves = tmp_path / "sheet.png", tmp_path / "curves.png"
    compare_tokenizers.main([str(one), str(two), *options, "--sheet", str(sheet), "--curves", str(curves)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "|  | one | two |"
    assert {"| tokenizer | CViViT | VQVAE |", "| frames | 9 | 8 |", "| ids of a clip | 5×2×2 | 4×2×2 |"} <= {*lines}
    assert "| PSNR below the run's best | 0.000 | 1.000 |" in lines
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines if line.startswith("| PSNR at")}
    assert set(rows) == {"PSNR at 16×16", "PSNR at 16×8"}
    width, height = Image.open(sheet).size  # frames of 16 pixels, 16 times larger
    assert Image.open(curves).size == (500, 350)  # one panel, because these trainings have no other curve
    assert curves_of([one, two]) == {
        "PSNR of the other frames, dB": {"one": [(200, 20.0)], "two": [(200, 22.0), (400, 21.0)]},
    }
    assert 3 * 256 < width < 3 * 256 + 20 and height > 4 * 256


def test_runs_of_one_name_are_refused(tmp_path):
    one, two = run_of(tmp_path / "a" / "run", [20.0]), run_of(tmp_path / "b" / "run", [20.0])
    with pytest.raises(SystemExit, match=r"compare_tokenizers\.py: expected runs of different names"):
        compare_tokenizers.main([str(one), str(two)])


@pytest.mark.parametrize(
    "words, message",
    [
        (("--size", "16", "--frames", "1"), "frames"),
        (("--size", "16", "--sizes", "16", "14"), "14"),
        (("--size", "14"), "14"),
    ],
)
def test_clips_that_a_tokenizer_does_not_take_are_refused_before_anything_is_measured(
    tmp_path, monkeypatch, words, message
):
    monkeypatch.setattr(compare_tokenizers, "measure", lambda *given: pytest.fail("measured"))
    with pytest.raises(SystemExit, match=rf"run: --frames, --size or --sizes does not fit: .*{message}"):
        compare_tokenizers.main([str(run_of(tmp_path / "run", [20.0], tiny_vqvae())), *words])


def test_curves_are_read_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_tokenizers, "measure", lambda *given: pytest.fail("measured"))
    run = run_of(tmp_path / "run", [20.0])
    (run / "tokenizer" / "curves.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(SystemExit, match="share none of psnr_first"):
        compare_tokenizers.main([str(run), "--curves", str(tmp_path / "curves.png")])
    (run / "tokenizer" / "curves.csv").unlink()
    with pytest.raises(SystemExit, match=r"curves\.csv"):
        compare_tokenizers.main([str(run), "--curves", str(tmp_path / "curves.png")])


def test_runs_without_curves_and_shared_ones_are_compared(tmp_path, capsys):
    without, shared = run_of(tmp_path / "without", [20.0]), run_of(tmp_path / "shared", [22.0, 21.0])
    (without / "tokenizer" / "curves.csv").unlink()
    (shared / "tokenizer" / "curves.csv").rename(shared / "tokenizer_curves.csv")
    compare_tokenizers.main([str(without), str(shared), "--size", "16", "--count", "2"])
    assert "| PSNR below the run's best | nan | 1.000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (("--sheet", "a.png", "--curves", "./a.png"), "--sheet and --curves would write the same file"),
        (("--sheet", "a.jpg"), r"2"),
        (("--curves", "a"), r"2"),
    ],
)
def test_pictures_of_one_name_or_another_kind_are_refused_at_the_start(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare_tokenizers, "load_tokenizer", lambda *given: pytest.fail("loaded"))
    with pytest.raises(SystemExit, match=message):
        compare_tokenizers.main(["run", *words])
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_is_interrupted_has_the_columns_that_are_measured(tmp_path, monkeypatch, capsys):
    runs = [run_of(tmp_path / name, [20.0]) for name in ("one", "two")]

    def measure(folder, *given):
        if folder.name == "two":
            raise KeyboardInterrupt
        return {"parameters": "7"}

    monkeypatch.setattr(compare_tokenizers, "measure", measure)
    with pytest.raises(SystemExit, match="130"):
        compare_tokenizers.main([*map(str, runs), "--size", "16"])
    assert capsys.readouterr().out == "|  | one |\n| --- | --- |\n| parameters | 7 |\n"
