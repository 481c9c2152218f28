"""What a user of the command line sees."""

import re

import pytest
from hdiscovery.cli import main


def run(*words):
    return main([str(word) for word in words])


def test_a_run_can_be_trained_evaluated_and_shown(tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "MNIST32-400-20-32-5", "--out", out, "--K", 3, "--M", 2, "--batch-size", 4,
               "--steps", 1, "--reconstructor", "difference") == 0  # fmt: skip
    assert run("train", "MNIST32-400-20-32-5", "--out", out, "--resume") == 0
    assert run("evaluate", out, "--pairs", 8) == 0
    assert '"pairs": 8' in capsys.readouterr().out
    assert run("gallery", out, "--pairs", 8) == 0

    page = (out / "index.html").read_text()
    assert page.count("<article>") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "MNIST64"), "MNIST32-400-20-32-5"),
        (("train", "MNIST32-400-20-32-5", "--t-stop", "1000"), "t_stop"),
        (("train", "MNIST32-400-20-32-5", "--Q", "1"), "unknown options"),
        (("evaluate", "nowhere"), "not a run folder"),
        (("train", "MNIST32-400-20-32-5", "--dm", "no.safetensors"), "shipped are"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)

    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
