"""What TorchScript modules hold, which is in C++ and not in their ``__dict__``."""

from __future__ import annotations

from typing import Any

import torch

# Note [TorchScript]
# A tensor that C++ holds has one Python object as long as it lives, so what is found here is the
# very leaf that a step's graph ends at. TorchScript itself compiles a module anew in its first
# runs, so there a plain loop need not repeat its own last bit.

_jit: Any = torch.jit
ScriptMethod: type = torch._C.ScriptMethod


def scripted_parts(thing: Any) -> list[Any]:
    """Return the tensors, modules and other attributes of a TorchScript module, or of a method's.

    A module that tracing made has another among its attributes, which holds what there is.
    """
    if isinstance(thing, ScriptMethod):
        return [_jit._recursive.wrap_cpp_module(thing.owner)]
    if not isinstance(thing, _jit.RecursiveScriptModule):
        return []
    kind: Any = torch._C.ConcreteModuleType.from_jit_type(thing._c._type())
    attributes = [thing._c.getattr(name) for name in kind.get_attributes()]
    held = (thing._parameters, thing._buffers, thing._modules)
    return attributes + [value for table in held for value in table.values()]
