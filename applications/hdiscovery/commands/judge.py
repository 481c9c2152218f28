"""Ask a classifier of real digits about a diffusion model's samples."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from hdiscovery.directions.run_folder import RunFolder

HELP = "ask a classifier of real digits about a model's samples"
EXAMPLES = ("hdiscovery judge MNIST32-small --data data --samples 500",)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("dm", help="weight file or shipped diffusion model of MNIST")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of MNIST/raw")
    parser.add_argument("--out", type=Path, default=Path("runs/judge"))
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--num-steps", type=int, default=20, help="DDIM steps")


def run(options: Namespace) -> None:
    """Ask a classifier of real digits about a diffusion model's samples."""
    from torchvision.utils import save_image

    from hdiscovery.data.mnist import load_mnist
    from hdiscovery.dm.open import load_dm
    from hdiscovery.evaluate.digits import digit_classifier, judge, train_classifier

    dm = load_dm(options.dm)
    edge = dm.image_shape[-1]
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
