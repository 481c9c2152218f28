"""What a user of the command line sees."""

import re
import subprocess
import sys

import pytest
import torch
from hdiscovery.cli import main, read


def run(*words):
    return main([str(word) for word in words])


def test_a_run_can_be_trained_evaluated_and_shown(tmp_path, capsys):
    out = tmp_path / "run"
    assert run("train", "MNIST32-400-20-32-5", "--out", out, "--K", 3, "--M", 2, "--batch-size", 4,
               "--steps", 1, "--reconstructor", "difference") == 0  # fmt: skip
    assert run("train", "MNIST32-400-20-32-5", "--out", out, "--resume") == 0
    assert run("evaluate", out, "--pairs", 8, "--only", "rca") == 0
    assert re.search(r"RCA +\d", capsys.readouterr().out)
    assert run("gallery", out, "--pairs", 8, "--samples", 1, "--shifts", 3) == 0

    page = (out / "index.html").read_text()
    assert page.count("<article ") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_runs_are_shown_side_by_side_and_marked_by_people(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        fields = ("--K", 2, "--M", 1, "--batch-size", 2, "--steps", 1)
        words = ("train", "MNIST32-400-20-32-5", "--out", name, "--reconstructor", "difference")
        assert run(*words, *fields) == 0
    (tmp_path / "mine.html").write_text("a page of mine")
    words = ("gallery", "a", "b", "--pairs", 2, "--samples", 1, "--shifts", 3)

    assert run(*words, "--out", "mine.html") == 2
    assert "mine.html exists and is no gallery" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "a page of mine"
    assert run(*words) == run(*words) == 0
    assert (tmp_path / "gallery.html").read_text().count('<section class="run"') == 2

    words = ("mos", "make", "a", "--raters", 2, "--samples", 1, "--shifts", 3)
    assert run(*words) == 0
    assert capsys.readouterr().out.endswith("/a/mos/index.html\n")
    assert len(list((tmp_path / "a" / "mos" / "raters").iterdir())) == 2
    assert run(*words) == 2
    assert "Choose another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "MNIST64"), "MNIST32-400-20-32-5"),
        (("train", "MNIST32-400-20-32-5", "--t-stop", "1000"), "t_stop"),
        (("train", "MNIST32-400-20-32-5", "--Q", "1"), "unknown options"),
        (("train", "AFHQ128-400-40-256-2"), "--dm FILE"),
        (("train", "MNIST32-400-20-32-5", "--K", "1"), "`K` must be at least 2"),
        (("train", "MNIST32-400-20-32-5", "--lambda-1", "nan"), "`lambda_1`"),
        (("gallery", "nowhere", "--shift", "3"), "--shifts INT"),
        (("gallery", "nowhere", "--pairs", "many"), "--pairs"),
        (
            ("evaluate", "nowhere", "--baselines", "noise"),
            "invalid choice 'noise' for argument '--baselines'",
        ),
        (("edit", "digits"), "No image is given. Pass `--image PATH`"),
        (("invert", "MNIST32-small"), "No image is given"),
        (("evalute", "nowhere"), "Did you mean `evaluate`?"),
        (("publish", "digits"), "Name a folder by `--out FOLDER`"),
        (("convert", "MNIST32-small"), "Pass `--out PATH`, or `--inspect`"),
        (("judge", "MNIST32-small", "--device", "abacus"), "`--device abacus` cannot be used"),
        ((), ""),
        (("train", "--config", "empty.toml"), "names no field of a run"),
        (("gallery",), "No run is named"),
        (("gallery", "list"), "config.json is not the config of a run"),
        (("evaluate", "cut"), "config.json is damaged"),
        (("judge", "nothing"), "shipped are: MNIST32-small"),
        (("evaluate", "nowhere"), "not a run folder"),
        (("train", "MNIST32-400-20-32-5", "--dm", "no.safetensors"), "shipped are"),
    ],
)
def test_bad_input_is_an_error_that_says_what_to_do(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.toml").touch()
    for name, text in (("list", "[1]"), ("cut", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)

    assert run(*words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_resumed_run_takes_the_changes_that_leave_its_networks_alone(tmp_path, capsys):
    out = tmp_path / "run"
    words = ("train", "MNIST32-400-20-32-5", "--out", out)
    assert run(*words, "--K", 3, "--M", 2, "--batch-size", 4, "--steps", 1,
               "--reconstructor", "difference") == 0  # fmt: skip

    assert run(*words, "--resume", "--K", 4) == 2
    assert "`K` of a run cannot change" in capsys.readouterr().err
    assert run(*words) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(*words, "--resume", "--steps", 2, "--learning-rate", 1e-5) == 0

    assert len((out / "records.jsonl").read_text().splitlines()) == 2
    states = torch.load(out / "checkpoint.pt")["optimizers"].values()
    rates = {group["lr"] for state in states for group in state["param_groups"]}
    assert rates == {1e-5}


def test_a_run_of_another_version_is_refused_by_its_fields(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"K": 3, "depth": 2}')

    assert run("evaluate", tmp_path) == 2
    assert "unknown field `depth`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (["rank", "a", "--seed", "2"], ["evaluate", "a", "--seed", "1", "--only", "rank"]),
        (["rank", "a", "--seed=2"], ["evaluate", "a", "--seed", "1", "--only", "rank"]),
        (["directions", "a", "--no-mean"], ["publish", "a", "--no-mean", "--to", "file"]),
        (["label", "a", "3=x y"], ["publish", "a", "--label", "3=x y"]),
        (["label", "a"], ["publish", "a", "--label"]),
        (["inspect", "a"], ["convert", "a", "--inspect"]),
        (["export", "a", "--out", "b"], ["convert", "a", "--out", "b", "--to", "diffusers"]),
    ],
)
def test_an_older_command_does_what_its_new_form_does(words, now, capsys):
    assert read(words)[1] == read(now)[1]
    assert f"`hdiscovery {words[0]}` is now `hdiscovery {now[0]} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (["invert", "a", "--image", "b", "--steps", "3"], "--inversion-steps"),
        (["edit", "a", "--image", "b", "--columns=3"], "--shifts"),
        (["edit", "a", "--image", "b", "--strength", "calibrated"], "--unit"),
        (["properties", "a", "--columns", "3"], "--shifts"),
        (["tstop", "a", "--steps", "3"], "--sampling-steps"),
        (["judge", "a", "--num-steps", "3"], "--sampling-steps"),
        (["judge", "a", "--num_steps", "3"], "--sampling-steps"),
        (["gallery", "a", "--columns", "3", "--only", "1", "2"], "--direction"),
        (["mos", "make", "a", "--raters", "2", "--examples", "3"], "--samples"),
        (["mos", "make", "a", "--raters", "2", "--strengths", "3"], "--shifts"),
        (["evaluate", "a", "--strength", "spread"], "--baseline-strength"),
        (["directions", "a", "--features", "pixels"], "--calibration-features"),
        (["inspect", "a", "--images", "b"], "--data"),
    ],
)
def test_an_older_option_is_read_and_said_to_be_another_now(words, now, capsys):
    read(words)

    assert f"is now `{now}`" in capsys.readouterr().err


def test_help_of_an_older_command_is_its_new_form_s(capsys):
    assert main(["label", "--help"]) == 0
    assert "hdiscovery publish" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("tyro", "cli.main(['gallery', 'digits'])"),
        ("tqdm", "cli.main(['gallery', 'digits'])"),
        ("safetensors", "cli.main(['gallery', 'digits'])"),
        ("safetensors", "open('digits')"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(library, call, tmp_path):
    code = f"""
import sys
sys.modules[{library!r}] = None
import hdiscovery
from hdiscovery import cli
try:
    sys.exit(hdiscovery.{call})
except ImportError as error:
    print("hdiscovery:", error, file=sys.stderr)
    sys.exit(2)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )

    assert done.returncode == 2
    assert f"needs the library {library}" in done.stderr
    assert "pip install 'chainograd[hdiscovery]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_that_runs_out_is_an_error_that_says_what_to_do(monkeypatch, capsys):
    def full(options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("hdiscovery.commands.convert.run", full)

    assert run("convert", "MNIST32-small", "--inspect") == 2
    assert "--batch-size" in capsys.readouterr().err
