"""One face for a run, a published run, a file and a baseline."""

import shutil
from dataclasses import replace

import pytest
import torch
from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.labels import LABELS
from hdiscovery.directions.open import directions_of, open_directions
from hdiscovery.directions.pairs import pairs
from hdiscovery.directions.portable import FILE
from hdiscovery.directions.publish import publish
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_run


@pytest.fixture(scope="module")
def opened(tiny_run, tmp_path_factory):
    """The same directions as a run, as a published run, and as a file."""
    folder = tmp_path_factory.mktemp("out")
    run = RunFolder.open(shutil.copytree(tiny_run, folder / "run"))
    run.write_json("rca.json", {"rca": 0.5, "shift_error": 1.0, "of_direction": [0.5] * 3})
    out = publish(run, folder / "published", dtype=torch.float32)
    return [open_directions(path) for path in (run.path, out.path, run.path / FILE)]


def test_all_of_them_have_the_same_face(opened):
    run, published, file = opened

    for directions in opened:
        assert isinstance(directions, DirectionSet)
        assert (directions.K, directions.S, directions.M, directions.t_stop) == (3, 2.0, 4, 400)
        assert directions.times == directions.about.times == (999, 666)
        assert directions.grid == (999, 666, 333, 0, -1)
        assert len(directions.labels) == len(directions.scores) == 3
        x_T, k, s = directions.draw(2)
        assert directions.shifted(x_T, k, s).shape == (2, 1, 8, 8)
    assert [d.kind for d in opened] == ["direct", "direct", "mean"]
    assert [d.name for d in opened] == ["run", "published", "directions"]
    assert run.trained_steps == published.trained_steps == 1
    assert (file.run, file.trained_steps, file.R) == (None, 0, None)


def test_a_run_and_what_is_published_of_it_draw_and_make_the_same_pairs(opened):
    state = torch.get_rng_state()

    made = [list(pairs(directions, 3, seed=1, batch_size=2)) for directions in opened]

    assert torch.equal(torch.get_rng_state(), state)
    for own, other, of_file in zip(*made, strict=True):
        assert all(map(torch.equal, own, other))
        assert torch.equal(own[0], of_file[0])  # x_0


def test_samples_are_those_of_the_chain_and_of_the_trajectory_without_a_shift(opened):
    directions, _, _ = opened
    x_T = directions.noise(3, seed=5)

    samples = directions.samples(3, seed=5, batch_size=2)

    whole = replace(directions, sampler=replace(directions.sampler, t_stop=0))
    with torch.no_grad():
        torch.testing.assert_close(samples, directions.real(x_T))
    torch.testing.assert_close(samples, [*whole.trajectory(x_T)][-1].x_next)
    assert [node.t for node in directions.trajectory(x_T)] == [999, 666]


def test_other_directions_under_the_same_settings_have_neither_names_nor_a_reconstructor(opened):
    directions, _, _ = opened
    x_T, k, s = directions.draw(2)

    still = directions.with_f(lambda h, embedding, k, t: torch.zeros_like(h), name="nothing")

    with torch.no_grad():
        torch.testing.assert_close(still.shifted(x_T, k, s), directions.real(x_T))
    assert (still.name, still.kind, still.R, still.K) == ("nothing", "baseline", None, 3)
    assert set(still.labels) == {""}
    assert set(still.scores) == {None}
    assert still.training() is directions.training()


def test_what_a_file_or_networks_in_memory_cannot_say_is_refused_with_the_way_out(opened, tiny_run):
    _, _, file = opened
    in_memory = directions_of(open_run(RunFolder.open(tiny_run)))

    with pytest.raises(ValueError, match="Open the run that they were measured from"):
        file.training()
    with pytest.raises(ValueError, match=r"hdiscovery\.open\(FOLDER\)"):
        in_memory.training().in_folder()
    assert in_memory.training().records() == []
    assert set(in_memory.labels) == {""}


def test_a_damaged_file_of_labels_does_not_keep_a_run_from_being_sampled(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / LABELS).write_text("{")

    directions = open_directions(run)

    assert directions.samples(1, seed=0).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match="is not JSON"):
        _ = directions.labels
