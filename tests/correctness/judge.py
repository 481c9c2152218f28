"""Judges a case run in one way: right, right to rounding, an exception, or silently wrong."""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from tests.correctness.case import Case, Values
from tests.correctness.ways import Way, ours

ROOT = Path(__file__).resolve().parents[2]
ROUNDING = 1e-5  # of the size of a float32 gradient
SEVERITY = ("right", "right*", "raises (as the loop)", "raises", "silently wrong")


@dataclass(frozen=True)
class Outcome:
    """One of `SEVERITY`, and what is behind it: an exception, or what differs by how much."""

    kind: str
    detail: str = ""

    @property
    def severity(self) -> int:
        """Larger is worse."""
        return SEVERITY.index(self.kind)


@dataclass(frozen=True)
class Seen:
    """What came out of a case in one way."""

    values: Values | None  # None where it raised
    error: Exception | None = None
    warned: frozenset[str] = frozenset()  # by torch, of its own accord


@contextlib.contextmanager
def clean() -> Iterator[list[warnings.WarningMessage]]:
    """Seed every random stream, and leave streams, warnings and the compiler as they were."""
    streams = torch.get_rng_state(), numpy.random.get_state(), random.getstate()
    torch.manual_seed(0)
    numpy.random.seed(0)
    random.seed(0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            yield warned
        finally:
            if "torch._dynamo" in sys.modules:
                torch._dynamo.reset()
            torch.clear_autocast_cache()
            torch.set_rng_state(streams[0])
            numpy.random.set_state(streams[1])
            random.setstate(streams[2])


def seen(case: Case, way: Way) -> Seen:
    """Return what a case's values are in a way, or what it raised."""
    values, raised = None, None
    with clean() as warned:
        try:
            values = case.run(way)
        except Exception as error:
            raised = error.with_traceback(None)  # its frames hold the tensors of the run
    told = frozenset(str(w.message) for w in warned if w.category is UserWarning)
    return Seen(values, raised, told)


def right(case: Case) -> list[Seen]:
    """Return what is right for a case, in each of its oracles."""
    return [seen(case, oracle) for oracle in case.oracles]


def judged(oracles: Sequence[Seen], way: Seen) -> Outcome:
    """Compare what a way saw with what the oracles saw; to equal one of them is right."""
    return min((_against(oracle, way) for oracle in oracles), key=lambda o: o.severity)


def _against(oracle: Seen, way: Seen) -> Outcome:
    if way.values is None:
        as_loop = oracle.values is None
        return Outcome("raises (as the loop)" if as_loop else "raises", described(way.error))
    if oracle.values is None:
        return Outcome("silently wrong", "a gradient where the loop raises")
    apart = {name: difference(oracle.values[name], way.values[name]) for name in oracle.values}
    worst = max(apart, key=lambda name: apart[name])
    if apart[worst] == 0:
        return Outcome("right")
    if apart[worst] < ROUNDING:
        return Outcome("right*", f"{worst} off by {apart[worst]:.1g}")
    warned = ", with a warning" if way.warned - oracle.warned else ""
    detail = f"{_told(worst, oracle.values[worst], way.values[worst], apart[worst])}{warned}"
    return Outcome("silently wrong", detail)


def _told(name: str, expected: Any, value: Any, apart: float) -> str:
    if value is None:
        return f"no gradient for {name}"
    if expected is None:
        return f"a gradient for {name} where the loop has none"
    return f"{name} off by {apart:.1g}" if apart != float("inf") else f"another {name}"


def difference(expected: Any, value: Any) -> float:
    """Return 0 for equal bits, else the distance relative to what is expected, or infinity."""
    if not isinstance(expected, Tensor) or not isinstance(value, Tensor):
        same = expected is value or (value is not None and expected == value)
        return 0.0 if same else float("inf")
    expected, value = (
        t.detach().to_dense() if t.is_sparse else t.detach() for t in (expected, value)
    )
    if expected.shape != value.shape or expected.dtype != value.dtype:
        return float("inf")
    if torch.equal(expected, value):
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    apart = ((value.to(wide) - expected.to(wide)).norm() / expected.to(wide).norm()).item()
    return apart if apart == apart else float("inf")


def described(error: Exception | None) -> str:
    """Return the type of an exception and the first sentence of what it says."""
    text = " ".join(str(error).split()).replace(f"{ROOT}/", "")
    sentence = text.partition(". ")[0]
    return f"{type(error).__name__}: {sentence[:160]}"


def of_ours(case: Case, oracles: Sequence[Seen] | None = None) -> dict[str, Outcome]:
    """Return what comes of a case in each of this library's ways."""
    oracles = right(case) if oracles is None else oracles
    with tempfile.TemporaryDirectory() as folder:
        return {way.name: judged(oracles, seen(case, way)) for way in ours(Path(folder))}


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst of several outcomes."""
    return max(outcomes, key=lambda outcome: outcome.severity)
