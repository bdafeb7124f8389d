"""report.py: the tables hold the figures of results.json, and the rest of a file does not change."""

import json

import pytest

import evaluate
import report
from evaluation.measures import Mean, Share

RESULTS = {
    "measures": {
        "1 text to video": {"all, moves": Share(342, 350), "all, turns": Share(140, 150)},
        "6 prediction": {"error": Mean([0.4, 0.6, 0.5])},
        "0 reconstructions": {"psnr_first": 34.567},
    },
    "curves": {
        "tokenizer": [{"step": 200.0, "loss": 0.0249, "lr": 1e-3, "psnr_first": 18.92}],
        "maskgit": [{"step": 9000.0, "loss": 1.0803, "lr": 0.0, "accuracy": 0.885}],
    },
}
TEXT = "before\n<!-- claims -->old\nfigures<!-- /claims -->\nbetween <!-- measures --><!-- /measures -->\n"
TEXT += "<!-- curves --><!-- /curves -->\nafter\n"


@pytest.fixture
def results():
    return json.loads(json.dumps(evaluate.plain(RESULTS)))


def test_each_figure_is_in_its_row(results, capsys):
    text = report.filled(TEXT, results)
    assert '| text to video, "moves": all right | 97.7 % [96, 99] | 350 |' in text
    assert "| prediction from 5 frames: mean distance from the true position, pixels | 0.50 [0.39, 0.61] | 3 |" in text
    assert "| 0 reconstructions | psnr_first | 34.6 |  |" in text
    assert "| tokenizer, step | loss | psnr_first |\n|---|---|---|\n| 200 | 0.0249 | 18.9 |" in text
    assert "| maskgit, step | loss | accuracy |\n|---|---|---|\n| 9,000 | 1.08 | 0.885 |" in text
    assert "stands still" not in text
    assert "not measured, left out: the same for an object that stands still\n" in capsys.readouterr().err
    assert "old" not in text and text.startswith("before\n") and text.endswith("\nafter\n") and "\nbetween " in text


@pytest.mark.parametrize("values, shown", [([], "-"), ([0.5], "0.50"), ([0.4, 0.6], "0.50 [0.30, 0.70]")])
def test_values_that_could_not_be_measured_are_shown_as_a_dash(values, shown):
    as_json = json.dumps(evaluate.plain({"error": Mean(values), "psnr": float("nan")}), allow_nan=False)
    again = json.loads(as_json)
    assert report.figure(again["error"]) == shown and again["error"]["of"] == len(values)
    assert report.figure(again["psnr"]) == "-"


def test_curves_of_a_failed_training_are_shown(results):
    results["curves"]["maskgit"].append(evaluate.plain({"step": 9200.0, "loss": float("nan"), "accuracy": 0.1}))
    assert "| 9,200 | - | 0.1 |" in report.filled(TEXT, results)


def test_writing_the_tables_twice_changes_nothing(results):
    once = report.filled(TEXT, results)
    assert report.filled(once, results) == once
    results["measures"]["6 prediction"]["error"]["value"] = 0.7
    assert report.filled(once, results) != once


def test_a_file_without_a_place_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"measures": {}}')
    (tmp_path / "card.md").write_text("nothing")
    with pytest.raises(SystemExit, match=r"card\.md: expected a place"):
        report.main([str(tmp_path / "results.json"), str(tmp_path / "card.md")])
    assert (tmp_path / "card.md").read_text() == "nothing"


def test_no_file_is_written_if_one_of_them_is_wrong(tmp_path, results):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "good.md").write_text(TEXT)
    (tmp_path / "bad.md").write_text("nothing")
    for other, message in (("bad.md", "expected a place"), ("none.md", "No such file")):
        with pytest.raises(SystemExit, match=message):
            report.main([str(tmp_path / name) for name in ("results.json", "good.md", other)])
        assert (tmp_path / "good.md").read_text() == TEXT
    with pytest.raises(SystemExit, match=r"report\.py: .*nowhere"):
        report.main([str(tmp_path / "nowhere"), str(tmp_path / "good.md")])


@pytest.mark.parametrize(
    "changes",
    [
        {"measures": None},
        {"measures": [1]},
        {"measures": {"1 text to video": 0.5}},
        {"measures": {"1 text to video": {"all": "half"}}},
        {"measures": {"1 text to video": {"all": {"value": 0.5}}}},
        {"measures": {"1 text to video": {"all": {"kind": "share", "value": None, "low": 0, "high": 1, "of": 2}}}},
        {"curves": {"maskgit": [{"loss": 1.0}]}},
        {"curves": {"maskgit": [{"step": 1, "loss": "low"}]}},
        {"curves": []},
    ],
)
def test_results_of_another_form_are_refused(tmp_path, results, changes):
    (tmp_path / "results.json").write_text(json.dumps(results | changes))
    (tmp_path / "card.md").write_text(TEXT)
    with pytest.raises(SystemExit, match=r"report\.py: .*results\.json must hold what evaluate\.py writes"):
        report.main([str(tmp_path / "results.json"), str(tmp_path / "card.md")])
    assert (tmp_path / "card.md").read_text() == TEXT


def test_results_without_some_measures_are_written_as_far_as_they_go(tmp_path, capsys):
    (tmp_path / "results.json").write_text('{"measures": {}, "missing": [1, 7]}')
    (tmp_path / "card.md").write_text(TEXT)
    report.main([str(tmp_path / "results.json"), str(tmp_path / "card.md")])
    assert capsys.readouterr().err.count("not measured, left out: ") == len(report.CLAIMS)


@pytest.mark.parametrize(
    "text",
    [
        "<!-- /claims --> <!-- claims -->",
        "<!-- claims -->",
        "<!-- claims --> mine <!-- claims --> <!-- /claims -->",
        "<!-- claims --> <!-- measures --> <!-- /measures --> <!-- /claims -->",
        "<!-- claims --> <!-- measures --> <!-- /claims -->",
        "<!-- claims --> <!-- /claims --> mine <!-- /claims -->",
    ],
)
def test_markers_that_are_not_in_pairs_are_refused(results, text):
    with pytest.raises(ValueError, match="expected pairs"):
        report.filled(text, results)


def test_two_places_of_one_table_are_both_filled(results):
    text = report.filled("<!-- claims --><!-- /claims -->mine<!-- claims --><!-- /claims -->", results)
    assert text.count("| claim |") == 2 and "mine" in text


def test_stages_without_curves_are_named(results, capsys):
    results["curves"] = {"tokenizer": []}
    assert "tokenizer, step" not in report.filled("<!-- curves --><!-- /curves -->", results)
    assert capsys.readouterr().err == "no curves, left out: tokenizer\nno curves, left out: maskgit\n"


def test_line_ends_and_links_stay_as_they_are(tmp_path, results):
    (tmp_path / "results.json").write_text(json.dumps(results))
    (tmp_path / "card.md").write_bytes(TEXT.replace("\n", "\r\n").encode())
    (tmp_path / "link.md").symlink_to("card.md")
    report.main([str(tmp_path / "results.json"), str(tmp_path / "link.md")])
    assert (tmp_path / "link.md").is_symlink()
    text = (tmp_path / "card.md").read_bytes()
    assert text.count(b"\n") == text.count(b"\r\n")
    assert text.startswith(b"before\r\n") and text.endswith(b"\r\nafter\r\n") and b"97.7 %" in text
