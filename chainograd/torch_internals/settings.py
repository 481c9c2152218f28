"""Torch's global settings that decide how a step computes: how each is read and written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

_C: Any = torch._C

any_autocast: Callable[[], bool] = _C._is_any_autocast_enabled
"""Return whether autocast is enabled for any type of device.

Private: `torch._C._is_any_autocast_enabled`. Public: `torch.is_autocast_enabled(device_type)`, for
one type of device at a time.
"""


class Setting(NamedTuple):
    """A global setting of torch: how it is read and written.

    Private: see `SETTINGS`. Public: see `SETTINGS`.
    """

    read: Callable[[], Any]
    write: Callable[[Any], object]


def _setting(getter: str, setter: str) -> Setting | None:
    """Return the setting with these functions of `torch._C`; None if this torch lacks them."""
    read, write = getattr(_C, getter, None), getattr(_C, setter, None)
    if read is None or write is None:
        return None
    # Since torch 2.9 some settings are a pair of values.
    return Setting(read, lambda value: write(*value) if isinstance(value, tuple) else write(value))


def _precisions() -> list[Setting | None]:
    """Return the precisions of float32 products; torch up to 2.8 has three switches for them."""
    read, write = (
        getattr(_C, name, None)
        for name in ("_get_fp32_precision_getter", "_set_fp32_precision_setter")
    )
    if read is None or write is None:
        return [
            _setting("_get_float32_matmul_precision", "_set_float32_matmul_precision"),
            _setting("_get_cudnn_allow_tf32", "_set_cudnn_allow_tf32"),
        ]
    names = [("generic", "all")]
    names += [("cuda", op) for op in ("all", "matmul", "conv", "rnn")]
    names += [("mkldnn", op) for op in ("all", "matmul", "conv", "rnn")]
    return [Setting(partial(read, *name), partial(write, *name)) for name in names]


def _attention_kernels() -> list[Setting | None]:
    """Return what `torch.nn.attention.sdpa_kernel` sets."""
    kernels = ("flash", "mem_efficient", "math", "cudnn", "overrideable", "fa3")
    reduction = "math_sdp_allow_fp16_bf16_reduction"
    return [
        *(_setting(f"_get_{name}_sdp_enabled", f"_set_sdp_use_{name}") for name in kernels),
        _setting(f"_get_{reduction}", f"_set_{reduction}"),
        _setting("_get_sdp_priority_order", "_set_sdp_priority_order"),
    ]


def _is_deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), (
        torch.is_deterministic_algorithms_warn_only_enabled()
    )


def _make_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


_SWITCHES = (
    "deterministic_fill_uninitialized_memory",
    "mkldnn_enabled",
    "mkldnn_deterministic",
    "nnpack_enabled",
    "cudnn_enabled",
    "cudnn_benchmark",
    "cudnn_deterministic",
    "cublas_allow_fp16_reduced_precision_reduction",
    "cublas_allow_bf16_reduced_precision_reduction",
    "cublas_allow_fp16_accumulation",
)
SETTINGS: tuple[Setting, ...] = tuple(
    setting
    for setting in (
        Setting(torch.get_default_dtype, torch.set_default_dtype),
        Setting(torch.get_num_threads, torch.set_num_threads),
        Setting(_is_deterministic, _make_deterministic),
        Setting(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        *(_setting(f"_get_{name}", f"_set_{name}") for name in _SWITCHES),
        *_precisions(),
        *_attention_kernels(),
    )
    if setting is not None
)
"""The settings that this version of torch has, of those that decide how a step computes.

Private: pairs `_get_*` and `_set_*` of `torch._C`. Public: attributes of `torch.backends.*`, which
take longer to read; `fp32_precision` since torch 2.9.
"""


def caches_parametrizations() -> bool:
    """Return whether a block of `torch.nn.utils.parametrize.cached` is open.

    Private: `torch.nn.utils.parametrize._cache_enabled`. Public: none.
    """
    parametrize: Any = sys.modules.get("torch.nn.utils.parametrize")
    return parametrize is not None and parametrize._cache_enabled > 0


@contextmanager
def uncached_parametrizations() -> Iterator[None]:
    """Let `torch.nn.utils.parametrize.cached` cache nothing in a block.

    A weight that two steps shared would tie their graphs together.

    Private: `torch.nn.utils.parametrize._cache_enabled` and `_cache`. Public: none.
    """
    if not caches_parametrizations():
        yield
        return
    parametrize: Any = sys.modules["torch.nn.utils.parametrize"]
    depth, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = depth, cache
