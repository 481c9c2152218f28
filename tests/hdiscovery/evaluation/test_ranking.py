"""Marks of directions that were made to deserve them; twins that were made to be twins."""

import math

import pytest
import torch
import torch.nn.functional as F
from hdiscovery.evaluation import marks
from hdiscovery.evaluation.features import FeatureNet
from hdiscovery.evaluation.ranking import MARKS, merge, rank, ranked, score
from hdiscovery.evaluation.redundancy import cosines, shift_cosines, twins
from hdiscovery.evaluation.sweep import sweeps
from torch import nn

GOOD = dict.fromkeys(MARKS, 1.0)


class Eighths(nn.Module):
    """Describes an image by the means of squares of two pixels."""

    def forward(self, x):
        return F.avg_pool2d(x, 2)


@pytest.fixture
def net():
    return FeatureNet("eighths", Eighths(), (1, 8, 8))


def test_monotonicity_is_spearmans_correlation():
    s = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    rising, falling = s.exp(), -(s**3)
    swapped = torch.tensor([1.0, 0.0, 2.0, 3.0, 4.0])  # 1 - 6 * 2 / (5 * 24) = 0.9
    tied = torch.tensor([0.0, 0.0, 1.0, 2.0, 2.0])  # ranks 1.5 1.5 3 4.5 4.5

    def of(*rows):
        return marks.monotonicity(s, torch.stack(rows))

    assert of(rising) == pytest.approx(1)
    assert of(falling) == pytest.approx(-1)
    assert of(swapped) == pytest.approx(0.9)
    assert of(tied) == pytest.approx(9 / math.sqrt(90), abs=1e-4)
    assert of(rising, falling) == pytest.approx(0)
    assert of(torch.zeros(5)) == 0


def test_smoothness_is_1_for_even_steps_and_0_for_a_single_jump():
    even = torch.arange(5.0).view(1, 5, 1)
    jump = torch.tensor([0.0, 0, 0, 1, 1]).view(1, 5, 1)
    two = torch.tensor([0.0, 1, 1, 2, 2]).view(1, 5, 1)

    assert marks.smoothness(even) == pytest.approx(1)
    assert marks.smoothness(jump) == pytest.approx(0)
    assert marks.smoothness(two) == pytest.approx(math.log(2) / math.log(4))
    assert marks.smoothness(torch.zeros(1, 5, 1)) == 0


def test_consistency_is_the_mean_cosine_between_samples():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 2.0])

    assert marks.consistency(torch.stack([a, 5 * a])) == pytest.approx(1)
    assert marks.consistency(torch.stack([a, -a])) == pytest.approx(-1)
    assert marks.consistency(torch.stack([a, a, b])) == pytest.approx(1 / 3)
    assert marks.consistency(torch.zeros(3, 2)) == 0


def test_fidelity_is_the_share_that_lies_among_the_references():
    generator = torch.Generator().manual_seed(0)
    manifold = marks.Manifold.of(torch.randn(200, 2, generator=generator))
    near = torch.randn(200, 2, generator=generator)

    assert manifold.fidelity(near) > 0.9
    assert manifold.fidelity(near + 50) == 0
    assert manifold.fidelity(torch.cat([near, near + 50])) == pytest.approx(
        manifold.fidelity(near) / 2, abs=0.06
    )
    assert manifold.spread == pytest.approx(math.sqrt(math.pi), rel=0.1)  # of a plane's normal


def test_the_score_asks_for_everything_at_once():
    assert score(**GOOD) == 1
    for mark in MARKS:
        assert score(**{**GOOD, mark: 0.0}) == pytest.approx(0.01 ** (1 / 6))
    assert score(**{**GOOD, "effect": 0.125}) == pytest.approx(0.5 ** (1 / 6))
    assert score(**{**GOOD, "monotonicity": -1.0}) == score(**{**GOOD, "monotonicity": 0.0})


def test_the_better_of_twins_stays_and_the_other_names_it():
    similarity = torch.tensor([[1.0, 0.97, 0.0], [0.97, 1.0, -0.95], [0.0, -0.95, 1.0]])
    rows = [ranked(0, {**GOOD, "fidelity": 0.5}), ranked(1, GOOD),
            ranked(2, {**GOOD, "fidelity": 0.9})]  # fmt: skip

    best, second, last = merge(rows, similarity)

    assert (best.k, best.twin_of, best.redundancy, best.score) == (1, None, 0.0, 1.0)
    assert (second.k, second.twin_of) == (2, (1, -1))
    assert second.score == pytest.approx(0.9 ** (1 / 6) * 0.05, rel=1e-4)
    assert (last.k, last.twin_of) == (0, (1, 1))
    assert last.redundancy == pytest.approx(0.97)


def test_a_twin_is_never_that_of_another_twin():
    chain = torch.tensor([[1.0, 0.95, 0.6], [0.95, 1.0, 0.95], [0.6, 0.95, 1.0]])

    found = twins(chain, [0, 1, 2])

    assert list(found) == [1]
    assert found[1][:2] == (0, 1)


def test_a_sweep_holds_every_shift_of_every_sample_with_the_original_in_the_middle(toy, patterns):
    subject = toy(patterns)

    found = list(sweeps(subject, num_samples=3, num_shifts=5, seed=1, batch_size=4))

    assert [sweep.k for sweep in found] == [0, 1, 2]
    for k, s, x in found:
        assert s.tolist() == [-2, -1, 0, 1, 2]
        expected = x[:, 2:3] + s[None, :, None, None, None] * patterns[k]
        torch.testing.assert_close(x, expected)
        assert torch.equal(x[:, 2], found[0].unshifted)
    with pytest.raises(ValueError, match="`shifts` must be odd"):
        list(sweeps(subject, num_samples=3, num_shifts=4, seed=1))


def test_directions_made_as_twins_mirror_twins_and_nothing_are_ranked_as_such(toy, patterns, net):
    a, b, _ = patterns
    made = torch.stack([a, b, 1.1 * a, -0.9 * b, 0 * a])
    state = torch.get_rng_state()
    subject = toy(made, f=lambda h, emb, k, t: torch.zeros_like(h))

    found = sweeps(subject, num_samples=4, num_shifts=5, seed=2)
    ranking = rank(subject, subject.R, net, found, references=40)

    assert torch.equal(torch.get_rng_state(), state)
    of = {r.k: r for r in ranking.directions}
    scores = [r.score for r in ranking.directions]
    assert scores == sorted(scores, reverse=True)
    assert {of[0].twin_of, of[2].twin_of} in ({None, (0, 1)}, {None, (2, 1)})
    assert {of[1].twin_of, of[3].twin_of} in ({None, (1, -1)}, {None, (3, -1)})
    assert of[4].twin_of is None
    assert (of[4].smoothness, of[4].effect, of[4].consistency) == (0, 0, 0)
    assert of[4].score < 0.2
    kept = ranking.directions[:2]
    assert {r.twin_of for r in kept} == {None}
    assert all(r.smoothness > 0.999 and r.consistency > 0.999 for r in kept)


def test_the_file_has_the_format_that_others_read(toy, patterns, net):
    import json

    subject = toy(patterns)
    found = sweeps(subject, num_samples=2, num_shifts=3, seed=2)
    content = rank(subject, subject.R, net, found, references=8).content(7)

    read = json.loads(json.dumps(content, allow_nan=False))

    assert (read["format"], read["step"], read["K"]) == ("hdiscovery-ranking-1", 7, 3)
    assert sorted(row["k"] for row in read["directions"]) == [0, 1, 2]
    assert set(read["directions"][0]) == {"k", "score", *MARKS, "redundancy", "twin_of"}
    assert all(0 <= row["score"] <= 1 for row in read["directions"])


def test_the_cosine_of_shifts_is_over_all_shifted_steps(networks, toy, patterns):
    """dh = v at the first step, then -v for direction 1 and v for direction 0; 999 and 749."""
    seen = []

    def f(h, embedding, k, t):
        seen.append(t)
        turned = torch.where((k == 1) & (t < 999), -0.5, 1.0)
        return turned[:, None, None, None] * torch.ones_like(h)

    found = shift_cosines(toy(patterns, f=f, t_stop=500), num_samples=2, seed=1)

    assert set(seen) == {999, 666}
    assert found[0, 2] == pytest.approx(1)
    assert found[0, 1] == pytest.approx(0.5 / math.sqrt(2 * 1.25), rel=1e-5)
    assert cosines(torch.tensor([[1.0, 0], [0, 0]])).tolist() == [[1, 0], [0, 0]]
