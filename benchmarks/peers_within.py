"""What other ways of going back through a sampler cost within its steps: bytes and work.

Run ``python benchmarks/peers_within.py`` (``--models SD1.5`` for one model; any other of diffusers
as in ``models_of_today.py``). Samplers of 1 and 2 steps run on fake tensors; bytes and work of more
steps follow, for both grow by the same with each step. Device bytes are the peak of live tensors
beside the weights and their gradients. `PUBLISHED` holds what others have measured.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import Any

import torch
from measured import each_apart, note, results, save
from models_of_today import Built, Model, Training, add_model_options, build, chosen, weight_bytes
from peer_ways import WAYS, BlockCall, Host, Way, block_calls, prepared
from torch._subclasses.fake_tensor import FakeTensorMode
from working import ALL, working

from chainograd import meter

FEW = (1, 2)
STEPS = (20, 50)
BY_DEFAULT = ("SD1.5", "SDXL", "SD3.5-M", "FLUX.1-dev", "Wan2.1-1.3B")  # in a quarter of an hour

SEGMENTED = (
    "SimpleTuner, documentation/experimental/SEGMENTED_CHECKPOINTING.md, bf16 on an H100; "
    "one training step of a LoRA, weights included; seg2-stride4 is segments 2/4"
)
PUBLISHED = [
    {"model": model, "way": way, "GiB": GiB, "source": SEGMENTED}
    for model, readings in {
        "Wan2.1-1.3B, 832x480, 81 frames": {"none": 71.90, "layer": 4.73, "seg2-stride4": 39.25},
        "SD3, 1024 px": {"none": 34.59, "layer": 7.67, "seg2-stride4": 20.14},
        "PixArt, 1024 px": {"none": 41.7, "layer": 5.6},
        "SDXL, 1024 px": {"none": 13.03, "layer": 6.53},
    }.items()
    for way, GiB in readings.items()
]


@dataclass(frozen=True)
class Reading:
    """What a run needs.

    Attributes:
        device_bytes: The peak of live tensors that the run made.
        flops: Its work.
        host_bytes: The most that lay on the host.
    """

    device_bytes: int
    flops: int
    host_bytes: int

    def at(self, M: int, first: Reading) -> Reading:
        """Return the reading of M steps; this is that of `FEW`'s second, given its first."""
        few, more = FEW

        def line(a: int, b: int) -> int:
            return b + (b - a) * (M - more) // (more - few)

        return Reading(*map(line, asdict(first).values(), asdict(self).values()))


def reading(built: Built, way: Way, calls: list[BlockCall], M: int) -> Reading:
    """Return what a run of M steps needs, whose first state wants a gradient as all others do.

    Gradients of what is trained are there before the run, as after the first of many.
    """
    for tensor in built.trained:
        tensor.grad = torch.zeros_like(tensor)
    x = built.x.detach().requires_grad_()
    host = Host()
    run = prepared(built, way, calls, host)
    with working(ALL) as work, meter("cpu") as metered:
        run(x, M)
    return Reading(metered.peak_bytes, work.flops, host.peak_bytes)


def rows_of(model: Model, training: Training, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the rows of all ways that fit a model, on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(model, training)
        calls = block_calls(built)
        about = {"model": model.name, "training": training, "weight_bytes": weight_bytes(built.net)}
        rows = []
        for way in WAYS.values():
            if way.fits(calls):
                first, second = (reading(built, way, calls, M) for M in FEW)
                rows += [
                    {**about, "way": way.name, "M": M, **asdict(second.at(M, first))}
                    for M in steps
                ]
            note(f"{model.name}: {way.name}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table; work is that of the plain loop."""
    plain = {(r["model"], r["training"], r["M"]): r["flops"] for r in rows if r["way"] == "plain"}
    lines = ["| model | training | way | M | GiB | work | host GiB |", "|---|---|---|" + "---:|" * 4]
    for row in rows:
        work = row["flops"] / plain[row["model"], row["training"], row["M"]]
        lines.append(
            f"| {row['model']} | {row['training']} | {row['way']} | {row['M']} "
            f"| {row['device_bytes'] / 2**30:.2f} | {work:.3f} | {row['host_bytes'] / 2**30:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_options(parser)
    parser.add_argument("--M", type=int, nargs="*", default=STEPS, help="numbers of steps")
    options = parser.parse_args()
    if options.models is None:
        options.models = BY_DEFAULT
    jobs = [(model, options.training, tuple(options.M)) for model in chosen(options)]
    rows = [row for each in each_apart(rows_of, jobs, "fake") for row in each]
    out = options.out or results("peers_within", "fake")
    save(out, "fake", {"rows": rows, "published": PUBLISHED})
    print(table(rows))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
