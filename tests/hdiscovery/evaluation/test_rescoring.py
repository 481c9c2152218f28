"""The re-scoring matrix of directions whose effect on a probe is known."""

import pytest
import torch
from hdiscovery.evaluation.rescoring import draw_matrix, rescore
from hdiscovery.evaluation.sweep import sweeps
from torch import nn


class Dark(nn.Module):
    """Two classes: is the left upper quarter dark?"""

    def forward(self, x):
        light = 1e3 * x[..., :4, :4].mean((1, 2, 3))
        return torch.stack([light, -light], dim=1)


def quarter(x):
    return x[..., :4, :4].mean((1, 2, 3))


def test_the_matrix_is_the_change_per_unit_of_s_in_standard_deviations(toy, patterns):
    subject = toy(0.04 * patterns)
    probes = {"quarter": quarter, "other": lambda x: x[..., 4:, 4:].mean((1, 2, 3))}

    swept = sweeps(subject, num_samples=4, num_shifts=5, seed=1)
    found = rescore(subject, probes, swept, references=64, seed=1)

    std = quarter(subject.samples(64, seed=2).clamp(-1, 1)).std().item()
    assert found.probes == ["quarter", "other"]
    assert found.std[0] == pytest.approx(std)
    # 0.04 * 0.25 on every pixel of the quarter; a few pixels are beyond 1 and clamped
    assert found.matrix[0][0] == pytest.approx(0.01 / std, rel=0.01)
    assert found.matrix[0][1] == pytest.approx(0, abs=1e-6)
    assert found.matrix[2][1] > 0
    assert found.class_changes is None


def test_a_class_that_changes_at_either_end_is_counted(toy, patterns):
    subject = toy(2 * patterns)
    swept = sweeps(subject, num_samples=6, num_shifts=3, seed=2)

    found = rescore(subject, {"quarter": quarter}, swept, classifier=Dark(), references=8)

    # +-2 * 2 * 0.25 = 1 on the quarter makes it light at one end and dark at the other.
    assert found.class_changes == [0.5, 0.0, 0.0]
    assert found.class_slope[0][0] == pytest.approx(0.25, abs=1e-3)  # from 0 to 1 over 4
    assert found.class_slope[0][1] == pytest.approx(-0.25, abs=1e-3)


def test_the_picture_is_written_with_and_without_classes(toy, patterns, tmp_path):
    for classifier in (None, Dark()):
        swept = sweeps(toy(patterns), num_samples=2, num_shifts=3, seed=2)
        found = rescore(
            toy(patterns), {"quarter": quarter}, swept, classifier=classifier, references=8
        )

        path = draw_matrix(found, 2.0, tmp_path / "probes.png")

        assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["probes.png"]
