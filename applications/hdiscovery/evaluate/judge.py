"""Judge a diffusion model of MNIST: does a classifier of real digits know its samples?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.walk import sample


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a classifier of real digits says of samples.

    Attributes:
        classifier_accuracy: On the test images of MNIST.
        samples: Number of samples.
        num_steps: DDIM steps they were made with.
        mean_confidence: Mean probability of the most likely digit.
        digits: How many samples show each digit, 0 to 9.
    """

    classifier_accuracy: float
    samples: int
    num_steps: int
    mean_confidence: float
    digits: list[int]


def digit_classifier(image_size: int, *, seed: int = 0) -> nn.Module:
    """Return a small network, ``[N, 1, E, E]`` -> logits ``[N, 10]``, not yet trained."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    edge = image_size // 8
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * edge * edge, 10))


def train_classifier(
    classifier: nn.Module, images: Tensor, labels: Tensor, *, epochs: int = 3, batch_size: int = 128
) -> Iterator[float]:
    """Train on real digits, yielding the loss of every step; 99 % of test images end up right.

    Args:
        classifier: As from `digit_classifier`.
        images: ``[N, 1, E, E]`` in [-1, 1].
        labels: ``[N]``.
        epochs: Passes over the images.
        batch_size: Images a step.
    """
    steps = len(images) // batch_size
    optimizer = torch.optim.Adam(classifier.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=epochs * steps)
    classifier.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch_size)[:steps]:
            optimizer.zero_grad()
            loss = F.cross_entropy(classifier(images[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            yield loss.item()


def judge(
    dm: DiffusionModel,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    samples: int = 500,
    num_steps: int = 20,
) -> tuple[Verdict, Tensor]:
    """Return what the classifier says of the model's samples, and the samples.

    Args:
        dm: The diffusion model.
        classifier: A trained one.
        images: Real test images, which the classifier is judged by in turn.
        labels: Their digits.
        samples: How many to draw.
        num_steps: DDIM steps.
    """
    drawn = sample(dm.unet, dm.schedule, samples, num_steps=num_steps)
    known = _probabilities(classifier, images)
    confidence, digit = _probabilities(classifier, drawn.clamp(-1, 1)).max(1)
    verdict = Verdict(
        classifier_accuracy=(known.argmax(1) == labels).float().mean().item(),
        samples=samples,
        num_steps=num_steps,
        mean_confidence=confidence.mean().item(),
        digits=torch.bincount(digit, minlength=10).tolist(),
    )
    return verdict, drawn


def _probabilities(classifier: nn.Module, images: Tensor) -> Tensor:
    classifier.eval()
    with torch.no_grad():
        return torch.cat([classifier(part).softmax(1) for part in images.split(500)])
