"""Ask a classifier of real digits about a diffusion model's samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from hdiscovery.commands.bars import bars
from hdiscovery.commands.options import Device, Model, SamplingSteps
from hdiscovery.progress import counted

if TYPE_CHECKING:
    from torch import Tensor

    from hdiscovery.evaluation.digits import Verdict

EXAMPLES = ("hdiscovery judge MNIST32-small --data data --samples 500",)
RENAMED = {"--num-steps": "--sampling-steps"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Ask a classifier of real digits about a diffusion model's samples.

    Writes verdict.json, and samples.png to look at.

    Attributes:
        data: Folder that holds MNIST/raw; MNIST is downloaded if it is not there.
        out: Folder of the results.
        samples: Samples to ask about.
    """

    dm: Model
    data: Annotated[Path, arg(metavar="DIR")] = Path("data")
    out: Path = Path("runs/judge")
    samples: int = 500
    sampling_steps: SamplingSteps = 20
    device: Device = "auto"


def run(options: Options) -> None:
    """Train a classifier on real digits, ask it about samples, and print what it says."""
    import json

    from torchvision.utils import save_image

    from hdiscovery.directions.run_folder import RunFolder

    verdict, drawn = judged(options)
    options.out.mkdir(parents=True, exist_ok=True)
    RunFolder(options.out).write_json("verdict.json", {"dm": options.dm, **asdict(verdict)})
    sheet = options.out / "samples.png"
    save_image(drawn.clamp(-1, 1), sheet, nrow=25, normalize=True, value_range=(-1, 1))
    print(json.dumps(asdict(verdict), indent=2))
    print(sheet)


def judged(options: Options) -> tuple[Verdict, Tensor]:
    """Return what the classifier says of the model's samples, and the samples."""
    from hdiscovery.data.mnist import load_mnist
    from hdiscovery.dm.device import device_of
    from hdiscovery.dm.open import load_dm
    from hdiscovery.evaluation.digits import digit_classifier, judge, train_classifier

    device = device_of(options.device)
    dm = load_dm(options.dm, device=device)
    edge = dm.image_shape[-1]
    images, labels = (part.to(device) for part in load_mnist(options.data, image_size=edge))
    classifier = digit_classifier(edge).to(device)
    bar = counted(bars("classifier"), 3 * (len(images) // 128))
    for _ in bar(train_classifier(classifier, images, labels)):
        pass
    test = (part.to(device) for part in load_mnist(options.data, train=False, image_size=edge))
    how = {"samples": options.samples, "num_steps": options.sampling_steps}
    return judge(dm, classifier, *test, **how)
