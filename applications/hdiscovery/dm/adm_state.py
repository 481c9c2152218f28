"""State dicts of ADM's UNet: loaded strictly, and refused with what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    wrong = [
        f"{key}: expected {tuple(expected[key].shape)}, found {tuple(state[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if expected[key].shape != state[key].shape
    ]
    problems = [
        _counted("missing", sorted(expected.keys() - state.keys())),
        _counted("unexpected", sorted(state.keys() - expected.keys())),
        _counted("of another shape", wrong),
    ]
    if any(problems):
        raise ValueError(
            f"The weights of {source} do not fit the architecture {unet.config}, which has "
            f"{len(expected)} tensors: {'; '.join(filter(None, problems))}."
        )


def _counted(what: str, found: Sequence[str]) -> str:
    """Return how many there are, and the first three of them; nothing where there are none."""
    if not found:
        return ""
    return f"{len(found)} {what} ({', '.join(found[:3])}{', …' if len(found) > 3 else ''})"
