"""State dicts of ADM's UNet: loaded strictly, and refused with what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from hdiscovery.dm.adm_unet import ADMUNet


def load_state(unet: ADMUNet, state: dict[str, Tensor], source: Path | str) -> None:
    """Load a state dict strictly; a misfit says what was expected and what was found.

    Raises:
        ValueError: If keys or shapes differ.
    """
    check_state(unet, state, source)
    unet.load_state_dict(state)


def check_state(unet: ADMUNet, state: Mapping[str, Tensor], source: Path | str) -> None:
    """Refuse a state dict that does not fit, as `load_state` does, without loading it."""
    expected = unet.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = [
        f"{key}: expected {tuple(expected[key].shape)}, found {tuple(state[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if expected[key].shape != state[key].shape
    ]
    problems = [
        f"{len(found)} {what} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
        for what, found in (
            ("missing", missing),
            ("unexpected", extra),
            ("of another shape", wrong),
        )
        if found
    ]
    if problems:
        raise ValueError(
            f"The weights of {source} do not fit the architecture {unet.config}, which has "
            f"{len(expected)} tensors: {'; '.join(problems)}."
        )
