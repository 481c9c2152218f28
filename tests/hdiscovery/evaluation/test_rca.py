"""RCA on pairs whose k and s a reconstructor can read, cannot, or can only sometimes."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from hdiscovery.directions.open import directions_of
from hdiscovery.directions.pairs import pairs
from hdiscovery.evaluation.rca import Accuracy, measure_rca
from torch import nn


class Guesses(nn.Module):
    """Says direction 1 and no shift, whatever it sees."""

    def forward(self, x_0, shifted):
        logits = torch.zeros(len(x_0), 3)
        logits[:, 1] = 1
        return logits, torch.zeros(len(x_0))


class Shy(nn.Module):
    """Says what another says where the shift is of size 0.2 or more, else a wrong k."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def forward(self, x_0, shifted):
        logits, s = self.other(x_0, shifted)
        return torch.where((s.abs() < 0.2)[:, None], -logits, logits), s


def test_a_reconstructor_that_reads_the_pattern_is_right_everywhere(toy, patterns):
    found = measure_rca(toy(patterns), pairs=200, batch_size=64)

    assert found.pairs == 200
    assert found.rca == found.rca_large_shifts == 1.0
    assert found.shift_error == pytest.approx(0, abs=1e-5)
    assert found.of_direction == [1.0, 1.0, 1.0]
    assert found.standard_error == 0
    assert sum(point["pairs"] for point in found.curve) == 200


def test_one_that_guesses_is_right_as_often_as_its_guess_is_drawn(toy, patterns):
    subject = replace(toy(patterns), R=Guesses())
    drawn = torch.cat([k for _, _, k, _ in pairs(subject, 300, seed=1)])
    s = torch.cat([s for _, _, _, s in pairs(subject, 300, seed=1)])

    found = measure_rca(subject, pairs=300, seed=1)

    share = (drawn == 1).float().mean().item()
    assert found.rca == pytest.approx(share)
    assert found.of_direction == [0.0, 1.0, 0.0]
    assert found.shift_error == pytest.approx(s.abs().mean().item())
    assert found.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 300))


def test_large_shifts_are_those_of_a_tenth_of_s_or_more_and_the_curve_shows_where_it_fails(
    toy, patterns
):
    subject = toy(patterns)

    found = measure_rca(replace(subject, R=Shy(subject.R)), pairs=400)

    assert found.rca < 1
    assert found.rca_large_shifts == 1
    assert found.curve[0]["rca"] == 0
    assert [point["rca"] for point in found.curve[1:]] == [1.0] * 9
    assert (found.curve[0]["from"], found.curve[0]["to"]) == (0.0, pytest.approx(0.2))


def test_pairs_depend_on_their_seed_alone_and_leave_the_global_stream_where_it_is(toy, patterns):
    subject = toy(patterns)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = list(pairs(subject, 10, seed=3, batch_size=4))
    assert torch.equal(torch.get_rng_state(), state)

    torch.manual_seed(6)
    again = list(pairs(subject, 10, seed=3, batch_size=10))

    assert [len(k) for _, _, k, _ in first] == [4, 4, 2]
    for i in range(4):
        assert torch.equal(torch.cat([pair[i] for pair in first]), again[0][i])


def test_a_run_is_measured_with_running_statistics_and_left_in_its_mode(networks):
    networks.R.train()
    before = {name: value.clone() for name, value in networks.R.state_dict().items()}

    found = measure_rca(directions_of(networks), pairs=6)

    assert networks.R.training
    assert all(torch.equal(before[n], v) for n, v in networks.R.state_dict().items())
    assert Accuracy(**asdict(found)) == found


def test_what_cannot_be_measured_says_so(networks, toy, patterns):
    with pytest.raises(ValueError, match="`pairs` must be at least 1, got 0"):
        measure_rca(directions_of(networks), pairs=0)
    with pytest.raises(ValueError, match="fresh"):
        measure_rca(replace(toy(patterns), R=None), pairs=4)
