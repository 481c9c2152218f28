"""The answers that fit a state dict, ranked by the noise-prediction error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from hdiscovery.dm.adm_answers import Answers
from hdiscovery.dm.adm_config import AttentionOrder, UNetConfig
from hdiscovery.dm.adm_state import check_state
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.inferred import Inferred
from hdiscovery.dm.noise_error import Probe, noise_error, trivial_error
from hdiscovery.dm.schedules import ScheduleName

HEADS = (1, 2, 4, 8, 16)
HEAD_CHANNELS = (64, 32, 128, 16)
SIGMAS = 3.0  # of the mean over samples; the differences are paired, of the same noise and images
SHARE = 0.01  # of the error; a difference below it changes no image


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """One set of answers, and the error of the network under it.

    Attributes:
        answers: The answers, complete.
        errors: The noise-prediction error of each sample, ``[N]``.
        trivial: The error of the best predictor that needs no network.
    """

    answers: Answers
    errors: Tensor
    trivial: float

    @property
    def error(self) -> float:
        """Mean of the errors."""
        return float(self.errors.mean())

    def clearly_better_than(self, other: Ranked) -> bool:
        """Whether the other's error is larger by more than chance and by more than nothing."""
        difference = other.errors - self.errors
        by_chance = SIGMAS * float(difference.std()) / len(difference) ** 0.5
        return float(difference.mean()) > max(by_chance, SHARE * self.error)


def rank(
    state: Mapping[str, Tensor],
    inferred: Inferred,
    answers: Answers,
    probe: Probe,
    *,
    device: torch.device | str = "cpu",
) -> list[Ranked]:
    """Return the answers that fit a state dict, the best first.

    Given answers are compared with their alternatives, too: first the schedules, under the given or
    likeliest heads and order; then heads and orders, under the best and the given schedule. On pure
    noise all schedules are the same, and one is tried.

    Args:
        state: The weights.
        inferred: What they tell.
        answers: What is known, the image size at least.
        probe: What to compare on.
        device: Where to predict.

    Raises:
        ValueError: If the weights do not fit the architecture, or the image size is not known.
    """
    likeliest = completed(inferred, answers)
    found: dict[object, Ranked] = {}

    def look_at(candidates: Iterable[Answers]) -> None:
        for candidate in candidates:
            key = computed(inferred, candidate)
            if key not in found:
                found[key] = ranked(state, inferred, candidate, probe, device=device)

    look_at([likeliest])
    if probe.images is not None:
        look_at(likeliest.but(schedule=name) for name in get_args(ScheduleName))
    best = min(found.values(), key=lambda ranked: ranked.error).answers.schedule
    for schedule in dict.fromkeys((best, likeliest.schedule if answers.schedule else best)):
        look_at(c.but(schedule=schedule) for c in attentions(inferred, likeliest))
    return sorted(found.values(), key=lambda ranked: ranked.error)


def ranked(
    state: Mapping[str, Tensor],
    inferred: Inferred,
    answers: Answers,
    probe: Probe,
    *,
    device: torch.device | str = "cpu",
) -> Ranked:
    """Return the error of a state dict under complete answers."""
    with torch.device("meta"):
        unet = ADMUNet(answers.config(inferred))
    check_state(unet, state, "the state dict")
    floats = {key: value.to(device, torch.float32) for key, value in state.items()}
    unet.load_state_dict(floats, assign=True)
    unet.requires_grad_(False).eval()
    schedule = answers.noise_schedule()
    return Ranked(answers, noise_error(unet, schedule, probe), trivial_error(probe))


def attentions(inferred: Inferred, answers: Answers) -> Iterator[Answers]:
    """Yield the answers with every plausible attention."""
    ways = [{"num_heads": n, "num_head_channels": None} for n in HEADS]
    ways += [{"num_heads": None, "num_head_channels": n} for n in HEAD_CHANNELS]
    for way in ways:
        candidate = answers.but(**way)
        if _possible(inferred, candidate):
            yield from (candidate.but(attention_order=o) for o in get_args(AttentionOrder))


def computed(inferred: Inferred, answers: Answers) -> object:
    """Return a key that is equal for answers under which a network computes the same."""
    heads = answers.heads(inferred)
    order = None if set(heads or ()) == {1} else answers.attention_order
    return heads, order, answers.schedule


def completed(inferred: Inferred, answers: Answers) -> Answers:
    """Return complete answers: the given answers, and a first guess for each of the others."""
    if answers.heads(inferred) is None:
        guesses = [answers.but(num_head_channels=n) for n in HEAD_CHANNELS]
        guesses = [guess for guess in guesses if _possible(inferred, guess)]
        answers = guesses[0] if guesses else answers.but(num_heads=1)
    return answers.but(
        attention_order=answers.attention_order or "legacy", schedule=answers.schedule or "linear"
    )


def _possible(inferred: Inferred, answers: Answers) -> bool:
    try:
        config: UNetConfig | None = answers.but(attention_order="legacy").config(inferred)
    except ValueError:
        config = None
    return config is not None
