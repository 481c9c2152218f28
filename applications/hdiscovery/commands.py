"""What each command does; the options are declared in `hdiscovery.cli`.

What a command alone needs is imported in it, so that ``--help`` does not wait for it.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from hdiscovery.autocast import fast_mode
from hdiscovery.config import DiscoveryConfig, from_preset, run_config
from hdiscovery.run import RunFolder

DEMO = "MNIST32-demo"


def train(options: Namespace) -> None:
    """Discover directions, by a preset with some fields changed."""
    changes = _changes(options.rest)
    out = options.out or Path("runs") / options.preset
    if options.resume:
        _train(*_resumed(out, changes))
    else:
        config = from_preset(options.preset, **changes)
        _train(RunFolder.create(out, asdict(config)), config)


def evaluate(options: Namespace) -> None:
    """Measure RCA."""
    print(json.dumps(_evaluate(RunFolder.open(options.folder), options.pairs), indent=2))


def gallery(options: Namespace) -> None:
    """Write the page."""
    print(_show(RunFolder.open(options.folder), options.pairs))


def demo(options: Namespace) -> None:
    """Train, evaluate, show, and print the figures."""
    if options.resume:
        run, config = _resumed(options.out, {})
    else:
        config = from_preset(DEMO, autocast=fast_mode("cpu"))
        run = RunFolder.create(options.out, asdict(config))
    _train(run, config)
    page = _show(run, pairs=512)
    rca, last = run.read_json("rca.json"), list(run.records())[-10:]
    L_G = sum(record["L_G"] for record in last) / len(last)
    print(f"L_G over the last {len(last)} steps   {L_G:.3f}   (ln 2 = 0.693)")
    print(f"shift error                {rca['shift_error']:.2f}    (S/2 = {config.S / 2:g})")
    print(f"RCA on {rca['pairs']} pairs           {rca['rca']:.2f}    (chance = {1 / config.K:g})")
    print(f"open {page.resolve()}")


def pretrain(arguments: Sequence[str]) -> None:
    """Train a diffusion model on MNIST."""
    from hdiscovery.pretrain import PretrainConfig, pretrain

    config = tyro.cli(PretrainConfig, args=arguments, prog="hdiscovery pretrain")
    for _ in _bar(pretrain(config), config.steps, ("loss",)):
        pass
    print(f"wrote {config.out / 'dm.safetensors'}")


def judge(options: Namespace) -> None:
    """Ask a classifier of real digits about a diffusion model's samples."""
    from torchvision.utils import save_image

    from hdiscovery.data import load_mnist
    from hdiscovery.evaluate.judge import digit_classifier, judge, train_classifier
    from hdiscovery.models.dm import load_dm

    dm = load_dm(options.dm)
    edge = dm.config.image_size
    images, labels = load_mnist(options.data, image_size=edge)
    classifier = digit_classifier(edge)
    training = train_classifier(classifier, images, labels)
    for _ in tqdm(training, "classifier", total=3 * (len(images) // 128)):
        pass
    test = load_mnist(options.data, train=False, image_size=edge)
    verdict, drawn = judge(
        dm, classifier, *test, samples=options.samples, num_steps=options.num_steps
    )
    options.out.mkdir(parents=True, exist_ok=True)
    RunFolder(options.out).write_json("verdict.json", {"dm": options.dm, **asdict(verdict)})
    sheet = options.out / "samples.png"
    save_image(drawn.clamp(-1, 1), sheet, nrow=25, normalize=True, value_range=(-1, 1))
    print(json.dumps(asdict(verdict), indent=2))
    print(sheet)


def convert(options: Namespace) -> None:
    """Turn published weights, or a diffusers folder, into a diffusion model's file."""
    if options.weights.is_dir():
        from hdiscovery.models.diffusers_folder import convert_folder

        if options.architecture is not None:
            raise ValueError(
                f"`--architecture {options.architecture}` does not go with a folder: diffusers "
                "writes the architecture into it. Leave the option out."
            )
        convert_folder(options.weights, options.out)
    elif options.weights.is_file():
        from hdiscovery.models.published import convert

        if options.architecture is None:
            raise ValueError(
                f"`--architecture` is needed for {options.weights}: published weights do not tell "
                "theirs. See --help for its values."
            )
        convert(options.weights, options.architecture, options.out)
    else:
        raise FileNotFoundError(
            f"`weights` {options.weights} is not a file, and no diffusers folder either."
        )
    print(f"wrote {options.out}")


def export(options: Namespace) -> None:
    """Turn a diffusion model into a diffusers folder."""
    from hdiscovery.models.diffusers_folder import write_folder
    from hdiscovery.models.dm import load_dm

    write_folder(load_dm(options.dm), options.out)
    print(f"wrote {options.out}")


def _changes(rest: Sequence[str]) -> dict[str, Any]:
    """Parse ``--field value`` pairs by the config's own types; absent fields stay the preset's."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in rest if word[:2] == "--"]
    unknown = set(names) - {field.name for field in fields(DiscoveryConfig)}
    if unknown:
        known = ", ".join(field.name for field in fields(DiscoveryConfig))
        raise ValueError(f"unknown options {sorted(unknown)}; fields are: {known}.")
    given = tyro.cli(DiscoveryConfig, args=rest, prog="hdiscovery train PRESET")
    return {name: getattr(given, name) for name in names}


def _resumed(out: Path, changes: dict[str, Any]) -> tuple[RunFolder, DiscoveryConfig]:
    """Return the run and its own config, changed where a run may change on its way."""
    run = RunFolder.open(out)
    config = run_config(run).changed(**changes)
    run.write_json("config.json", asdict(config))
    return run, config


def _train(run: RunFolder, config: DiscoveryConfig) -> None:
    from hdiscovery.train import train

    for _ in _bar(train(run, config), config.steps, ("L_G", "shift_error", "accuracy")):
        pass


def _evaluate(run: RunFolder, pairs: int) -> dict[str, Any]:
    from hdiscovery.evaluate.rca import measure_rca
    from hdiscovery.train import open_run

    accuracy = asdict(measure_rca(open_run(run), pairs=pairs, progress=partial(tqdm, desc="RCA")))
    run.write_json("rca.json", accuracy)
    return accuracy


def _show(run: RunFolder, pairs: int) -> Path:
    from hdiscovery.evaluate.rca import Accuracy
    from hdiscovery.gallery.page import write_gallery
    from hdiscovery.train import open_run

    accuracy = Accuracy(**_evaluate(run, pairs))
    return write_gallery(
        open_run(run), run.path, list(run.records()), accuracy, progress=partial(tqdm, desc="page")
    )


def _bar(
    records: Iterable[dict[str, Any]], total: int, shown: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    with tqdm(desc="training", total=total) as bar:
        for record in records:
            bar.update(record["step"] + 1 - bar.n)
            bar.set_postfix({name: f"{record[name]:.3f}" for name in shown})
            yield record
