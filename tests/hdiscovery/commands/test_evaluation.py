"""evaluate and tstop, as a user of the command line sees them."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from hdiscovery.cli import main
from hdiscovery.commands import evaluate as commands
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.shipped import own_run, shipped_runs
from hdiscovery.evaluation.bench import MEASURES
from hdiscovery.evaluation.settings import PARTS


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def trained(tiny_dm, tmp_path_factory):
    """Return the folder of a run of one step, on a model of 8 pixels."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert run("train", "MNIST32-400-20-32-5", "--out", folder / "run", "--dm", tiny_dm,
               "--K", 3, "--M", 4, "--batch-size", 4, "--steps", 1,
               "--reconstructor", "difference", "--head-std", 0.1,
               "--device", "cpu") == 0  # fmt: skip
    return folder / "run"


SMALL = ("--pairs", 12, "--fresh-pairs", 8, "--fresh-steps", 2, "--images", 6, "--samples", 2,
         "--shifts", 3, "--references", 6, "--device", "cpu")  # fmt: skip


def evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_a_run_and_baselines_go_through_the_same_measures_into_one_table(trained, tmp_path, capsys):
    from PIL import Image

    for i in range(4):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / f"{i}.png")

    assert run("evaluate", trained, *SMALL, "--data", tmp_path, "--baselines", "random", "pca",
               "jacobian") == 0  # fmt: skip

    found, out = evaluation(trained), capsys.readouterr().out
    assert list(found["subjects"]) == ["learnt", "random", "pca", "jacobian"]
    for name, results in found["subjects"].items():
        parts = {"fresh", "marks", "probes", "fid"} | ({"rca"} if name == "learnt" else set())
        assert set(results) == parts
        assert results["marks"]["reconstructor"] == "fresh"
        assert (trained / f"probes-{name}.png").is_file()
    raw = {results["fid"]["raw"] for results in found["subjects"].values()}
    assert len(raw) == 1  # the same x_T for all
    assert found["losses"]["steps"] == 1
    assert found["left_out"] == {
        f"rca of {name}": "no reconstructor was trained with these directions; measure `fresh`"
        for name in ("random", "pca", "jacobian")
    }
    header = out.splitlines()[-30:]
    assert any(line.split() == ["learnt", "random", "pca", "jacobian"] for line in header)
    assert "L_G 0.69" in out
    assert json.loads((trained / "rca.json").read_text())["pairs"] == 12
    assert (trained / "rca.png").read_bytes().startswith(b"\x89PNG")


def test_steps_after_the_checkpoint_are_not_among_the_losses(trained):
    beside = RunFolder.open(trained)
    before = (trained / "records.jsonl").read_text()
    beside.append_record({**json.loads(before.splitlines()[-1]), "step": 1, "L_G": 9.0})

    assert run("evaluate", trained, *SMALL, "--only", "losses") == 0
    (trained / "records.jsonl").write_text(before)

    assert evaluation(trained)["losses"]["steps"] == 1
    assert evaluation(trained)["losses"]["largest_L_G"] < 9


def test_a_part_measured_later_joins_the_others_of_the_same_checkpoint(trained):
    assert run("evaluate", trained, *SMALL, "--only", "rca", "losses") == 0
    assert run("evaluate", trained, *SMALL, "--only", "rca", "--pairs", 5) == 0

    found = evaluation(trained)
    assert found["subjects"]["learnt"]["rca"]["pairs"] == 5
    assert "losses" in found

    old = {**found, "step": 0, "subjects": {"gone": {}}}
    (trained / "evaluation.json").write_text(json.dumps(old))
    assert run("evaluate", trained, *SMALL, "--only", "rca") == 0
    assert list(evaluation(trained)["subjects"]) == ["learnt"]


def test_the_ranking_is_written_and_printed_best_first(trained, capsys):
    words = ("evaluate", trained, "--only", "rank", "--samples", 2, "--shifts", 3, "--references",
             6, "--device", "cpu")  # fmt: skip
    assert run(*words) == 0

    ranking = json.loads((trained / "ranking.json").read_text())
    printed = [int(line.split()[0]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert printed == [row["k"] for row in ranking["directions"]]
    assert ranking["step"] == 1
    assert ranking["features"]["name"] == "unet"
    assert len(ranking["features"]["sha256"]) == 64

    assert run(*words, "--fresh-pairs", 4, "--fresh-steps", 2) == 0


def test_tstop_prints_its_choice_and_where_the_preset_falls(tmp_path, capsys):
    assert run("tstop", "MNIST32-small", "--samples", 2, "--sampling-steps", 5,
               "--out", tmp_path / "t",
               "--preset", "CelebAHQ128-500-40-256-2", "--device", "cpu") == 0  # fmt: skip

    out = capsys.readouterr().out
    chosen = json.loads((tmp_path / "t" / "tstop.json").read_text())
    assert f"t_stop = {chosen['t_stop']}:" in out
    assert "CelebAHQ128-500-40-256-2 has t_stop = 500" in out
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["tstop.json", "tstop.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate", "RUN", "--only", "rca", "--pairs", "0"), "`pairs` must be at least 1, got 0"),
        (("evaluate", "RUN", "--only", "fid", "--data", "nowhere"),
         "neither MNIST/raw nor image files"),
        (("evaluate", "RUN", "--shifts", "4"), "`shifts` must be odd"),
        (("evaluate", "RUN", "--references", "4"), "`references` must be at least 5, got 4"),
        (("evaluate", "RUN", "--only", "fid"), "there are none. Pass a folder of them by `--data"),
        (("evaluate", "RUN", "--only", "rca", "fid"), "`--data DIR`"),
        (("evaluate", "RUN", "--batch-size", "0"), "`batch_size` must be at least 1, got 0"),
        (("evaluate", "RUN", "--only", "rank", "--features", "net.pt"),
         "neither a file nor one of"),
        (("evaluate", "nowhere", "--only", "rank"), "not a run folder"),
        (("tstop", "MNIST32-small", "--preset", "MNIST64"), "MNIST32-400-20-32-5"),
        (("tstop", "MNIST32-small", "--features", "lpips"), "alexnet"),
        (("tstop", "MNIST32-small", "--threshold", "1", "--share", "1"), "one of `threshold`"),
    ],
)  # fmt: skip
def test_bad_input_is_an_error_that_says_what_to_do(trained, capsys, monkeypatch, words, message):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(trained))

    assert run(*(trained if word == "RUN" else word for word in words)) == 2

    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_baselines_of_directions_that_are_nothing_yet_are_refused(trained, capsys, monkeypatch):
    monkeypatch.setattr("hdiscovery.evaluation.report.learnt_norms", lambda subject: {999: 0.0})

    assert run("evaluate", trained, "--only", "fresh", "--baselines", "random", "--fresh-pairs", 4,
               "--fresh-steps", 1, "--device", "cpu") == 2  # fmt: skip

    assert "still 0 everywhere" in capsys.readouterr().err

    assert run("evaluate", trained, "--only", "fresh", "--baselines", "random", "--fresh-pairs", 4,
               "--fresh-steps", 1, "--device", "cpu",
               "--baseline-strength", "spread") == 0  # fmt: skip
    assert "random-spread" in evaluation(trained)["subjects"]


def test_the_command_knows_the_parts_and_baselines_that_there_are():
    assert ("losses", *MEASURES) == PARTS
    assert (*PARTS, "rank") == get_args(commands.Chosen)


def test_a_refused_part_costs_nothing_and_loses_nothing(trained, capsys):
    assert run("evaluate", trained, *SMALL, "--only", "rca") == 0
    before = (trained / "evaluation.json").read_bytes()

    assert run("evaluate", trained, *SMALL, "--only", "rca", "fid") == 2
    assert (trained / "evaluation.json").read_bytes() == before


def test_all_parts_without_real_images_leave_fid_out(trained, capsys):
    assert run("evaluate", trained, *SMALL) == 0

    assert "fid of learnt: " in capsys.readouterr().out
    assert "--data DIR" in evaluation(trained)["left_out"]["fid of learnt"]


def test_published_runs_are_ranked_and_shipped_ones_are_left_alone(published, capsys):
    words = ("--samples", 2, "--shifts", 3, "--references", 5, "--device", "cpu")
    assert run("evaluate", published.path, "--only", "rank", *words) == 0

    for options in (("evaluate", "--only", "rank"), ("evaluate",), ("publish", "--to", "file")):
        assert run(options[0], "digits", "--device", "cpu", *options[1:]) == 2
        assert "comes with the package" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="Copy"):
        own_run(Path("digits"))
    assert shipped_runs()["digits"].is_dir()
