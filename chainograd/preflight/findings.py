"""Findings of `chain.check`, one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FindingKind = Literal[
    "nothing to train",
    "captured tensor",
    "kept tensor",
    "no gradient",
    "gradients off",
    "detached",
    "partly detached",
    "dropout",
    "batch norm",
    "noise",
    "unknown generator",
    "changed in place",
    "not repeatable",
    "not finite",
    "gradient dies",
    "not exact",
    "refused",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem that `CheckpointedChain.check` found.

    Attributes:
        kind: The problem in a word or two.
        step: Index of the step; None for the loss and for problems of all steps.
        where: ``file:line`` in the caller's code; None if there is no such line.
        text: The problem and the way out, in one line.
    """

    kind: FindingKind
    step: int | None
    where: str | None
    text: str

    def __str__(self) -> str:
        """Return the finding in one line."""
        step = None if self.step is None else f"step {self.step}"
        place = ", ".join(part for part in (step, self.where) if part)
        return f"{self.kind} ({place}): {self.text}" if place else f"{self.kind}: {self.text}"


class Findings(tuple[Finding, ...]):
    """The findings of `CheckpointedChain.check`: a tuple, empty (and false) if all is well.

    Printed, it has one line for each finding. Without findings, it has one line that says what was
    checked.

    Attributes:
        good: The line for no findings.
    """

    good: str

    def __new__(cls, found: Iterable[Finding], good: str = "") -> Findings:
        """Return each finding once: of findings that differ only in their step, the first."""
        first: dict[tuple[object, ...], Finding] = {}
        for finding in found:
            first.setdefault((finding.kind, finding.where, finding.text), finding)
        findings = super().__new__(cls, first.values())
        findings.good = good
        return findings

    def __str__(self) -> str:
        """Return one line for each finding, or the line for no findings."""
        return "\n".join(map(str, self)) or self.good

    __repr__ = __str__
