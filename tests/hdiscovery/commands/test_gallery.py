"""gallery, as a user of the command line sees it."""

from pathlib import Path

from hdiscovery.cli import main


def test_a_page_of_somebody_else_is_not_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits.html").write_text("mine")

    assert main(["gallery", "digits", "--pairs", "2"]) == 2
    assert "is no gallery" in capsys.readouterr().err
    assert Path("digits.html").read_text() == "mine"


def test_a_page_takes_the_accuracy_that_was_measured_on_more_pairs(small, capsys):
    words = ["gallery", str(small.path), "--samples", "1", "--shifts", "3", "--device", "cpu"]
    assert main(["evaluate", str(small.path), "--only", "rca", "--pairs", "6"]) == 0
    assert main([*words, "--pairs", "4"]) == 0
    assert small.read_json("rca.json")["pairs"] == 6
    assert main([*words, "--pairs", "8"]) == 0
    assert small.read_json("rca.json")["pairs"] == 8
