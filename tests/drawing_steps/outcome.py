"""The outcome of a draw: the loop's results, a refusal, or a difference."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chainograd import ChainError
from tests.drawing_steps.draw import Draw
from tests.drawing_steps.problem import Problem, undisturbed

# torch's own, not of the chain.
HARMLESS = ("LSTM with projections is not supported with oneDNN", "In CPU autocast, but")

UNREPEATED = "torch's kernels do not repeat their results"


class Outcome(NamedTuple):
    """What came of a draw.

    Attributes:
        kind: "right", "refused" (as it may be), "void" (the loop itself raises) or a failure.
        text: The error, or what differs and by how much.
    """

    kind: str
    text: str = ""

    @property
    def failed(self) -> bool:
        """Whether the chain gives neither the loop's gradient nor a refusal that is due."""
        return self.kind not in ("right", "refused", "void")


def outcome(drawn: Draw) -> Outcome:
    """Run a draw as the plain loop and as a chain, and compare."""
    with undisturbed(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for text in HARMLESS:
            warnings.filterwarnings("ignore", message=text)
        try:
            expected = _looped(drawn)
        except Exception as error:
            return Outcome("void", _named(error))
        found = _compared(drawn, expected)
        if found.failed and different(drawn, expected, _looped(drawn)):
            return Outcome("void", UNREPEATED)
        return found


def _looped(drawn: Draw) -> dict[str, Any]:
    problem = Problem(drawn)
    return problem.results(problem.loop)


def _compared(drawn: Draw, expected: dict[str, Any]) -> Outcome:
    """Run a draw as a chain, and compare it with the results of the plain loop."""
    problem = Problem(drawn)
    try:
        with tempfile.TemporaryDirectory() as folder:
            got = problem.results(lambda: problem.chain(Path(folder)))
    except ChainError as error:
        return Outcome("refused" if drawn.may_be_refused else type(error).__name__, str(error))
    except Exception as error:
        return Outcome(f"crash: {_named(error)}", str(error))
    for name in sorted(expected.keys() ^ got.keys()):
        which = "loop" if name in expected else "chain"
        return Outcome(f"{_general(name)} of the {which} alone", name)
    off = different(drawn, expected, got)
    if off:
        kind = "differs: " + ", ".join(sorted({_general(name) for name in off}))
        return Outcome(kind, "; ".join(f"{n} by {_distance(expected[n], got[n])}" for n in off))
    return Outcome("right")


def different(drawn: Draw, expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Return the names of the results that differ, of those that a chain promises."""
    ignored = {"strides"} if drawn.micro_batch is not None else set()
    if drawn.fault == "unnamed generator":  # which the chain cannot put back
        ignored |= {"streams", "streams after the forward pass"}
    return [
        name
        for name in expected
        if name not in ignored and not same(expected[name], got.get(name), exact=drawn.exact)
    ]


def same(a: Any, b: Any, *, exact: bool = True) -> bool:
    """Return whether two results are equal, tensors to the bit where that is asked for."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y, exact=exact) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        room = 0.0 if exact else 1e-9
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(
            a, b, rtol=room, atol=room, equal_nan=True
        )  # fmt: skip
    return type(a) is type(b) and a == b


def shrunk(drawn: Draw) -> Draw:
    """Return the plainest draw near to this one that fails in the same way."""
    kind = outcome(drawn).kind
    while True:
        for plainer in drawn.plainer():
            if outcome(plainer).kind == kind:
                drawn = plainer
                break
        else:
            return drawn


def _distance(a: Any, b: Any) -> str:
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return "; ".join(_distance(x, y) for x, y in zip(a, b, strict=True) if not same(x, y))
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape:
        size = a.double().abs().max().clamp(min=1e-30)
        return f"{float((a.double() - b.double()).abs().max() / size):.1e}"
    return f"{_short(a)} and {_short(b)}"


def _short(value: Any) -> str:
    return f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else str(value)[:200]


def _general(name: str) -> str:
    """Return the name of a result without what is particular to a draw."""
    name = re.sub(r"what hook \d+ heard of .*", "what hooks heard", name)
    name = re.sub(r", \d+ more", "", name)
    return re.sub(r"gradient of (?!x$|c$).*", "gradient of parameters", name)


def _named(error: Exception) -> str:
    text = re.sub(r"[-+]?\d[\d.e+-]*", "0", str(error).partition("\n")[0])
    return f"{type(error).__name__}: {text[:90]}"


def grouped(failures: dict[int, tuple[Draw, Outcome]]) -> str:
    """Return failures in groups of a kind, the largest first, each with its plainest draw."""
    groups: dict[str, list[int]] = defaultdict(list)
    for seed, (_, found) in failures.items():
        groups[found.kind].append(seed)
    lines = []
    for kind, seeds in sorted(groups.items(), key=lambda item: -len(item[1])):
        plain = min((shrunk(failures[seed][0]) for seed in seeds[:3]), key=lambda d: len(str(d)))
        lines += [
            f"{len(seeds)} x {kind}",
            f"    seeds {', '.join(map(str, seeds[:12]))}{', …' if len(seeds) > 12 else ''}",
            f"    plainest: {plain}",
            f"    {outcome(plain).text[:400]}",
            f"    again: python -m tests.drawing_steps --one {plain.seed}",
        ]
    return "\n".join(lines)
