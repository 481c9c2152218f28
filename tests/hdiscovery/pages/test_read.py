"""What the gallery takes from a run's folder."""

import json
from dataclasses import dataclass

import pytest
import torch
from hdiscovery.directions.config import DiscoveryConfig
from hdiscovery.directions.labels import read_labels
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.trained_run import TrainedRun
from hdiscovery.pages.draw import draw_strips, even_shifts
from hdiscovery.pages.read import shown_run

CONFIG = DiscoveryConfig.of(K=3, S=2.0, dm="models/tiny.safetensors")
ACCURACY = {"rca": 0.5, "shift_error": 0.7, "of_direction": [0.2, None, 0.9]}


class Model:
    image_shape = (1, 8, 8)


@dataclass
class Directions:
    """An x_T that is moved by s along k is x_T + k s: what was asked for can be read off."""

    run: TrainedRun | None = None
    name, K, S, dm, device = "a", 3, 2.0, Model(), torch.device("cpu")

    def training(self):
        return self.run

    def shifted(self, x_T, k, s):
        assert not torch.is_grad_enabled()
        return 0.05 * x_T + 0.05 * (k * s).view(-1, 1, 1, 1)


@pytest.fixture
def run(tmp_path):
    return RunFolder.create(tmp_path / "a", {})


def shown(run, step=40, **only):
    directions = Directions(TrainedRun(CONFIG, step, run))
    return shown_run(directions, ACCURACY, samples=2, columns=3, **only)


def ranking():
    measured = {"score": 0.5, "accuracy": 0.4, "monotonicity": 0.9, "smoothness": 0.8,
                "consistency": 0.7, "fidelity": 0.6, "effect": 1.2, "twin_of": None}  # fmt: skip
    twin = {"k": 1, **measured, "twin_of": [0, -1]}
    return {"step": 40, "directions": [twin, {"k": 0, **measured}]}


def test_every_direction_moves_the_same_samples_by_the_same_shifts():
    strips = [
        draw_strips(Directions(), k, samples=70, shifts=[-2.0, 0.0, 2.0], seed=7) for k in (0, 2)
    ]

    assert strips[0].shape == (70, 3, 1, 8, 8)
    assert torch.equal(strips[0][:, 0], strips[0][:, 2])
    difference = (strips[1] - strips[0])[:, :, 0, 0, 0]
    assert torch.allclose(difference, torch.tensor([-0.2, 0.0, 0.2]).expand(70, 3), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"k": 3, "samples": 1}, r"`k` must lie in 0 … 2, got 3"),
        ({"k": 0, "samples": 0}, "`samples` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        draw_strips(Directions(), shifts=[0.0], seed=0, **words)


@pytest.mark.parametrize("columns", [1, 4])
def test_columns_without_a_middle_are_refused(columns):
    with pytest.raises(ValueError, match=f"must be odd.* got {columns}"):
        even_shifts(2.0, columns)


def test_without_files_a_run_shows_its_accuracy_alone(run):
    shown_ = shown(run)

    assert [d.accuracy for d in shown_.directions] == [0.2, None, 0.9]
    assert [d.score for d in shown_.directions] == [None] * 3
    assert shown_.shifts == [-2.0, 0.0, 2.0]
    assert (shown_.name, shown_.dm, shown_.alarms) == ("a", "tiny.safetensors", [])


def test_a_ranking_gives_score_measures_and_twins(run):
    run.write_json("ranking.json", ranking())

    first, second, third = shown(run).directions

    assert (first.score, first.accuracy, first.twin_of) == (0.5, 0.4, None)
    assert first.measures["effect"] == 1.2
    assert second.twin_of == (0, -1)
    assert (third.score, third.accuracy) == (None, 0.9)


def test_only_some_directions_are_drawn_without_the_twins_of_others(run):
    run.write_json("ranking.json", ranking())

    few = shown(run, only=[1])

    (one,) = few.directions
    assert (one.k, one.score, one.twin_of, few.K) == (1, 0.5, None, 3)
    assert one.sheet == shown(run).directions[1].sheet
    with pytest.raises(ValueError, match=r"`only` names direction 3, .* 0 … 2"):
        shown(run, only=[0, 3])


def test_a_ranking_of_another_step_is_said_to_be(run):
    run.write_json("ranking.json", ranking())

    assert shown(run, step=40).alarms == []
    assert "ranked at step 40; those shown are of step 60" in shown(run, step=60).alarms[0]


def test_a_ranking_of_another_form_is_refused_by_its_name(run):
    run.write_json("ranking.json", {"directions": [{"k": 0}]})

    with pytest.raises(ValueError, match=r"ranking\.json is not a ranking.*'score'"):
        shown(run)


def test_labels_are_those_of_the_file(run):
    run.write_json("labels.json", {"2": "slant"})

    assert [d.label for d in shown(run).directions] == ["", "", "slant"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"3": "slant"}', r"names the direction '3', and the run has 0 … 2"),
        ('{"one": "slant"}', "names the direction 'one'"),
        ('{"1": 2}', "must map directions to words"),
        ("[]", "must map directions to words"),
        ("{", "is not JSON"),
    ],
)
def test_labels_of_another_run_or_form_are_refused(run, content, message):
    (run.path / "labels.json").write_text(content)

    with pytest.raises(ValueError, match=message):
        read_labels(run, K=3)


def test_what_is_wrong_with_the_training_is_said(run):
    record = {"L_G": 3.0, "L_D": 0.1, "cross_entropy": 0.1, "shift_error": 0.1, "accuracy": 0.99}
    for step in range(60):
        run.append_record({"step": step, **record})

    (alarm,) = shown(run).alarms
    assert alarm.startswith("collapse: ")


def test_labels_survive_the_way_through_json(run):
    (run.path / "labels.json").write_text(json.dumps({"0": "</script>\"'"}))

    assert read_labels(run, K=3) == {0: "</script>\"'"}
