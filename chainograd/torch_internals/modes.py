"""Modes that see every operation, and fake tensors, which have shapes and no values."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.overrides as overrides
from torch._subclasses import fake_tensor
from torch.utils import _device, _mode_utils, _python_dispatch

DispatchMode = _python_dispatch.TorchDispatchMode
"""The class of modes that see every operation below autograd.

Private: `torch.utils._python_dispatch.TorchDispatchMode`. Public: none.
"""


class LightDispatchMode(DispatchMode):
    """The same, without the mark that makes torch.compile leave `__torch_dispatch__` alone.

    With the mark, the first operation that a mode sees imports torch's compiler, which takes
    seconds, and each operation takes some microseconds more. Nothing is lost: where a dispatch mode
    is in force, torch.compile leaves all code alone.

    Private: `torch.utils._python_dispatch.TorchDispatchMode._should_skip_dynamo`. Public: none.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


no_dispatch: Callable[[], AbstractContextManager[None]] = _mode_utils.no_dispatch
"""Return a context that dispatch modes do not see: under FakeTensorMode, tensors are real in it.

Private: `torch.utils._mode_utils.no_dispatch`. Public: none.
"""

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""Return how many dispatch modes are in force.

Private: `torch._C._len_torch_dispatch_stack`. Public: none.
"""

function_modes: Callable[[], list[overrides.TorchFunctionMode]] = (
    overrides._get_current_function_mode_stack
)
"""Return the modes in force that see every call of a function of torch, the innermost last.

Private: `torch.overrides._get_current_function_mode_stack`. Public: none.
"""

DeviceContext = _device.DeviceContext
"""The class of the function mode that `with torch.device(…)` and `torch.set_default_device` enter.

Private: `torch.utils._device.DeviceContext`. Public: none.
"""


def default_device() -> torch.device | None:
    """Return the device that new tensors are made on by default; None if no default was set.

    Not `torch.utils._device.CURRENT_DEVICE`, which `with torch.device(…)` leaves as it was.

    Private: `torch.utils._device.DeviceContext`. Public: `torch.get_default_device`, which does not
    tell whether a default was set, and makes a tensor to learn the index of the device.
    """
    set_by = (mode for mode in reversed(function_modes()) if isinstance(mode, DeviceContext))
    return next((mode.device for mode in set_by), None)


def is_fake(thing: object) -> bool:
    """Return whether a thing is a fake tensor.

    Private: `torch._subclasses.fake_tensor.FakeTensor`. Public: none.
    """
    return isinstance(thing, fake_tensor.FakeTensor)


def makes_fakes() -> bool:
    """Return whether tensors that are made now are fake.

    Private: `torch.utils._python_dispatch._get_current_dispatch_mode_stack`,
    `torch._subclasses.fake_tensor.FakeTensorMode`. Public: none.
    """
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    return any(isinstance(mode, fake_tensor.FakeTensorMode) for mode in modes)
