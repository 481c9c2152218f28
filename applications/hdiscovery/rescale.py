"""Makes a run's directions weaker or stronger, and adapts the pairs in its buffer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hdiscovery.networks.shift_block import ShiftBlock


def rescaled(
    checkpoint: dict[str, Any], shift_block: ShiftBlock, scale: float, S: float
) -> dict[str, Any]:
    """Return a checkpoint whose directions are ``scale`` times as strong.

    A shift is linear in s, so ``(scale f)(s / scale) = f(s)``: the pairs of the buffer are also
    pairs of the new directions, with s divided by ``scale``. Pairs whose s is then beyond S are
    left out. For stronger directions, the buffer holds no pairs beyond ``S / scale``.

    Args:
        checkpoint: What `checkpoint.state` returned; it is not changed.
        shift_block: A shift block of the run, to tell which of its weights are heads.
        scale: Above 0.
        S: Largest shift.
    """
    heads = {id(head) for head in shift_block.heads}
    names = {name for name, p in shift_block.named_parameters() if id(p) in heads}
    block, average = checkpoint["shift_block"], checkpoint["average"]
    return {
        **checkpoint,
        "shift_block": {name: v * scale if name in names else v for name, v in block.items()},
        "average": average and {
            name: v * scale if name.removeprefix("module.") in names else v
            for name, v in average.items()
        },
        "buffers": [_rescaled(buffer, scale, S) for buffer in checkpoint["buffers"]],
    }  # fmt: skip


def _rescaled(buffer: list[list[Tensor]], scale: float, S: float) -> list[list[Tensor]]:
    batches = []
    for x_0, shifted, k, s in buffer:
        kept = (s / scale).abs() <= S
        if kept.any():
            batches.append([x_0[kept], shifted[kept], k[kept], s[kept] / scale])
    return batches
