"""A reconstructor for a run, fitted to all pairs in its buffer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from hdiscovery.directions.history import enter
from hdiscovery.directions.pairs import Progress
from hdiscovery.directions.publish import MEASURED
from hdiscovery.directions.run_folder import RunFolder
from hdiscovery.directions.saved import open_run
from hdiscovery.directions.seeds import seeded
from hdiscovery.directions.trained_run import TrainedRun
from hdiscovery.dm.autocast import Autocast
from hdiscovery.evaluation.fresh import FreshReconstructor, fit
from hdiscovery.evaluation.kept_pairs import PairBank
from hdiscovery.evaluation.rca import accuracy
from hdiscovery.networks.reconstructor import ReconstructorName
from hdiscovery.rescale import rescaled

HELD_OUT = 20  # one batch of so many, the newest ones


def refit(
    run: RunFolder,
    *,
    passes: int = 8,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.1,
    warm_start: bool = False,
    reconstructor: ReconstructorName | None = None,
    scale: float = 1.0,
    autocast: Autocast = "off",
    seed: int = 1,
    device: torch.device | str = "cpu",
    progress: Progress = iter,
) -> FreshReconstructor:
    """Replace the reconstructor in a run's checkpoint, and return the new one with its accuracy.

    A reconstructor that trains along with the directions sees the pairs of its buffer many times,
    at a constant rate: it memorises them, and recognises other pairs less well. A new reconstructor
    that sees every pair equally often, at a rate that falls to 0 along a cosine, recognises unseen
    pairs better. The run goes on with it by ``--resume``; R's optimizer begins anew.

    If the directions have hardly changed, the run's own reconstructor also knows pairs that left
    the buffer: ``warm_start`` fits that reconstructor instead of a new one.

    Args:
        run: A run whose checkpoint has a buffer: one with ``r_updates`` above 1.
        passes: How often each pair is seen.
        batch_size: Pairs an update, at least 2.
        learning_rate: At the start.
        weight_decay: Of AdamW. Weight decay and label smoothing keep R from memorising the pairs.
        label_smoothing: The share of each target that is spread over all k, in [0, 1).
        warm_start: Begin with the run's own reconstructor. It may have seen most of the held-out
            pairs, so its accuracy on them says little.
        reconstructor: The architecture of the new reconstructor, by default the run's. The run's
            config takes it over.
        scale: Factor on the run's directions, such as 0.8 if samples suffer from them. The pairs
            in the buffer stay in use, see `rescaled`.
        autocast: ``"bf16"`` fits under bfloat16 autocast. The pairs keep the run's precision.
        seed: Of the network and the batches.
        device: Where it is trained.
        progress: Wraps the loop over updates.

    Returns:
        The reconstructor, with its accuracy on the newest twentieth of the batches, which are held
        out, and on the batches that it was trained on.

    Raises:
        ValueError: If a number or a name is out of range, the buffer has fewer than 2 batches, or
            something was measured with the reconstructor that would be replaced.
    """
    _refuse_numbers(passes, batch_size, learning_rate, scale, weight_decay, label_smoothing)
    _refuse_measured(run)
    networks, checkpoint = open_run(run, device=device), run.load_checkpoint()
    assert checkpoint is not None  # open_run has read it
    config = networks.config
    if reconstructor is not None and reconstructor != config.networks.reconstructor:
        if warm_start:
            raise ValueError(
                "`warm_start` goes on with the run's own reconstructor, "
                f"{config.networks.reconstructor!r}, and `reconstructor` asks for "
                f"{reconstructor!r}. Leave one of them out."
            )
        networks = replace(networks, config=config.replace(reconstructor=reconstructor))
    checkpoint = rescaled(checkpoint, networks.shift_block, scale, config.shift.S)
    train, test = _banks(checkpoint["buffers"])
    training, K, S = TrainedRun(networks.config), config.shift.K, config.shift.S
    with seeded(seed):
        R = networks.R
        if not warm_start:
            R = training.new_reconstructor(networks.dm.image_shape).to(networks.device)
        fit(R, train, training.weights, steps=-(-passes * len(train) // batch_size),
            batch_size=batch_size, learning_rate=learning_rate, seed=seed,
            device=networks.device, augment=training.augment, weight_decay=weight_decay,
            label_smoothing=label_smoothing, precision=autocast, progress=progress)  # fmt: skip
    anew = torch.optim.Adam(R.parameters(), config.rates["omega"])
    optimizers = {**checkpoint["optimizers"], "omega": anew.state_dict()}
    run.save_checkpoint({**checkpoint, "R": R.state_dict(), "optimizers": optimizers})
    enter(run, "refitted", config=networks.config, before=config, step=checkpoint["step"])
    known = [accuracy(R, bank.batches(256, networks.device), K=K, S=S)
             for bank in (test, train)]  # fmt: skip
    return FreshReconstructor(R, *known)


def _refuse_numbers(
    passes: int, batch_size: int, learning_rate: float, scale: float, weight_decay: float,
    label_smoothing: float,
) -> None:  # fmt: skip
    for name, value, least in (("passes", passes, 1), ("batch_size", batch_size, 2)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"`learning_rate` must be positive and finite, got {learning_rate}.")
    if not 0 < scale < float("inf"):
        raise ValueError(f"`scale` must be positive and finite, got {scale}; 1 changes nothing.")
    if not 0 <= weight_decay < float("inf"):
        raise ValueError(
            f"`weight_decay` must be finite and at least 0, got {weight_decay}; 0 is without."
        )
    if not 0 <= label_smoothing < 1:
        raise ValueError(
            f"`label_smoothing` must be in [0, 1), got {label_smoothing}; 0 is without."
        )


def _refuse_measured(run: RunFolder) -> None:
    for name in MEASURED:
        if name != "labels.json" and (run.path / name).exists():
            raise ValueError(
                f"{run.path / name} was measured with the reconstructor that would be replaced. "
                "Move it away, or work on a copy of the run."
            )


def _banks(buffers: list[list[Any]]) -> tuple[PairBank, PairBank]:
    """Return the pairs of all processes' buffers, and the newest ones apart.

    Raises:
        ValueError: If there are fewer than two batches.
    """
    if min(len(buffer) for buffer in buffers) < 2:
        raise ValueError(
            "The run has no buffer of two batches or more to fit a reconstructor to. It gets one "
            "in steps with `--r-updates` above 1; `--r-buffer` is how many batches it holds."
        )
    train, test = [], []
    for buffer in buffers:
        kept = len(buffer) - max(1, len(buffer) // HELD_OUT)
        train += buffer[:kept]
        test += buffer[kept:]
    old, new = (
        PairBank(*(torch.cat(column) for column in zip(*part, strict=True)))
        for part in (train, test)
    )
    return old, new
