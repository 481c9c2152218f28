"""The re-scoring matrix: how much each direction changes each probe of the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.evaluation.drawing import save_figure
from hdiscovery.evaluation.probes import Probe
from hdiscovery.evaluation.sweep import Sweep


@dataclass(frozen=True, slots=True)
class Rescoring:
    """How much each direction changes each probe.

    Attributes:
        probes: Names of the probes.
        std: Standard deviation of each probe over unshifted samples.
        matrix: ``[K][P]``: mean change of a probe per unit of s, in units of ``std``.
        class_changes: Per direction, the share of sample ends (s = -S and s = S) whose class
            differs from the class at s = 0; None without a classifier.
        class_slope: ``[K][classes]``: mean change of each class's probability per unit of s; None
            without a classifier.
        samples: Samples that every direction was applied to.
        references: Unshifted samples behind ``std``.
    """

    probes: list[str]
    std: list[float]
    matrix: list[list[float]]
    class_changes: list[float] | None
    class_slope: list[list[float]] | None
    samples: int
    references: int


def rescore(
    subject: DirectionSet,
    probes: Mapping[str, Probe],
    found: Iterable[Sweep],
    *,
    classifier: nn.Module | None = None,
    references: int = 256,
    seed: int = 2,
    batch_size: int = 64,
) -> Rescoring:
    """Return the re-scoring matrix of a subject.

        c_kp = E[s (p(x(s)) - p(x(0)))] / E[s^2] / std(p)

    c_kp is the slope of the straight line through (0, 0), fitted over samples and shifts.

    Args:
        subject: The subject whose directions are measured.
        probes: Functions from images in [-1, 1] to one number per image.
        found: The `sweeps` of all directions.
        classifier: A module from images to logits, in eval mode, or None.
        references: Unshifted samples behind the standard deviations, at least 2.
        seed: Seed of the sweeps; the references take ``seed + 1``.
        batch_size: Images at once.

    Raises:
        ValueError: If a number is out of range.
    """
    if references < 2:
        raise ValueError(f"`references` must be at least 2, got {references}.")
    reference = subject.samples(references, seed=seed + 1, batch_size=batch_size).clamp(-1, 1)
    std = torch.stack([p(reference).float().std() for p in probes.values()])
    matrix, changes, slopes = [], [], []
    N = 0
    for sweep in found:
        N = len(sweep.x)
        images = sweep.x.flatten(0, 1).clamp(-1, 1)
        values = torch.stack([p(images).float() for p in probes.values()], dim=1)
        matrix.append((slope(sweep, values) / std.clamp_min(1e-6)).tolist())
        if classifier is not None:
            change, slope_of_class = _classes(sweep, images, classifier, batch_size)
            changes.append(change)
            slopes.append(slope_of_class)
    return Rescoring(
        list(probes), std.tolist(), matrix, changes or None, slopes or None, N, references
    )


def _classes(
    sweep: Sweep, images: Tensor, classifier: nn.Module, batch_size: int
) -> tuple[float, list[float]]:
    """Return the share of ends with another class than at s = 0, and the classes' slopes."""
    with torch.no_grad():
        parts = [classifier(part).softmax(1) for part in images.split(batch_size)]
    probability = torch.cat(parts)
    digit = probability.argmax(1).view(sweep.x.shape[:2])
    ends = digit[:, [0, -1]] != digit[:, [len(sweep.s) // 2]]
    return ends.float().mean().item(), slope(sweep, probability).tolist()


def slope(sweep: Sweep, values: Tensor) -> Tensor:
    """Return the mean change of ``values [N m, P]`` per unit of s, ``[P]``."""
    v = values.view(*sweep.x.shape[:2], -1)
    change = v - v[:, [len(sweep.s) // 2]]
    s = sweep.s.to(v.dtype)
    return (s[None, :, None] * change).sum((0, 1)) / (len(v) * s.square().sum())


def draw_matrix(rescoring: Rescoring, S: float, path: Path) -> Path:
    """Write the matrix as a picture: one row per direction, one column per probe.

    The picture shows the change of each probe from s = 0 to s = S, in standard deviations.

    Args:
        rescoring: The matrix.
        S: Largest shift.
        path: A ``.png`` file. It is replaced only when the new picture is complete.
    """
    from matplotlib.figure import Figure

    values = torch.tensor(rescoring.matrix) * S
    K, P = values.shape
    changes = rescoring.class_changes
    classes = changes is not None
    figure = Figure(figsize=(2.6 + 0.95 * (P + 1.2 * classes), 1.6 + 0.3 * K), layout="constrained")
    widths = [P, *([1] * classes)]
    wide, *narrow = figure.subplots(1, 1 + classes, squeeze=False, width_ratios=widths)[0]
    limit = max(float(values.abs().max()), 1e-6)
    _heat(wide, values, rescoring.probes, "RdBu_r", (-limit, limit), "{:+.1f}")
    wide.set_ylabel("direction k")
    wide.set_title(f"change from s = 0 to S = {S:g},\nin standard deviations", fontsize=9)
    for axes in narrow:
        _heat(axes, torch.tensor(changes)[:, None], ["class"], "Greys", (0, 1), "{:.0%}")
        axes.set_yticks([])
        axes.set_title("other class\nat -S or S", fontsize=9)
    return save_figure(figure, path)


def _heat(
    axes: Any, values: Tensor, columns: list[str], colours: str, limits: tuple[float, float],
    form: str,
) -> None:  # fmt: skip
    low, high = limits
    axes.imshow(values.numpy(), aspect="auto", cmap=colours, vmin=low, vmax=high)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(values)))
    axes.tick_params(length=0, labelsize=8)
    for k, row in enumerate(values.tolist()):
        for p, value in enumerate(row):
            dark = abs(value) > 0.6 * high
            axes.text(p, k, form.format(value), ha="center", va="center", fontsize=7,
                      color="white" if dark else "black")  # fmt: skip
