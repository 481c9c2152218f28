"""What other ways of going back through a sampler cost within its steps: bytes and work.

Run ``python benchmarks/peers_within.py`` (``--models SD1.5`` for one model; any other of diffusers
as in ``models_of_today.py``). A sampler of two steps runs on fake tensors; bytes and work of more
steps follow, for each step keeps and does the same. Device bytes are the peak of live tensors
beside the weights and their gradients. `PUBLISHED` holds what others have measured.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from measured import each_apart, note, results, save
from model_options import add_model_options, chosen
from models_of_today import Built, build, weight_bytes
from peer_blocks import BlockCall, block_calls
from peer_host import Host
from peer_ways import WAYS, Way, prepared
from published_models import Model, Training
from torch._subclasses.fake_tensor import FakeTensorMode
from working import working

from chainograd import meter
from chainograd.tensors.flops import FORMULAS

STEPS = (20, 50)

SEGMENTED = (
    "SimpleTuner, documentation/experimental/SEGMENTED_CHECKPOINTING.md at 363fbc3c: bf16, H100, "
    "one training step of an adapter, the peak of the device; Wan's weights lie on the host"
)
# `interval2` is one checkpoint around each two blocks, `seg2-stride4` is segments 2/4 above.
PUBLISHED = [
    {"model": model, "way": way, "GiB": GiB, "source": SEGMENTED}
    for model, readings in {
        "Wan2.1-1.3B, 832x480, 81 frames": {
            "none": 71.90, "layer": 4.73, "interval2": 6.32, "seg2-stride4": 39.25,
            "activation-offload": 8.78,
        },
        "SD3, 1024 px": {
            "none": 34.59, "layer": 7.67, "interval2": 8.93, "seg2-stride4": 20.14,
            "activation-offload": 9.68,
        },
        "PixArt, 1024 px": {"none": 41.73, "layer": 5.63, "interval2": 6.01, "seg2-stride4": 23.90},
        "SDXL, 1024 px": {"none": 13.03, "layer": 6.53},
    }.items()
    for way, GiB in readings.items()
]  # fmt: skip

# Note [Two steps tell of many]
# Steps are alike: the first state wants a gradient as all others do, and the gradients of what is
# trained are there before the run. So each further step keeps the same bytes on the way forward,
# and the peak comes while all steps but one are kept. The peak of M steps is the peak of two,
# and M - 2 times what the second step kept. What the first step keeps may differ: its state is the
# caller's.


@dataclass(frozen=True)
class Reading:
    """What a run of some steps needs.

    Attributes:
        M: How many steps it had.
        device_bytes: The peak of live tensors that the run made.
        kept_bytes: What each further step keeps until its way back.
        flops: Its work.
        host_bytes: The most that lay on the host.
        sent_bytes: What each further step sends there.
    """

    M: int
    device_bytes: int
    kept_bytes: int
    flops: int
    host_bytes: int
    sent_bytes: int

    def at(self, M: int) -> Reading:
        """Return the reading of M steps; see Note [Two steps tell of many]."""
        device = self.device_bytes + (M - self.M) * self.kept_bytes
        host = self.host_bytes + (M - self.M) * self.sent_bytes
        return replace(
            self, M=M, device_bytes=device, host_bytes=host, flops=self.flops * M // self.M
        )


def reading(built: Built, way: Way, calls: list[BlockCall], M: int = 2) -> Reading:
    """Return what a run of M steps needs, at least 2."""
    for tensor in built.trained:
        tensor.grad = torch.zeros_like(tensor)
    x = built.x.detach().requires_grad_()
    host, live, away = Host(), [], []
    run = prepared(built, way, calls, host)

    def note_live() -> None:
        live.append(metered.live_bytes)
        away.append(host.live_bytes)

    with working(FORMULAS) as work, meter("cpu") as metered:
        run(x, M, note_live)
    kept, sent = live[-1] - live[-2], away[-1] - away[-2]
    return Reading(M, metered.peak_bytes, kept, work.flops, host.peak_bytes, sent)


def rows_of(model: Model, training: Training, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the rows of all ways that fit a model, on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(model, training)
        calls = block_calls(built)
        about = {"model": model.name, "training": training, "weight_bytes": weight_bytes(built.net)}
        rows = []
        for way in WAYS.values():
            if way.fits(calls):
                two = reading(built, way, calls)
                rows += [{**about, "way": way.name, **asdict(two.at(M))} for M in steps]
                note(f"{model.name}: {way.name}")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table; work is relative to the plain loop."""
    plain = {(r["model"], r["training"], r["M"]): r["flops"] for r in rows if r["way"] == "plain"}
    lines = [
        "| model | training | way | M | GiB | work | host GiB |",
        "|---|---|---|" + "---:|" * 4,
    ]
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
    jobs = [(model, options.training, tuple(options.M)) for model in chosen(options)]
    rows = [row for each in each_apart(rows_of, jobs, "fake") for row in each]
    out = options.out or results("peers_within", "fake")
    save(out, "fake", {"rows": rows, "published": PUBLISHED})
    print(table(rows))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
