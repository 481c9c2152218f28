"""What a preflight finds: one line each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
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
    """One thing that a preflight found.

    Attributes:
        kind: What it is, in a word or two.
        step: The step's index; None for the loss and for what concerns all steps.
        where: ``file:line`` in the caller's code; None if there is no such line.
        text: What is the matter and what to do about it, in one line.
    """

    kind: Kind
    step: int | None
    where: str | None
    text: str

    def __str__(self) -> str:
        """Return it in one line."""
        step = None if self.step is None else f"step {self.step}"
        place = ", ".join(part for part in (step, self.where) if part)
        return f"{self.kind} ({place}): {self.text}" if place else f"{self.kind}: {self.text}"


class Findings(tuple[Finding, ...]):
    """What `CheckpointedChain.check` found: a tuple, empty (and so false) if all is well.

    Printed, it is a line a finding, or one that says what was looked at and found good.

    Attributes:
        good: That line.
    """

    good: str

    def __new__(cls, found: Iterable[Finding], good: str = "") -> Findings:
        """Return the findings, each once: of those alike but for the step, the first."""
        first: dict[tuple[object, ...], Finding] = {}
        for finding in found:
            first.setdefault((finding.kind, finding.where, finding.text), finding)
        findings = super().__new__(cls, first.values())
        findings.good = good
        return findings

    def __str__(self) -> str:
        """Return a line a finding, or the line that says that all is well."""
        return "\n".join(map(str, self)) or self.good

    __repr__ = __str__
