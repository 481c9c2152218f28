"""What a chain does about torch.compile: kept out of the engine, and of the meter on a CPU."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from chainograd.tensors.devices import is_accelerator

Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def metered(device: torch.device, *, compiled: bool) -> Iterator[None]:
    """Let compiled code run as it was written where bytes are counted operation by operation.

    Without an allocator to ask, as on a CPU, the meter follows operations, which torch.compile does
    not run under. The bytes are then those of the code as it was written, which are more.
    """
    if compiled and not is_accelerator(device):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


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
