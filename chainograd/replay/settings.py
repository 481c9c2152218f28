"""Torch's global settings that decide how a step computes: read once, put in force for reruns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.utils._device as devices

_C: Any = torch._C


class Setting(NamedTuple):
    """A global setting of torch: how it is read and written."""

    read: Callable[[], Any]
    write: Callable[[Any], object]


def _of(getter: str, setter: str) -> Setting | None:
    """Return the setting with these functions of torch, where this version of torch has it."""
    read, write = getattr(_C, getter, None), getattr(_C, setter, None)
    if read is None or write is None:
        return None
    # Some are a pair since torch 2.9.
    return Setting(read, lambda value: write(*value) if isinstance(value, tuple) else write(value))


def _precisions() -> list[Setting | None]:
    """Return the precisions of float32 products; torch up to 2.8 has three switches for them."""
    read, write = (
        getattr(_C, name, None)
        for name in ("_get_fp32_precision_getter", "_set_fp32_precision_setter")
    )
    if read is None or write is None:
        return [
            _of("_get_float32_matmul_precision", "_set_float32_matmul_precision"),
            _of("_get_cudnn_allow_tf32", "_set_cudnn_allow_tf32"),
        ]
    names = [("generic", "all")]
    names += [("cuda", op) for op in ("all", "matmul", "conv", "rnn")]
    names += [("mkldnn", op) for op in ("all", "matmul", "conv", "rnn")]
    return [Setting(partial(read, *name), partial(write, *name)) for name in names]


def _is_deterministic() -> tuple[bool, bool]:
    return _C._get_deterministic_algorithms(), _C._get_deterministic_algorithms_warn_only()


def _make_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _scaled_dot_product() -> list[Setting | None]:
    """Return what `torch.nn.attention.sdpa_kernel` sets."""
    switches = [
        _of(f"_get_{name}_sdp_enabled", f"_set_sdp_use_{name}")
        for name in ("flash", "mem_efficient", "math", "cudnn", "overrideable", "fa3")
    ]
    reduced = ("math_sdp_allow_fp16_bf16_reduction", "_set_math_sdp_allow_fp16_bf16_reduction")
    return [
        *switches,
        _of(f"_get_{reduced[0]}", reduced[1]),
        _of("_get_sdp_priority_order", "_set_sdp_priority_order"),
    ]


SETTINGS: tuple[Setting, ...] = tuple(
    setting
    for setting in (
        Setting(torch.get_default_dtype, torch.set_default_dtype),
        Setting(torch.get_num_threads, torch.set_num_threads),
        Setting(_is_deterministic, _make_deterministic),
        _of("_get_deterministic_fill_uninitialized_memory",
            "_set_deterministic_fill_uninitialized_memory"),
        Setting(torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
        _of("_get_mkldnn_enabled", "_set_mkldnn_enabled"),
        _of("_get_mkldnn_deterministic", "_set_mkldnn_deterministic"),
        _of("_get_nnpack_enabled", "_set_nnpack_enabled"),
        _of("_get_cudnn_enabled", "_set_cudnn_enabled"),
        _of("_get_cudnn_benchmark", "_set_cudnn_benchmark"),
        _of("_get_cudnn_deterministic", "_set_cudnn_deterministic"),
        _of("_get_cublas_allow_fp16_reduced_precision_reduction",
            "_set_cublas_allow_fp16_reduced_precision_reduction"),
        _of("_get_cublas_allow_bf16_reduced_precision_reduction",
            "_set_cublas_allow_bf16_reduced_precision_reduction"),
        _of("_get_cublas_allow_fp16_accumulation", "_set_cublas_allow_fp16_accumulation"),
        *_precisions(),
        *_scaled_dot_product(),
    )
    if setting is not None
)  # fmt: skip


class Settings(NamedTuple):
    """The settings that are in force, and the device that tensors are made on by default."""

    values: tuple[Any, ...]
    device: torch.device | None

    @classmethod
    def now(cls) -> Settings:
        """Return what is in force."""
        return cls(tuple([setting.read() for setting in SETTINGS]), devices.CURRENT_DEVICE)


@contextmanager
def set_as(settings: Settings) -> Iterator[None]:
    """Put settings in force for a block, and back."""
    now = Settings.now()
    changed = [
        (setting, before, wanted)
        for setting, before, wanted in zip(SETTINGS, now.values, settings.values, strict=True)
        if before != wanted
    ]
    with ExitStack() as stack:
        if settings.device != now.device:
            stack.enter_context(torch.device(settings.device or "cpu"))
        for setting, before, wanted in changed:
            setting.write(wanted)
            stack.callback(setting.write, before)
        yield
