"""A classifier of real digits, trained once and kept in a file with its accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hdiscovery.data.mnist import load_mnist
from hdiscovery.directions.seeds import seeded
from hdiscovery.dm.tensors import save_tensors
from hdiscovery.evaluate.judge import digit_classifier, train_classifier

FORMAT = "hdiscovery-digits-1"


def digit_classifier_of(
    image_shape: tuple[int, int, int],
    data: Path | None,
    cache: Path | None = None,
    *,
    progress: Any = iter,
) -> tuple[nn.Module, float]:
    """Return a classifier of digits and its accuracy on test images; trained where need be.

    Args:
        image_shape: ``(1, E, E)``, of the images it is to look at.
        data: Folder that holds ``MNIST/raw``; needed where the file is not there yet.
        cache: The file, read if it is there and written if not; by default
            ``data/digits-E.safetensors``.
        progress: Wraps the training's iterator over losses.

    Returns:
        A module ``[N, 1, E, E]`` -> logits ``[N, 10]`` in eval mode, on the CPU, and the share of
        MNIST's test images that it knows.

    Raises:
        ValueError: If the images are not square and grey, or the file is another.
        FileNotFoundError: If there is neither the file nor the data.
    """
    channels, size, width = image_shape
    if channels != 1 or size != width or size < 8:
        raise ValueError(
            f"The feature net 'digits' looks at square grey images of 8 pixels or more, and the "
            f"model makes images of shape {image_shape}. Take another one for `features`."
        )
    if cache is None and data is not None:
        cache = data / f"digits-{size}.safetensors"
    if cache is not None and cache.is_file():
        return _load(cache, size)
    if data is None:
        raise FileNotFoundError(
            "The feature net 'digits' is trained on MNIST: pass `--data DIR` with a folder that "
            "holds MNIST/raw, or `--classifier FILE` with one trained before."
        )
    with seeded(0):
        classifier = digit_classifier(size)
        for _ in progress(train_classifier(classifier, *load_mnist(data, image_size=size))):
            pass
    classifier.eval()
    accuracy = _accuracy(classifier, *load_mnist(data, train=False, image_size=size))
    if cache is not None:
        _save(cache, classifier, size, accuracy)
    return classifier, accuracy


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
            f"The classifier {path} is damaged ({error}): delete it, and it is trained anew."
        ) from error
    if about.get("format") != FORMAT or about.get("image_size") != str(size):
        raise ValueError(
            f"The classifier {path} is not one for digits of {size} pixels, but {about}. Name "
            "another file by `--classifier`."
        )
    with seeded(0):
        classifier = digit_classifier(size)
    classifier.load_state_dict(state)
    return classifier.eval(), float(about["accuracy"])


def _accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    parts: Iterable[tuple[Tensor, Tensor]] = zip(images.split(500), labels.split(500), strict=True)
    with torch.no_grad():
        right = sum(int((classifier(x).argmax(1) == y).sum()) for x, y in parts)
    return right / len(labels)
