"""Modules: the tables that they keep their buffers and inner modules in."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from torch import Tensor
from torch.nn import Module
from torch.nn.modules import batchnorm

buffers_of: Callable[[Module], dict[str, Tensor | None]] = attrgetter("_buffers")
"""Return the table of a module's own buffers, which may be changed.

Private: `torch.nn.Module._buffers`. Public: `named_buffers(recurse=False)` reads and
`register_buffer` writes, each in Python and several times slower.
"""

modules_of: Callable[[Module], dict[str, Module | None]] = attrgetter("_modules")
"""Return the table of the modules right inside a module.

Private: `torch.nn.Module._modules`. Public: `named_children()`, which leaves out repeated modules.
"""

Norm = batchnorm._NormBase
"""The base class of all batch norms and instance norms, which keep running statistics.

Private: `torch.nn.modules.batchnorm._NormBase`. Public: none; the classes could be listed.
"""


def called_attribute(module: Module) -> str:
    """Return the name of the attribute that a call of a module runs inside the module's hooks.

    `module.compile()` sets an attribute of its own, which runs hooks and `forward` compiled.

    Private: `torch.nn.Module._compiled_call_impl`. Public: none; `forward` is.
    """
    return "forward" if module._compiled_call_impl is None else "_compiled_call_impl"
