"""Every example runs to its picture, at the smaller setting, and its figures move as it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted(EXAMPLES.glob("plot_*.py"))
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the folder that all examples have written to, each run once when it is asked for."""
    folder = tmp_path_factory.mktemp("examples")

    def of(name):
        if not (folder / f"{name}.json").exists():
            command = [sys.executable, EXAMPLES / f"{name}.py", "--quick", "--out", folder]
            # One thread: threads that wait for each other in a busy machine take minutes.
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            assert done.returncode == 0, done.stderr
        return folder / f"{name}.png", json.loads((folder / f"{name}.json").read_text())

    return of


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_an_example_ends_in_a_picture_and_the_command_that_made_it(results, name):
    picture, content = results(name)

    assert picture.read_bytes().startswith(PNG)
    assert f"{name}.py --quick" in content["command"]


@pytest.mark.parametrize(
    ("name", "row", "worse", "better"),
    [
        ("plot_lora_reward", "reward", "before", "after"),
        ("plot_noise_lbfgs", "median loss", "start", "result"),
        ("plot_time_grid", "RMS distance to 8 steps, held out, 3 steps", "equal, c = 0", "learned"),
    ],
)
def test_training_moves_the_figure_that_it_is_for(results, name, row, worse, better):
    cells = results(name)[1]["measured"][row]
    before, after = (
        next(value for where, value in cells.items() if where.startswith(start))
        for start in (worse, better)
    )

    assert after > before if row == "reward" else after < before


def test_a_gradient_through_all_steps_has_a_lower_peak_than_the_plain_loop(results):
    peaks = results("plot_lora_reward")[1]["measured"]["peak of a gradient, MiB"]

    assert peaks["chain, nodes"] < 0.5 * peaks["plain loop"]


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_the_results_shown_in_the_docs_are_those_of_a_full_run(name):
    content = json.loads((EXAMPLES / "results" / f"{name}.json").read_text())

    assert content["command"] == f"python examples/{name}.py"
    assert (EXAMPLES / "results" / f"{name}.png").stat().st_size < 300_000


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_the_docs_show_every_example(name):
    page = (EXAMPLES.parent / "docs" / "examples.md").read_text()

    assert f"examples/{name}.py" in page
    assert f"results/{name}.png" in page
