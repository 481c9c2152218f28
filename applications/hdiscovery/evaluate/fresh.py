"""RCA by a fresh reconstructor, trained on frozen directions alone.

The reconstructor of a training grows up with its directions: the two may agree on a signal that no
eye sees, a watermark, and neither RCA nor L_G would tell. A fresh one has to find the directions
from outside. Where a co-trained R knows k and a fresh one does not, the signal is of that kind (or
the fresh one saw too few pairs: give it more). It is also what makes baselines comparable: nobody
trained anything with them.

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

from hdiscovery.directions.seeds import seeded
from hdiscovery.directions.subject import Pair, Progress, Subject
from hdiscovery.dm.autocast import Autocast, autocast
from hdiscovery.evaluate.kept_pairs import PairBank
from hdiscovery.evaluate.rca import Accuracy, accuracy
from hdiscovery.train.augment import moved_alike


@dataclass(frozen=True, slots=True, eq=False)
class FreshReconstructor:
    """A reconstructor trained on frozen directions, and what it is worth.

    Attributes:
        R: The network, in eval mode.
        test: Its accuracy on pairs held out.
        train: Its accuracy on the pairs it was trained on; far above ``test`` means that it saw too
            few of them.
    """

    R: nn.Module
    test: Accuracy
    train: Accuracy


def train_fresh(
    subject: Subject,
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
    """Train a new reconstructor on a bank of pairs and measure it on others.

    The loss is the training's, ``lambda_1 CE(k) + lambda_2 |s_hat - s|``, by Adam whose rate falls
    to 0 along a cosine; with the run's dropout, and the run's way of seeing pairs again. Neither
    the directions nor torch's global stream move.

    Args:
        subject: Whose directions.
        train_pairs: Pairs to train on, at least 2.
        test_pairs: Pairs held out, at least 1.
        steps: Updates of R.
        batch_size: Pairs an update, at least 2 (R has batch norms).
        learning_rate: At the start.
        seed: Of pairs, network and batches.
        drawn: The pairs, ``train_pairs + test_pairs`` of them in batches, where there are some
            already; the last are held out. By default they are drawn here, others than RCA's.
        sampled_at_once: Pairs that are drawn at once.
        progress: Wraps the loop over batches of the bank.

    Raises:
        ValueError: If a size is out of range, or ``drawn`` are more or fewer than that.
    """
    for name, value, least in (("train_pairs", train_pairs, 2), ("test_pairs", test_pairs, 1),
                               ("steps", steps, 1), ("batch_size", batch_size, 2)):  # fmt: skip
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")
    if drawn is None:
        bank = PairBank.of(subject, train_pairs + test_pairs, seed=seed + 1_000_003,
                           batch_size=sampled_at_once, progress=progress)  # fmt: skip
    else:
        bank = PairBank.gathered(drawn)
    if len(bank) != train_pairs + test_pairs:
        raise ValueError(
            f"`drawn` must be the {train_pairs} pairs to train on and the {test_pairs} held out, "
            f"got {len(bank)}."
        )
    train, test = bank.split(train_pairs)
    device = subject.device
    with seeded(seed):
        R = subject.new_R().to(device=device, dtype=bank.x_0.dtype)
        fit(R, train, subject.weights, steps=steps, batch_size=batch_size,
            learning_rate=learning_rate, seed=seed, device=device,
            augment=subject.augment)  # fmt: skip
    measured = [
        accuracy(R, part.batches(256, device), K=subject.K, S=subject.S) for part in (test, train)
    ]
    return FreshReconstructor(R, *measured)


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
    """Train R on a bank and leave it in eval mode; ``augment`` draws from the global stream."""
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
