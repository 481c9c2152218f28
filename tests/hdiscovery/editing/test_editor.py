"""Editing: what shifts add up to."""

from dataclasses import replace

import pytest
import torch
from hdiscovery.directions.fixed import GlobalDirections
from hdiscovery.editing.editor import edit
from hdiscovery.editing.inversion import generate

D = torch.tensor([[[[1.0, 0], [0, 0]]], [[[0, 0], [0.5, 2]]]], dtype=torch.float64)


def noise(h, t):
    return 0.9 * torch.tanh(h)


def noise_images(n=2):
    return torch.randn(n, 1, 2, 2, generator=torch.Generator().manual_seed(0)).double()


def test_no_strength_is_the_reconstruction(toy, source_of):
    dm = toy(noise)
    x_T = noise_images()

    edited = edit(source_of(dm, GlobalDirections(D)), x_T, [1], torch.zeros(3, 1), num_steps=8)

    expected = generate(dm, x_T, num_steps=8)[:, None].expand(2, 3, 1, 2, 2)
    torch.testing.assert_close(edited, expected, rtol=1e-9, atol=1e-9)


def test_several_directions_at_once_are_their_sum_in_h(toy, source_of):
    dm = toy(noise)
    x_T, s = noise_images(), torch.tensor([[0.3, -0.2]])
    total = GlobalDirections((s[0, 0] * D[0] + s[0, 1] * D[1])[None])

    both = edit(source_of(dm, GlobalDirections(D)), x_T, [0, 1], s, num_steps=4)
    one = edit(source_of(dm, total, K=1), x_T, [0], torch.ones(1, 1), num_steps=4)

    assert (both[:, 0] - generate(dm, x_T, num_steps=4)).abs().max() > 0.1
    torch.testing.assert_close(both, one, rtol=1e-9, atol=1e-9)


def test_every_image_gets_every_edit_whatever_the_batches_are(toy, source_of):
    source = source_of(toy(noise), GlobalDirections(D))
    x_T, s = noise_images(3), torch.tensor([[0.1, 0.0], [0.2, 0.3]])

    edited = edit(source, x_T, [1, 0], s, num_steps=4, batch_size=4)

    for n in range(3):
        for e in range(2):
            alone = edit(source, x_T[n : n + 1], [1, 0], s[e : e + 1], num_steps=4)
            torch.testing.assert_close(edited[n, e], alone[0, 0])


def test_strengths_are_scaled_by_the_steps_of_the_training_over_those_of_the_sampling(
    toy, source_of
):
    source = source_of(toy(noise), GlobalDirections(D), M=4)
    x_T, s = noise_images(), torch.tensor([[0.4]])

    scaled = edit(source, x_T, [0], s, num_steps=16)

    torch.testing.assert_close(scaled, edit(source, x_T, [0], s / 4, num_steps=16, gain=1.0))
    assert not torch.allclose(scaled, edit(source, x_T, [0], s, num_steps=16, gain=1.0))


def test_scaled_edits_of_another_number_of_steps_are_as_strong(toy, source_of):
    # epsilon = h: every shifted step adds the shift once to sqrt(1/alpha_bar - 1) x_0.
    source = source_of(toy(lambda h, t: h), GlobalDirections(D), M=10)
    x_T, s = noise_images(), torch.tensor([[0.01]])

    def change(num_steps, **gain):
        edited = edit(source, x_T, [0], s, num_steps=num_steps, **gain)[:, 0]
        return (edited - generate(source.dm, x_T, num_steps=num_steps)).norm().item()

    assert change(100) == pytest.approx(change(50), rel=0.1)
    assert change(100, gain=1.0) > 1.8 * change(50, gain=1.0)


def test_the_run_s_own_update_is_taken(toy, source_of):
    source = source_of(toy(noise), GlobalDirections(D))
    symmetric = replace(source, sampler=replace(source.sampler, update="symmetric"))
    x_T, s = noise_images(), torch.tensor([[0.4]])

    edits = [edit(of, x_T, [0], s, num_steps=4) for of in (source, symmetric)]

    assert (edits[0] - edits[1]).abs().max() > 0.01


def test_directions_and_strengths_that_do_not_fit_are_refused(toy, source_of):
    source = source_of(toy(noise), GlobalDirections(D))

    with pytest.raises(ValueError, match="Direction 2 in `k` does not exist"):
        edit(source, noise_images(), [0, 2], torch.zeros(1, 2), num_steps=4)
    with pytest.raises(ValueError, match=r"`s` must be \[E, 2\].*got \[1, 3\]"):
        edit(source, noise_images(), [0, 1], torch.zeros(1, 3), num_steps=4)
