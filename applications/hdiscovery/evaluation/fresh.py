"""RCA by a fresh reconstructor, trained on frozen directions.

A run trains its reconstructor together with its directions. The two may agree on an invisible
signal, a watermark, and neither RCA nor L_G would show it. A fresh reconstructor has to recognise
the directions from the images alone. If the run's own R recognises k and a fresh R does not, the
signal is a watermark, or the fresh R saw too few pairs: give it more. Baselines have no
reconstructor of their own, so only a fresh one makes them comparable with a run.

References:
    Voynov and Babenko (2020), Unsupervised Discovery of Interpretable Directions in the GAN Latent
    Space, whose RANDOM deformator is such a baseline.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from hdiscovery.directions.direction_set import DirectionSet
from hdiscovery.directions.pairs import Pair, Progress
from hdiscovery.directions.seeds import seeded
from hdiscovery.dm.autocast import Autocast, autocast
from hdiscovery.evaluation.kept_pairs import PairBank
from hdiscovery.evaluation.rca import Accuracy, accuracy
from hdiscovery.training.augment import moved_alike


@dataclass(frozen=True, slots=True, eq=False)
class FreshReconstructor:
    """A reconstructor trained on frozen directions, and its accuracy.

    Attributes:
        R: The network, in eval mode.
        test: Accuracy on held-out pairs.
        train: Accuracy on the training pairs. If it is far above ``test``, there were too few
            training pairs.
    """

    R: nn.Module
    test: Accuracy
    train: Accuracy


def train_fresh(
    subject: DirectionSet,
    *,
    train_pairs: int,
    test_pairs: int,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 1,
    drawn: Iterable[Pair] | None = None,
    sampled_at_once: int = 64,
    progress: Progress = iter,
) -> FreshReconstructor:
    """Train a new reconstructor on some pairs and measure it on others.

    The loss is the run's, ``lambda_1 CE(k) + lambda_2 |s_hat - s|``. The optimiser is Adam with a
    learning rate that falls to 0 along a cosine. Dropout and augmentation are the run's too. The
    directions and torch's global random state stay unchanged.

    Args:
        subject: The subject whose directions are to be recognised.
        train_pairs: Pairs to train on, at least 2.
        test_pairs: Pairs held out, at least 1.
        steps: Updates of R.
        batch_size: Pairs in an update, at least 2 (R has batch norms).
        learning_rate: Learning rate at the start.
        seed: Seed of pairs, network and batches.
        drawn: ``train_pairs + test_pairs`` pairs in batches, if they exist already; the last ones
            are held out. By default pairs are drawn here, with another seed than RCA's.
        sampled_at_once: Pairs drawn at once.
        progress: Wraps the loop over batches while pairs are drawn.

    Raises:
        ValueError: If a size is out of range, or ``drawn`` has another number of pairs.
    """
    for name, value, least in (("train_pairs", train_pairs, 2), ("test_pairs", test_pairs, 1),
                               ("steps", steps, 1), ("batch_size", batch_size, 2)):  # fmt: skip
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if drawn is None:
        bank = PairBank.of(subject, train_pairs + test_pairs, seed=seed + 1_000_003,
                           batch_size=sampled_at_once, progress=progress)  # fmt: skip
    else:
        bank = _gathered(drawn, train_pairs, test_pairs)
    train, test = bank.split(train_pairs)
    device = subject.device
    with seeded(seed):
        training = subject.training()
        R = training.new_reconstructor(subject.dm.image_shape)
        R = R.to(device=device, dtype=bank.x_0.dtype)
        fit(R, train, training.weights, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, seed=seed, device=device,
            augment=training.augment)  # fmt: skip
    measured = [
        accuracy(R, part.batches(256, device), K=subject.K, S=subject.S) for part in (test, train)
    ]
    return FreshReconstructor(R, *measured)


def _gathered(drawn: Iterable[Pair], train_pairs: int, test_pairs: int) -> PairBank:
    bank = PairBank.gathered(drawn)
    if len(bank) != train_pairs + test_pairs:
        raise ValueError(
            f"`drawn` has {len(bank)} pairs, expected {train_pairs + test_pairs}: {train_pairs} to "
            f"train on and {test_pairs} held out."
        )
    return bank


def fit(
    R: nn.Module,
    bank: PairBank,
    weights: tuple[float, float],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: torch.device,
    augment: bool,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    precision: Autocast = "off",
    progress: Progress = iter,
) -> None:
    """Train R on a bank and leave it in eval mode.

    If ``augment`` is set, torch's global random state advances.
    """
    lambda_1, lambda_2 = weights
    optimizer = torch.optim.AdamW(R.parameters(), learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(bank))
    R.train()
    for _ in progress(range(steps)):
        chosen = torch.randint(len(bank), (size,), generator=generator)
        x_0, shifted, k, s = bank.batch(chosen, device)
        if augment:
            x_0, shifted = moved_alike(x_0, shifted)
        with autocast(precision, device):
            logits, s_hat = R(x_0, shifted)
        optimizer.zero_grad()
        class_loss = F.cross_entropy(logits, k, label_smoothing=label_smoothing)
        loss = lambda_1 * class_loss + lambda_2 * F.l1_loss(s_hat.to(s.dtype), s)
        loss.backward()
        optimizer.step()
        schedule.step()
    R.eval()
