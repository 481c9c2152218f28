"""A dict whose keys are tensors, and which forgets an entry when its tensor dies."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

Value = TypeVar("Value")


class WeakTensorDict(Generic[Value]):
    """Values by tensors. A tensor is told by its identity, not by its numbers.

    Torch's own `torch.utils.weak.WeakTensorKeyDictionary` takes several times as long to look up a
    tensor, which happens after every addition and multiplication of a step.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Value]] = {}

    def __setitem__(self, tensor: Tensor, value: Value) -> None:
        key, table = id(tensor), weakref.ref(self)

        def forget(_: Any) -> None:
            held = table()
            if held is not None:
                held._entries.pop(key, None)

        self._entries[key] = weakref.ref(tensor, forget), value

    def get(self, thing: Any) -> Value | None:
        """Return the value of a tensor; None if the thing is not a key."""
        reference, value = self._entries.get(id(thing), (None, None))
        return value if reference is not None and reference() is thing else None
