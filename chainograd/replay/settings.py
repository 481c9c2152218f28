"""Torch's global settings: read once, put in force for reruns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from chainograd.torch_internals.modes import default_device
from chainograd.torch_internals.settings import SETTINGS


class Settings(NamedTuple):
    """The values of all settings, and the device that tensors are made on by default."""

    values: tuple[Any, ...]
    device: torch.device | None

    @classmethod
    def now(cls) -> Settings:
        """Return the settings that are in force."""
        return cls(tuple([setting.read() for setting in SETTINGS]), default_device())


@contextmanager
def settings_as(settings: Settings) -> Iterator[None]:
    """Put the given settings in force for a block."""
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
