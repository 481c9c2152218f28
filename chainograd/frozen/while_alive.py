"""What is known of tensors, for as long as these are alive."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

Known = TypeVar("Known")


class WhileAlive(Generic[Known]):
    """Things that are known of tensors. They are let go with the tensor."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Known]] = {}

    def put(self, tensor: Tensor, known: Known) -> None:
        """Note what is known of a tensor."""
        key, table = id(tensor), weakref.ref(self)

        def forget(_: Any) -> None:
            held = table()
            if held is not None:
                held._known.pop(key, None)

        self._known[key] = weakref.ref(tensor, forget), known

    def of(self, thing: Any) -> Known | None:
        """Return what is known of a thing, if it is such a tensor."""
        reference, known = self._known.get(id(thing), (None, None))
        return known if reference is not None and reference() is thing else None
