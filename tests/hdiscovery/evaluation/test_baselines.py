"""Baselines are as strong as what they are compared with, and are what they say."""

import pytest
import torch
from hdiscovery.directions.open import directions_of
from hdiscovery.dm.walk import trajectory
from hdiscovery.evaluation.baselines import (
    FixedDirections,
    baseline,
    jacobian_directions,
    learnt_norms,
    principal_components,
    spread_norms,
)


@pytest.fixture(scope="module")
def subject(networks):
    return directions_of(networks)


@pytest.mark.parametrize("name", ["random", "pca", "jacobian"])
def test_a_baseline_goes_as_far_as_the_run_at_every_shifted_step(networks, subject, name):
    norms = learnt_norms(subject)
    state = torch.get_rng_state()

    directions = baseline(name, subject, norms=norms, num_samples=8)

    assert torch.equal(torch.get_rng_state(), state)
    assert sorted(norms) == [666, 999]
    h = torch.randn(3, 32, 4, 4)
    for t, r in norms.items():
        dh = directions(h, torch.zeros(3, 128), torch.tensor([0, 1, 2]), t)
        torch.testing.assert_close(dh.flatten(1).norm(dim=1), torch.full((3,), r))
    other = subject.with_f(directions, name=name)
    assert learnt_norms(other) == pytest.approx(norms)
    assert (other.R, other.name, other.K) == (None, name, 3)


def test_a_subject_of_other_directions_is_shifted_along_them(networks, subject):
    vectors = torch.randn(3, 32, 4, 4)
    other = subject.with_f(FixedDirections(vectors, {666: 9.0, 999: 9.0}), name="random")
    x_T, k, s = torch.randn(2, 1, 8, 8), torch.tensor([0, 2]), torch.tensor([1.0, -2.0])

    with torch.no_grad():
        apart = (other.shifted(x_T, k, s) - subject.real(x_T)).abs().amax()
        still = (other.shifted(x_T, k, 0 * s) - subject.real(x_T)).abs().amax()

    assert apart > 1e-2
    assert still < 1e-4


def test_random_directions_depend_on_the_seed_alone(subject):
    norms = {999: 1.0, 666: 1.0}
    a, b, c = (baseline("random", subject, norms=norms, seed=seed).vectors for seed in (1, 1, 2))

    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.flatten(2).norm(dim=2).flatten().tolist() == pytest.approx([1, 1, 1])


def test_components_are_the_singular_vectors_of_the_whole_way(subject):
    found = principal_components(subject, 12, seed=1)

    nodes = trajectory(subject.dm, subject.grid, subject.noise(12, seed=1), t_stop=subject.t_stop)
    X = torch.cat([node.h.flatten(1) for node in nodes], dim=1)
    _, _, expected = torch.linalg.svd(X - X.mean(0), full_matrices=False)
    V = torch.cat([found[t].flatten(1) for t in (999, 666)], dim=1)
    cosine = (V * expected[:3]).sum(1).abs()
    assert cosine.tolist() == pytest.approx([1, 1, 1], abs=1e-3)


def test_jacobian_directions_are_what_the_predicted_image_answers_to_most(subject):
    found = jacobian_directions(subject, 2, seed=1, iterations=30).flatten(1)

    nodes = list(subject.trajectory(subject.noise(2, seed=1)))
    node = nodes[1]  # of 999 and 666, the later
    _, h, encoded = node.t, node.h, node.encoded
    J = torch.autograd.functional.jacobian(
        lambda h: subject.dm.unet.decode(h, encoded)[:, :1], h, vectorize=True
    )
    gram = sum(J[n, ..., n, :, :, :].flatten(0, 2).flatten(1).mT @
               J[n, ..., n, :, :, :].flatten(0, 2).flatten(1) for n in range(2)) / 2  # fmt: skip
    values, vectors = torch.linalg.eigh(gram.double())
    assert (found @ found.mT - torch.eye(3)).abs().max() < 1e-5
    caught = (found.double() @ gram.double() @ found.double().mT).trace()
    assert caught == pytest.approx(values[-3:].sum().item(), rel=0.02)
    assert (found[0].double() @ vectors[:, -1]).abs() > 0.98


def test_without_a_run_the_strength_is_that_of_hs_own_spread(subject):
    nodes = trajectory(subject.dm, subject.grid, subject.noise(64, seed=3), t_stop=subject.t_stop)
    first = next(nodes)

    expected = (first.h - first.h.mean(0)).flatten(1).norm(dim=1).mean().item()

    assert spread_norms(subject)[999] == pytest.approx(expected)


def test_an_unknown_baseline_names_those_there_are(subject):
    with pytest.raises(ValueError, match=r"'axes' is unknown\. Choose from random, pca, jacobian"):
        baseline("axes", subject, norms={999: 1.0})  # pyright: ignore[reportArgumentType]
