"""The command line; ``hdiscovery --help`` lists its commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from hdiscovery.config import DiscoveryConfig, from_preset, presets
from hdiscovery.models.adm_unet import TABLE_3
from hdiscovery.run import RunFolder

# What a few minutes on two CPU cores can show. It differs from the paper's recipe in its size, in
# the reconstructor, which is trained six times a step on recent pairs, and in the drawn heads.
DEMO = DiscoveryConfig(
    K=4,
    M=5,
    batch_size=16,
    steps=48,
    reconstructor="difference",
    r_updates=6,
    r_buffer=48,
    head_std=0.1,
)


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors that a user can mend are one line on standard error."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        if arguments[:1] == ["pretrain"]:
            return _pretrain(arguments[1:])
        options, rest = _parser().parse_known_args(arguments)
        return options.run(options, rest)
    except SystemExit as stop:  # argparse and tyro: help was shown, or the error was
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        print("\nStopped. Continue with --resume.", file=sys.stderr)
        return 130
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        print(f"hdiscovery: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hdiscovery", description="Find, measure and show directions in h-space."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser(
        "train", help="discover directions",
        description="Example: hdiscovery train MNIST32-400-20-32-5 --out runs/a --K 8 --M 10",
    )  # fmt: skip
    train.add_argument("preset", help=f"one of {', '.join(presets())}")
    train.add_argument("--out", type=Path, help="run folder; by default runs/PRESET")
    train.add_argument("--resume", action="store_true", help="continue the run in --out")
    train.set_defaults(run=_train)
    for name, text in (("evaluate", "measure RCA"), ("gallery", "write index.html")):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, metavar="RUN")
        command.add_argument("--pairs", type=int, default=512, help="pairs to measure RCA on")
        command.set_defaults(run=_evaluate if name == "evaluate" else _gallery)
    convert = commands.add_parser("convert", help="turn published ADM or PDAE weights into a DM")
    convert.add_argument("weights", type=Path, help="ADM's ema_*.pt, or PDAE's .pt")
    convert.add_argument(
        "--architecture", required=True, metavar="NAME|JSON",
        help=f"one of {', '.join(TABLE_3)}, or a JSON file of UNetConfig's fields",
    )  # fmt: skip
    convert.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    convert.set_defaults(run=_convert)
    judge = commands.add_parser(
        "judge", help="ask a classifier of real digits about a DM's samples"
    )
    judge.add_argument("dm", help="weight file or shipped diffusion model of MNIST")
    judge.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST/raw")
    judge.add_argument("--out", type=Path, default=Path("runs/judge"))
    judge.add_argument("--samples", type=int, default=500)
    judge.add_argument("--num-steps", type=int, default=20, help="DDIM steps")
    judge.set_defaults(run=_judge)
    demo = commands.add_parser("demo", help="train, evaluate and show, in minutes")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"))
    demo.add_argument("--resume", action="store_true", help="continue the demo's run")
    demo.set_defaults(run=_demo)
    return parser


def _pretrain(arguments: list[str]) -> int:
    from hdiscovery.pretrain import PretrainConfig, pretrain

    config = tyro.cli(PretrainConfig, args=arguments, prog="hdiscovery pretrain")
    for _ in _bar(pretrain(config), config.steps, ("loss",)):
        pass
    print(f"wrote {config.out / 'dm.safetensors'}")
    return 0


def _train(options: argparse.Namespace, rest: list[str]) -> int:
    config = from_preset(options.preset, **_changes(rest))
    _run_training(options.out or Path("runs") / options.preset, config, options.resume)
    return 0


def _changes(rest: list[str]) -> dict[str, Any]:
    """Parse ``--field value`` pairs by the config's own types; absent fields stay the preset's."""
    names = [word[2:].partition("=")[0].replace("-", "_") for word in rest if word[:2] == "--"]
    unknown = set(names) - {field.name for field in fields(DiscoveryConfig)}
    if unknown:
        known = ", ".join(field.name for field in fields(DiscoveryConfig))
        raise ValueError(f"unknown options {sorted(unknown)}; fields are: {known}.")
    given = tyro.cli(DiscoveryConfig, args=rest, prog="hdiscovery train PRESET")
    return {name: getattr(given, name) for name in names}


def _run_training(out: Path, config: DiscoveryConfig, resume: bool) -> RunFolder:
    from hdiscovery.train import settings, train

    if resume:
        run = RunFolder.open(out)
        config = DiscoveryConfig(**run.read_json("config.json"))
    else:
        run = RunFolder.create(out, settings(config))
    for _ in _bar(train(run, config), config.steps, ("L_G", "shift_error", "accuracy")):
        pass
    return run


def _bar(
    records: Iterable[dict[str, Any]], total: int, shown: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    with tqdm(total=total) as bar:
        for record in records:
            bar.update(record["step"] + 1 - bar.n)
            bar.set_postfix({name: f"{record[name]:.3f}" for name in shown})
            yield record


def _evaluate(options: argparse.Namespace, rest: list[str]) -> int:
    from hdiscovery.evaluate.rca import measure_rca
    from hdiscovery.train import open_run

    _no_more(rest)
    run = RunFolder.open(options.folder)
    accuracy = measure_rca(open_run(run), pairs=options.pairs)
    run.write_json("rca.json", asdict(accuracy))
    print(json.dumps(asdict(accuracy), indent=2))
    return 0


def _gallery(options: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    print(_show(RunFolder.open(options.folder), options.pairs))
    return 0


def _show(run: RunFolder, pairs: int) -> Path:
    from hdiscovery.evaluate.rca import measure_rca
    from hdiscovery.gallery.page import write_gallery
    from hdiscovery.train import open_run

    discovery = open_run(run)
    accuracy = measure_rca(discovery, pairs=pairs)
    run.write_json("rca.json", asdict(accuracy))
    return write_gallery(discovery, run.path, list(run.records()), accuracy)


def _demo(options: argparse.Namespace, rest: list[str]) -> int:
    _no_more(rest)
    run = _run_training(options.out, DEMO, options.resume)
    print("measuring and drawing …")
    page = _show(run, pairs=192)
    accuracy, last = run.read_json("rca.json"), list(run.records())[-10:]
    L_G = sum(record["L_G"] for record in last) / len(last)
    print(f"L_G over the last {len(last)} steps   {L_G:.3f}   (ln 2 = 0.693)")
    print(f"shift error                {accuracy['shift_error']:.2f}   (S/2 = {DEMO.S / 2:g})")
    print(f"RCA on {accuracy['pairs']} pairs           {accuracy['rca']:.2f}"
          f"   (chance = {1 / DEMO.K:g})")  # fmt: skip
    print(f"open {page.resolve()}")
    return 0


def _convert(options: argparse.Namespace, rest: list[str]) -> int:
    from hdiscovery.models.published import convert

    _no_more(rest)
    convert(options.weights, options.architecture, options.out)
    print(f"wrote {options.out}")
    return 0


def _judge(options: argparse.Namespace, rest: list[str]) -> int:
    from torchvision.utils import save_image

    from hdiscovery.data import load_mnist
    from hdiscovery.evaluate.judge import digit_classifier, judge, train_classifier
    from hdiscovery.models.dm import load_dm

    _no_more(rest)
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
    run = RunFolder(options.out)
    run.write_json("verdict.json", {"dm": options.dm, **asdict(verdict)})
    sheet = options.out / "samples.png"
    save_image(drawn.clamp(-1, 1), sheet, nrow=25, normalize=True, value_range=(-1, 1))
    print(json.dumps(asdict(verdict), indent=2))
    print(sheet)
    return 0


def _no_more(rest: list[str]) -> None:
    if rest:
        raise ValueError(f"unknown options {rest}; see --help.")


if __name__ == "__main__":
    sys.exit(main())
