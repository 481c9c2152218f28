"""Published ADM and PDAE weights, turned into a diffusion model's file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from hdiscovery.dm.adm_answers import Answers
from hdiscovery.dm.adm_config import TABLE_3, UNetConfig
from hdiscovery.dm.adm_state import check_state
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.adm_weights import inferred_of, read_weights
from hdiscovery.dm.candidates import Ranked, completed, computed, rank
from hdiscovery.dm.files import config_from, save_dm
from hdiscovery.dm.inferred import Inferred
from hdiscovery.dm.noise_error import Probe


def convert(
    weights: Path,
    out: Path,
    *,
    architecture: str | None = None,
    answers: Answers | None = None,
    images: Callable[[tuple[int, int, int]], Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> UNetConfig:
    """Write the diffusion model of published weights, in their own precision.

    The state dict does not show the whole architecture. Give the missing answers, or name the
    architecture; the weights must then fit it exactly. With images, an answer is refused if another
    answer clearly predicts their noise better.

    Args:
        weights: As for `read_weights`.
        out: The ``.safetensors`` file to write.
        architecture: A row of the paper's Table 3 (``MNIST32``, ``Anime64``, ``CelebAHQ128``,
            ``AFHQ128``), or a JSON file with the fields of `UNetConfig`.
        answers: The facts that the weights do not show. With an ``architecture`` only the schedule,
            which is linear by default.
        images: Returns images like the network's training images, ``[N, C, H, W]`` in [-1, 1], for
            a shape ``(C, H, W)``.
        device: Where the answers are compared on the images.

    Returns:
        The architecture.

    Raises:
        FileNotFoundError: If there is no such file of weights.
        FileExistsError: If ``out`` exists.
        ValueError: If one of the files is damaged, or they do not fit each other; if something is
            not answered; or if other answers are clearly better.
    """
    if out.exists():
        raise FileExistsError(f"`out` {out} exists. Remove it, or choose another name.")
    answers = answers or Answers()
    named = None if architecture is None else read_architecture(architecture)
    if named is not None:
        answers = _answers_of(named, answers)
    state = read_weights(weights)
    config = _inferred_config(state, weights, answers) if named is None else named
    with torch.device("meta"):
        check_state(ADMUNet(config), state, weights)
    if images is not None:
        inferred = inferred_of(state, weights)
        probe = Probe.of_images(images((config.in_channels, config.image_size, config.image_size)))
        refuse_worse(rank(state, inferred, answers, probe, device=device), inferred, answers)
    _write(out, config, state, answers, weights.name)
    return config


def asked(weights: Path, inferred: Inferred, answers: Answers) -> str:
    """Return the error for published weights whose architecture is not fully known."""
    return (
        f"`weights` {weights} are an ADM UNet's, and a state dict does not show the whole "
        "architecture. Fill in what its authors say: "
        f"{command(weights, inferred, answers)}. To find what fits best: `hdiscovery convert "
        f"{shlex.quote(str(weights))} --inspect --image-size PIXELS --data FOLDER`."
    )


def command(weights: Path, inferred: Inferred, answers: Answers) -> str:
    """Return the command that converts published weights, with placeholders for open answers."""
    questions = [question.option for question in answers.questions(inferred)]
    out = weights.stem + ("-dm" if weights.suffix == ".safetensors" else "") + ".safetensors"
    return " ".join(
        part
        for part in (
            f"hdiscovery convert {shlex.quote(str(weights))}", answers.options(), *questions,
            f"--out {shlex.quote(out)}",
        )
        if part
    )  # fmt: skip


def refuse_unconverted(weights: Path) -> NoReturn:
    """Refuse published weights where a diffusion model is expected.

    Raises:
        ValueError: Always, with the command that converts the weights, or with the reason why they
            cannot be converted.
    """
    raise ValueError(asked(weights, inferred_of(read_weights(weights), weights), Answers()))


def refuse_worse(ranking: list[Ranked], inferred: Inferred, answers: Answers) -> None:
    """Refuse answers if others clearly predict noise better.

    Raises:
        ValueError: If they do; the error holds both noise-prediction errors.
    """
    key = computed(inferred, completed(inferred, answers))
    given = next(ranked for ranked in ranking if computed(inferred, ranked.answers) == key)
    best = ranking[0]
    if best.clearly_better_than(given):
        raise ValueError(
            f"With `{answers.options()}` the noise-prediction error on {len(given.errors)} images "
            f"is {given.error:.4f}, and with `{best.answers.options()}` it is {best.error:.4f}. "
            "Give those. To write the file all the same, leave `--data` out."
        )


def _inferred_config(state: dict[str, Tensor], weights: Path, answers: Answers) -> UNetConfig:
    """Return the architecture that weights and answers tell.

    Raises:
        ValueError: If something is still to be answered.
    """
    inferred = inferred_of(state, weights)
    if answers.questions(inferred):
        raise ValueError(asked(weights, inferred, answers))
    return answers.config(inferred)


def _write(
    out: Path, config: UNetConfig, state: dict[str, Tensor], answers: Answers, name: str
) -> None:
    unet = ADMUNet(config)
    unet.load_state_dict(state)
    assert answers.schedule is not None
    dtype = torch.float16 if _dtypes(state) == {torch.float16} else torch.float32
    T = answers.num_train_steps
    save_dm(out, unet, schedule=answers.schedule, T=T, dtype=dtype, weights=name)


def _answers_of(config: UNetConfig, answers: Answers) -> Answers:
    """Return an architecture as answers; of those given, the schedule is kept."""
    schedule = Answers(schedule=answers.schedule, num_train_steps=answers.num_train_steps)
    if answers != schedule:
        options = answers.but(schedule=None, num_train_steps=1000).options()
        raise ValueError(
            f"`{options}` and `--architecture` both describe the network. Leave one of them out."
        )
    return Answers(
        image_size=config.image_size,
        num_heads=None if config.num_head_channels else config.num_heads,
        num_head_channels=config.num_head_channels,
        attention_order=config.attention_order,
        schedule=answers.schedule or "linear",
        num_train_steps=answers.num_train_steps,
        dropout=config.dropout,
    )


def _dtypes(state: dict[str, Tensor]) -> set[torch.dtype]:
    return {value.dtype for value in state.values()}


def read_architecture(architecture: str) -> UNetConfig:
    """Return the architecture of that name, or that a JSON file holds."""
    if architecture in TABLE_3:
        return TABLE_3[architecture]
    path = Path(architecture)
    if not path.is_file():
        raise ValueError(
            f"`architecture` {architecture!r} is neither one of {', '.join(TABLE_3)} nor a JSON "
            "file with the fields of UNetConfig."
        )
    try:
        return config_from(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"`architecture` {path} does not describe a UNet: {error}.") from error
