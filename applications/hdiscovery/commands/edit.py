"""Edit images along directions."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from hdiscovery.commands.invert import (
    add_common_options,
    add_image_options,
    invert_files,
    refuse_existing,
    say_quality,
    steps_back,
)

if TYPE_CHECKING:
    from torch import Tensor

    from hdiscovery.directions.about import About
    from hdiscovery.editing.layout import Layout
    from hdiscovery.editing.sheets import Sheet

HELP = "edit images along directions"
EXAMPLES = (
    "hdiscovery edit runs/a --image photo.png --direction 3:1.5 --direction 7:-2   # both at once",
    "hdiscovery edit runs/a --image photo.png --direction 3                 # a strip, -S to S",
    "hdiscovery edit runs/a --image photos/ --direction 3 --direction 7     # a grid of the two",
    "hdiscovery edit runs/a --image photo.png --direction 3 --direction 7:-2  # a strip, 7 fixed",
    "hdiscovery edit directions.safetensors --image photo.png --direction 3:1 "
    "--strength calibrated",
)


def add_options(parser: ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="RUN",
        help="a run's folder, the name of a shipped run, or a directions.safetensors",
    )
    add_image_options(parser)
    parser.add_argument(
        "--direction", action="append", default=[], metavar="K[:S]",
        help="a direction, counted from 0 or by its label, and its strength; without a strength: "
        "all from -S to S. Repeat it for several at once",
    )  # fmt: skip
    parser.add_argument(
        "--kind", choices=("direct", "mean", "global"),
        help="which directions; by default direct of a run, mean (or else global) of a file",
    )  # fmt: skip
    parser.add_argument(
        "--strength", choices=("plain", "calibrated"), default="plain",
        help="calibrated: 1 changes an image as much along every direction",
    )  # fmt: skip
    parser.add_argument("--span", type=float, help="end of strips; S, or 1 where calibrated")
    parser.add_argument(
        "--columns", type=int, default=7, help="images along a strip, odd, 7 by default"
    )
    parser.add_argument(
        "--sampling-steps", type=int, help="DDIM steps back; by default as many as the inversion"
    )
    parser.add_argument(
        "--unscaled", action="store_true",
        help="do not scale strengths by the training's steps over the sampling steps",
    )  # fmt: skip
    parser.add_argument("--dm", help="for a file: diffusion model, if not the one it names")
    parser.add_argument(
        "--another-dm", action="store_true", help="for a file: allow a model it was not made for"
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images at once")
    parser.add_argument("--out", type=Path, default=Path("edited"))
    add_common_options(parser)


def run(options: Namespace) -> None:
    """Invert, say how well that went, then edit."""
    import torch
    from tqdm import tqdm

    from hdiscovery.data.images import listed, save_image
    from hdiscovery.dm.device import device_of
    from hdiscovery.editing.editor import edit
    from hdiscovery.editing.inversion import generate
    from hdiscovery.editing.layout import arrange, parse_direction
    from hdiscovery.editing.sheets import draw_sheet
    from hdiscovery.editing.source import open_source

    files = listed(options.image)
    source = open_source(
        options.source, options.kind, dm=options.dm, another_dm=options.another_dm,
        device=device_of(options.device),
    )  # fmt: skip
    about, dm = source.about, source.dm
    if options.batch_size < 1:
        raise ValueError(f"`--batch-size` must be at least 1, got {options.batch_size}.")
    calibrated = options.strength == "calibrated"
    span = options.span if options.span is not None else 1.0 if calibrated else about.S
    asked = [parse_direction(text, about) for text in options.direction]
    layout = arrange(asked, span=span, columns=options.columns)
    s = layout.s * torch.tensor(about.scales(layout.k)) if calibrated else layout.s
    if s.abs().max() > about.S:
        print(f"note: strengths beyond S = {about.S:g} were not trained")
    single = not layout.across  # one edited image, which is written by itself as well
    name = f"{source.kind}_{layout.name}{'_calibrated' * calibrated}"
    names = [f"{file.stem}_{name}" for file in files]
    sheets = [options.out / f"{name}{'_sheet' * single}.png" for name in names]
    alone = [options.out / f"{name}.png" for name in names if single]
    refuse_existing([*sheets, *alone], options.overwrite)

    inverted = invert_files(files, dm, num_steps=options.steps, convention=about.grid)
    num_steps = steps_back(inverted, options.sampling_steps)
    x_T = torch.stack([one.x_T for one in inverted])
    back = torch.cat([
        generate(dm, part, num_steps=num_steps, convention=about.grid)
        for part in x_T.split(options.batch_size)
    ])  # fmt: skip
    quality = [
        say_quality(file, one.x_0, x) for file, one, x in zip(files, inverted, back, strict=True)
    ]

    edited = edit(
        source, x_T, layout.k, s.flatten(0, 1), num_steps=num_steps,
        gain=1.0 if options.unscaled else None, batch_size=options.batch_size,
        progress=lambda batches: tqdm(batches, "editing"),
    )  # fmt: skip
    for j, file in enumerate(files):
        title = f"{file.name}, {quality[j]}"
        cells = edited[j].unflatten(0, s.shape[:2])
        beside = (("original", inverted[j].x_0), ("reconstruction", back[j]))
        print("wrote", draw_sheet(sheets[j], sheet_of(layout, about, title, cells, beside)))
        if single:
            print("wrote", save_image(edited[j, 0], alone[j]))


def sheet_of(
    layout: Layout, about: About, title: str, cells: Tensor, beside: tuple[tuple[str, Tensor], ...]
) -> Sheet:
    """Return the figure of one image's edits, the axes named by their directions."""
    from hdiscovery.editing.sheets import Sheet, strength

    facts = [
        f"{arrow} direction {about.title(k)}" for arrow, k in zip("→↑", layout.axes, strict=False)
    ] + [f"direction {about.title(k)} at {strength(s)}" for k, s in layout.fixed]
    return Sheet(
        title=f"{title}\n{',  '.join(facts)}",
        cells=cells,
        columns=[strength(s) for s in layout.across] or ["edited"],
        rows=[strength(s) for s in layout.down],
        beside=beside,
    )
