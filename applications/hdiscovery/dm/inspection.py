"""What can be said of a model's file or folder, as lines to be read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from chainograd.samplers.schedule import NoiseSchedule
from hdiscovery.dm.adm_answers import Answers
from hdiscovery.dm.adm_config import UNetConfig
from hdiscovery.dm.adm_unet import ADMUNet
from hdiscovery.dm.adm_weights import inferred_of, is_adm_weights, read_weights
from hdiscovery.dm.candidates import Ranked, rank
from hdiscovery.dm.conversion import command
from hdiscovery.dm.hspace import HSpaceUNet
from hdiscovery.dm.inferred import Inferred
from hdiscovery.dm.model import DiffusionModel
from hdiscovery.dm.noise_error import Probe, noise_error, trivial_error
from hdiscovery.dm.open import load_dm, shipped_models
from hdiscovery.dm.prediction import PredictsNoise
from hdiscovery.dm.schedules import schedule_name

Images = Callable[[tuple[int, int, int]], Tensor]


def inspect(
    source: str,
    answers: Answers,
    images: Images | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[str]:
    """Yield what is known of a diffusion model, in lines; the quick things first.

    Args:
        source: Whatever `load_dm` takes, or published weights.
        answers: What is known of published weights besides.
        images: Returns images of the kind that the model was trained on, of a shape ``(C, H, W)``;
            without, the errors are those on noise alone.
        device: Where to measure them.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If it is damaged, or no diffusion model's; or answers are given to a model that
            tells everything.
    """
    path = Path(source)
    if source not in shipped_models() and is_adm_weights(path):
        yield from _of_published(path, answers, images, device)
        return
    if given := answers.options():
        raise ValueError(
            f"`{given}` is for published weights. {source} says which architecture it holds: leave "
            "the options out."
        )
    yield from _of_model(load_dm(source, device=device), images)


def _of_model(dm: DiffusionModel, images: Images | None) -> Iterator[str]:
    unet = dm.unet
    yield _line("kind", _kind(unet))
    yield _line("parameters", f"{sum(p.numel() for p in unet.parameters()):,}")
    if isinstance(unet, ADMUNet):
        yield from _architecture(unet.config)
    yield _line("images", " x ".join(map(str, dm.image_shape)))
    yield _line("h-space", " x ".join(map(str, unet.h_shape)))
    yield _line("schedule", _schedule(dm.schedule))
    if isinstance(unet, ADMUNet) and unet.config.num_classes is not None:
        yield _line("conditional", "in Python, `hdiscovery.dm.conditioned.under(dm, label)`")
    if images is None and isinstance(unet, PredictsNoise):
        # x_t is nearly all of the answer then, whatever the network says.
        yield _line("noise error", "`--data FOLDER` measures it; pure noise says nothing here")
        return
    probe = _probe(dm.image_shape, images)
    error, trivial = noise_error(unet, dm.schedule, probe), trivial_error(probe)
    yield from _measured(Ranked(Answers(), error, trivial), probe)


def _kind(unet: HSpaceUNet) -> str:
    names = [type(part).__name__ for part in unet.modules()]
    theirs = next((name for name in names if name.startswith("UNet2D")), None)
    kind = f"a diffusion model, {f'diffusers {theirs}' if theirs else 'ADM UNet'}"
    return f"{kind}, of {unet.prediction}" if isinstance(unet, PredictsNoise) else kind


def _schedule(schedule: NoiseSchedule) -> str:
    T = schedule.num_train_steps
    return (
        f"{schedule_name(schedule) or 'of its own'}, {T} steps, alpha-bar "
        f"{schedule.alpha_bar(T // 2):.3g} half way and {schedule.alpha_bar(T - 1):.2g} at the end"
    )


def _of_published(
    path: Path, answers: Answers, images: Images | None, device: torch.device | str
) -> Iterator[str]:
    state = read_weights(path)
    inferred = inferred_of(state, path)
    dtypes = sorted({str(value.dtype).removeprefix("torch.") for value in state.values()})
    yield _line("kind", f"the state dict of an ADM UNet, {', '.join(dtypes)}")
    yield _line("parameters", f"{inferred.parameters:,}")
    yield from _inferred(inferred)
    for question in answers.questions(inferred):
        yield _line("to be answered", f"{question.option}: {question.about}")
    if answers.image_size is None:
        yield "With --image-size, answers can be compared; best with --data, its kind of images."
    else:
        shape = (inferred.in_channels, answers.image_size, answers.image_size)
        probe = _probe(shape, images)
        ranking = rank(state, inferred, answers, probe, device=device)
        yield from _measured(ranking[0], probe)
        yield from _compared(ranking, probe)
        answers = answers if images is None else ranking[0].answers
    yield f"To convert it: {command(path, inferred, answers)}"


def _architecture(config: UNetConfig) -> Iterator[str]:
    heads = (
        f"{config.num_head_channels} channels a head"
        if config.num_head_channels
        else f"{config.num_heads} head{'s' if config.num_heads > 1 else ''}"
    )
    at = ", ".join(map(str, config.attention_resolutions)) or "none but the middle"
    yield _line(
        "widths", f"{' '.join(map(str, config.widths))} ({config.num_channels} at its base)"
    )
    yield _line("residual blocks", f"{config.num_res_blocks} a level")
    yield _line("attention at", f"{at}; {heads}, {config.attention_order} order")


def _inferred(inferred: Inferred) -> Iterator[str]:
    widths = " ".join(map(str, inferred.widths))
    levels = ", ".join(map(str, inferred.attention_levels)) or "none but the middle"
    flags = {
        "learn_sigma": inferred.learn_sigma,
        "use_scale_shift_norm": inferred.use_scale_shift_norm,
        "resblock_updown": inferred.resblock_updown,
        "class_cond": inferred.num_classes is not None,
    }
    yield _line("image channels", str(inferred.in_channels))
    yield _line("widths", f"{widths} ({inferred.num_channels} at its base)")
    yield _line("residual blocks", f"{inferred.num_res_blocks} a level")
    yield _line("attention", f"on levels {levels}; level 0 is the image's")
    yield _line("flags", ", ".join(f"{name} {value}" for name, value in flags.items()))
    yield _line("h-space", f"{inferred.widths[-1]} channels, 1/{inferred.least_size} of the edge")


def _measured(ranked: Ranked, probe: Probe) -> Iterator[str]:
    n = len(ranked.errors)
    if probe.images is None:
        yield _line(
            "noise error",
            f"{ranked.error:.4f} on {n} samples of pure noise, and should be near 0; on images, "
            "`--data FOLDER` measures it",
        )
    else:
        verdict = "" if ranked.error < ranked.trivial else ": it does not know images of this kind"
        yield _line(
            "noise error",
            f"{ranked.error:.4f} on {n} images, {ranked.trivial:.4f} without a network{verdict}",
        )


def _compared(ranking: list[Ranked], probe: Probe) -> Iterator[str]:
    schedules = "" if probe.images is not None else "; schedules are all the same on pure noise"
    yield f"Answers by their noise-prediction error{schedules}:"
    best = ranking[0]
    for ranked in ranking:
        worse = best.clearly_better_than(ranked)
        answers = ranked.answers
        shown = answers if probe.images is not None else answers.but(schedule=None)
        yield f"  {ranked.error:.4f}  {'worse' if worse else 'fits '}  {shown.options()}"
    if not any(best.clearly_better_than(ranked) for ranked in ranking):
        yield "No answer is clearly worse than another: these samples do not tell them apart."


def _probe(shape: tuple[int, int, int], images: Images | None) -> Probe:
    return Probe.of_noise(shape) if images is None else Probe.of_images(images(shape))


def _line(name: str, value: str) -> str:
    return f"{name:<16} {value}"
