"""TorchScript: what its modules hold, which is in C++ and not in their ``__dict__``."""

from __future__ import annotations

from typing import Any

import torch

# Note [TorchScript]
# A tensor that C++ holds has one Python object as long as it lives. So a tensor that is found here
# is the very leaf at which a step's graph ends. TorchScript recompiles a module during its first
# runs, so two runs of the plain loop may differ in the last bit.

_C: Any = torch._C
_jit: Any = torch.jit
ScriptMethod: type = _C.ScriptMethod
"""The class of the methods of scripted and traced modules.

Private: `torch._C.ScriptMethod`. Public: none.
"""


def scripted_contents(thing: Any) -> list[Any]:
    """Return the tensors, modules and other attributes of a scripted module, or of its method.

    A traced module has another module among its attributes, which holds everything.

    Private: `torch.jit._recursive.wrap_cpp_module`, `torch._C.ConcreteModuleType`, `_c` of scripted
    modules, and their tables `_parameters`, `_buffers` and `_modules`. Public: none.
    """
    if isinstance(thing, ScriptMethod):
        return [_jit._recursive.wrap_cpp_module(thing.owner)]
    if not isinstance(thing, _jit.RecursiveScriptModule):
        return []
    kind = _C.ConcreteModuleType.from_jit_type(thing._c._type())
    attributes = [thing._c.getattr(name) for name in kind.get_attributes()]
    tables = (thing._parameters, thing._buffers, thing._modules)
    return attributes + [value for table in tables for value in table.values()]
