"""torch.compile: code that it must leave alone, and what it leaves on functions it compiled."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])

INTERNAL_MODULES = (
    "torch._dynamo", "torch._inductor", "torch._functorch", "torch._subclasses", "torch.fx",
)  # fmt: skip
"""Beginnings of the names of modules whose objects are a compiler's own: graphs, guards, examples.

Private: the modules. Public: none.
"""

INNER_MODULE = "_orig_mod"
"""The name under which a compiled module keeps the module that it was made of.

Private: `torch._dynamo.OptimizedModule._orig_mod`. Public: none.
"""


def eager(method: Method) -> Method:
    """Return the method as one that torch.compile neither traces nor compiles.

    `torch.compiler.disable` does that, and imports torch's compiler, which takes seconds. Here that
    happens only if the compiler has been imported already.

    Private: `torch._dynamo.disable`, the mark `_torchdynamo_disable` of functions. Public:
    `torch.compiler.disable`.
    """

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        dynamo = sys.modules.get("torch._dynamo")
        if dynamo is None:
            return method(*args, **kwargs)
        return dynamo.disable(method)(*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]  # callers are not traced into it
    return run  # type: ignore[return-value]


def is_compiled(function: Any) -> bool:
    """Return whether torch.compile made a function.

    A compiled module has such a function among its attributes: its ``forward``, or what calls of
    the module go to.

    Private: the marks `_torchdynamo_orig_callable` and `_torchdynamo_disable` of functions. Public:
    none.
    """
    # A function that `torch.compiler.disable` returns has the first mark too.
    marks = vars(function)
    return "_torchdynamo_orig_callable" in marks and "_torchdynamo_disable" not in marks


def uses_cuda_graphs(function: Any) -> bool:
    """Return whether a compiled function is replayed as a CUDA graph.

    In the modes ``"reduce-overhead"`` and ``"max-autotune"`` it is.

    Private: `get_compiler_config` of compiled functions, its key `triton.cudagraphs`. Public: none.
    """
    tell = getattr(function, "get_compiler_config", None)
    config = tell() if callable(tell) else None
    return isinstance(config, dict) and bool(config.get("triton.cudagraphs"))
