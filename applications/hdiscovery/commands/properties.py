"""Measure how alike direct, mean and global directions are."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from hdiscovery.commands.invert import (
    add_common_options,
    add_image_options,
    invert_files,
    refuse_existing,
    say_quality,
    steps_back,
)
from hdiscovery.directions.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from hdiscovery.directions.portable import PortableDirections
    from hdiscovery.editing.likeness import Cosines, Difference
    from hdiscovery.editing.source import Kind, Source

HELP = "measure how alike direct, mean and global directions are"
EXAMPLES = (
    "hdiscovery directions runs/a   # first: measures the means",
    "hdiscovery properties runs/a",
    "hdiscovery properties runs/a --image photo.png --direction 3 --direction 7",
)
KINDS: tuple[Kind, ...] = ("direct", "mean", "global")


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, metavar="RUN")
    add_image_options(parser, required=False)
    parser.add_argument(
        "--samples", type=int, default=8, help="fresh samples, and images where none are given"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the samples; not that of the means")
    parser.add_argument("--strength", type=float, help="s of the edits; S by default")
    parser.add_argument(
        "--direction", action="append", default=[], metavar="K",
        help="to draw; by default the most and the least alike",
    )  # fmt: skip
    parser.add_argument("--columns", type=int, default=7, help="images a row of the figure, odd")
    parser.add_argument(
        "--out", type=Path, help="folder; by default RUN, or here for a shipped one"
    )
    add_common_options(parser)


def run(options: Namespace) -> None:
    """Measure cosines and edited images; write properties.json and properties.png."""
    from hdiscovery.data.images import listed
    from hdiscovery.directions.portable import load_directions
    from hdiscovery.directions.shipped import located
    from hdiscovery.dm.device import device_of
    from hdiscovery.editing.layout import parse_direction
    from hdiscovery.editing.likeness import most_and_least_alike
    from hdiscovery.editing.report import report, sentences
    from hdiscovery.editing.source import FILE, open_source

    folder = located(options.folder)
    out = options.out or (folder if folder == options.folder else Path())
    refuse_existing([out / "properties.json", out / "properties.png"], options.overwrite)
    files = listed(options.image or [])
    device = device_of(options.device)
    sources: dict[Kind, Source] = {kind: open_source(folder, kind, device=device) for kind in KINDS}
    means = load_directions(folder / FILE)
    if options.seed == means.about.seed:
        raise ValueError(
            f"`--seed {options.seed}` draws the samples that the means are made of, which are "
            "alike by construction. Take another one."
        )
    strength = means.about.S if options.strength is None else options.strength
    asked = [parse_direction(text, means.about).k for text in options.direction]

    images = images_to_edit(options, files, sources["direct"])
    cosines, differences = measure(options, sources, means, images, strength)
    measured = report(
        means, cosines, differences, strength=strength, num_steps=images.num_steps,
        images=len(images.x_T), given_images=len(images.originals),
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    print("wrote", RunFolder(out).write_json("properties.json", measured))
    for line in sentences(measured):
        print(line)
    chosen = asked or most_and_least_alike([of_k["pixels"] for of_k in differences])
    print("wrote", draw(out / "properties.png", sources, images, chosen, strength, options.columns))


class Images(NamedTuple):
    """What is edited: noise, what it becomes without a shift, DDIM steps, the originals if any."""

    x_T: Tensor
    x_0: Tensor
    num_steps: int
    originals: list[Tensor]


def images_to_edit(options: Namespace, files: list[Path], source: Source) -> Images:
    """Invert the given images, or draw samples where none are given."""
    import torch

    from hdiscovery.dm.walk import draw_noise
    from hdiscovery.editing.inversion import generate

    dm, convention = source.dm, source.about.grid
    if not files:
        x_T, num_steps = draw_noise(dm, options.samples, options.seed), source.about.M
        return Images(
            x_T, generate(dm, x_T, num_steps=num_steps, convention=convention), num_steps, []
        )
    inverted = invert_files(files, dm, num_steps=options.steps, convention=convention)
    x_T = torch.stack([one.x_T for one in inverted])
    num_steps = steps_back(inverted, None)
    x_0 = generate(dm, x_T, num_steps=num_steps, convention=convention)
    for file, one, back in zip(files, inverted, x_0, strict=True):
        say_quality(file, one.x_0, back)
    return Images(x_T, x_0, num_steps, [one.x_0 for one in inverted])


def measure(
    options: Namespace,
    sources: dict[Kind, Source],
    means: PortableDirections,
    images: Images,
    strength: float,
) -> tuple[list[Cosines], list[dict[str, Difference]]]:
    """Return cosines and, by feature, differences of each direction."""
    from chainograd.samplers import time_grid
    from hdiscovery.dm.walk import draw_noise
    from hdiscovery.editing.distance import build_features
    from hdiscovery.editing.likeness import measure_cosines, measure_differences

    source, about = sources["direct"], means.about
    grid = time_grid(about.M, source.dm.schedule.num_train_steps, convention=about.grid)
    cosines = measure_cosines(
        source, means, draw_noise(source.dm, options.samples, options.seed), grid,
        progress=partial(tqdm, desc="cosines", total=len(about.times)),
    )  # fmt: skip
    differences = measure_differences(
        sources, {name: build_features(name, source.dm) for name in ("pixels", "encoder")},
        images.x_T, images.x_0, strength=strength, num_steps=images.num_steps,
        progress=partial(tqdm, desc="edited images"),
    )  # fmt: skip
    return cosines, differences


def draw(
    path: Path,
    sources: dict[Kind, Source],
    images: Images,
    chosen: list[int],
    strength: float,
    columns: int,
) -> Path:
    """Draw the first image along directions in the way of Fig. 9, a row for each kind."""
    import torch

    from hdiscovery.editing.editor import edit
    from hdiscovery.editing.layout import Asked, arrange
    from hdiscovery.editing.sheets import Sheet, draw_sheet
    from hdiscovery.editing.sheets import strength as word

    about, rows, labels = sources["direct"].about, [], []
    layout = arrange([Asked(chosen[0], None)], span=strength, columns=columns)
    for k in chosen:
        for kind in KINDS:
            rows.append(
                edit(sources[kind], images.x_T[:1], [k], layout.s[0], num_steps=images.num_steps)[0]
            )
            labels.append(f"direction {about.title(k)}\n{kind}")
    given = [("original", images.originals[0])] if images.originals else []
    return draw_sheet(
        path,
        Sheet(
            title="direct, mean and global directions; in the middle the DDIM "
            f"{'reconstruction' if given else 'sample'}",
            cells=torch.stack(rows),
            columns=[word(s) for s in layout.across],
            rows=labels,
            beside=given,
        ),
    )
