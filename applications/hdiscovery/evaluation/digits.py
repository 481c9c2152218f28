"""A classifier of real digits: it is trained, kept in a file, and asked about samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hdiscovery.data.mnist import load_mnist
from hdiscovery.directions.seeds import seeded
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.tensors import save_tensors
from hdiscovery.dm.walk import sample

FORMAT = "hdiscovery-digits-1"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a classifier of real digits says of a model's samples.

    Attributes:
        classifier_accuracy: The classifier's accuracy on the test images of MNIST.
        samples: Number of samples.
        num_steps: DDIM steps that made each sample.
        mean_confidence: Probability of the most likely digit, averaged over samples.
        digits: How many samples show each digit, 0 to 9.
    """

    classifier_accuracy: float
    samples: int
    num_steps: int
    mean_confidence: float
    digits: list[int]


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
        classifier: A trained classifier.
        images: Real test images, on which the classifier's own accuracy is measured.
        labels: The digits that ``images`` show.
        samples: Number of samples to draw.
        num_steps: DDIM steps.
    """
    drawn = sample(dm.unet, dm.schedule, samples, num_steps=num_steps)
    accuracy = _accuracy(classifier, images, labels)
    confidence, digit = _probabilities(classifier, drawn.clamp(-1, 1)).max(1)
    counts = torch.bincount(digit, minlength=10).tolist()
    return Verdict(accuracy, samples, num_steps, confidence.mean().item(), counts), drawn


def digit_classifier_of(
    image_shape: tuple[int, int, int],
    data: Path | None,
    cache: Path | None = None,
    *,
    progress: Any = iter,
) -> tuple[nn.Module, float]:
    """Return a classifier of digits and its accuracy on test images.

    The classifier is read from its file. If there is no file, it is trained on MNIST and written.

    Args:
        image_shape: ``(1, E, E)``, the shape of the images to be classified.
        data: Folder that holds ``MNIST/raw``; needed only to train.
        cache: The classifier's file; by default ``data/digits-E.safetensors``.
        progress: Wraps the training's iterator over losses.

    Returns:
        A module ``[N, 1, E, E]`` -> logits ``[N, 10]`` in eval mode, on the CPU, and the share of
        MNIST's test images that it classifies correctly.

    Raises:
        ValueError: If the images are not square and grey, or the file holds something else.
        FileNotFoundError: If there is neither the file nor the data.
    """
    size = _edge(image_shape)
    if cache is None and data is not None:
        cache = data / f"digits-{size}.safetensors"
    if cache is not None and cache.is_file():
        return _load(cache, size)
    if data is None:
        raise FileNotFoundError(
            "The feature net 'digits' is trained on MNIST, and no data was named. Pass `--data "
            "DIR` with a folder that holds MNIST/raw, or `--classifier FILE` with a classifier "
            "trained before."
        )
    classifier = _trained(data, size, progress)
    accuracy = _accuracy(classifier, *load_mnist(data, train=False, image_size=size))
    if cache is not None:
        _save(cache, classifier, size, accuracy)
    return classifier, accuracy


def digit_classifier(image_size: int, *, seed: int = 0) -> nn.Module:
    """Return a small untrained network, ``[N, 1, E, E]`` -> logits ``[N, 10]``."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
    edge = image_size // 8
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * edge * edge, 10))


def train_classifier(
    classifier: nn.Module, images: Tensor, labels: Tensor, *, epochs: int = 3, batch_size: int = 128
) -> Iterator[float]:
    """Train on real digits and yield each step's loss; test accuracy ends at about 99 %.

    Args:
        classifier: A network as from `digit_classifier`.
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


def _edge(image_shape: tuple[int, int, int]) -> int:
    channels, size, width = image_shape
    if channels != 1 or size != width or size < 8:
        raise ValueError(
            f"The feature net 'digits' takes square grey images of 8 pixels or more, and the "
            f"model makes images of shape {image_shape}. Choose another net with `features`."
        )
    return size


def _trained(data: Path, size: int, progress: Any) -> nn.Module:
    with seeded(0):
        classifier = digit_classifier(size)
        for _ in progress(train_classifier(classifier, *load_mnist(data, image_size=size))):
            pass
    return classifier.eval()


def _save(path: Path, classifier: nn.Module, size: int, accuracy: float) -> None:
    about = {"format": FORMAT, "image_size": str(size), "accuracy": repr(accuracy)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(path, classifier.state_dict(), metadata=about)


def _load(path: Path, size: int) -> tuple[nn.Module, float]:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"The classifier {path} is damaged ({error}). Delete the file; the classifier is then "
            "trained again."
        ) from error
    if about.get("format") != FORMAT or about.get("image_size") != str(size):
        raise ValueError(
            f"{path} does not hold a classifier for digits of {size} pixels; it says {about}. Name "
            "another file with `--classifier`."
        )
    with seeded(0):
        classifier = digit_classifier(size)
    classifier.load_state_dict(state)
    return classifier.eval(), float(about["accuracy"])


def _accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    right = _probabilities(classifier, images).argmax(1) == labels
    return int(right.sum()) / len(labels)


def _probabilities(classifier: nn.Module, images: Tensor) -> Tensor:
    classifier.eval()
    with torch.no_grad():
        return torch.cat([classifier(part).softmax(1) for part in images.split(500)])
