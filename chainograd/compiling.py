"""Keeping torch.compile out of the engine: a graph break around a chain."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def eager(method: Method) -> Method:
    """Return the method as one that torch.compile neither traces nor compiles.

    `torch.compiler.disable` does that, and imports torch's compiler, which takes seconds; here that
    happens only where the compiler is there already.
    """

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None:
            return method(*args, **kwargs)
        return dynamo.disable(method)(*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]  # callers are not traced into it
    return run  # type: ignore[return-value]
