"""Memory, work and time of every method of going back through a sampler, side by side.

Run ``python benchmarks/throughput.py`` (``--quick`` for a first look). Each memory reading has its
own process; `chainograd.meter` reads the peak, or on CUDA the allocator. Timed runs alternate
between the methods in one process. Work is counted in floating-point operations. Work and bytes are
the same in every run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import against_M
import pareto
from measured import (
    apart,
    default_device,
    each_apart,
    environment,
    note,
    ratio,
    results,
    rounds,
    save,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from ways import WAYS, Way, costs
from working import working
from workloads import WORKLOADS, Workload

from chainograd import Plan, binomial, keep_last, meter


class Job(NamedTuple):
    """The measurements of a workload.

    Attributes:
        workload: Name of the workload.
        batch: Number of samples.
        Ms: Numbers of steps for the memory readings.
        M: Number of steps for time and for the frontier.
    """

    workload: str
    batch: int
    Ms: tuple[int, ...]
    M: int


FULL = (
    Job("mnist", 2, (5, 20, 100), 20),
    Job("unet", 2, (5, 10, 40), 10),
    Job("dit", 2, (5, 10, 40), 10),
)
FAR = (
    "plain loop",
    "checkpoint",
    "as published",
    "nodes",
    "budget 1/4",
    "binomial",
    "nodes, frozen",
)  # only these methods run at the largest M, which takes longest
COUNTED = 20  # work is counted up to this M; for larger M, counting only slows the reading down
QUICK = (Job("mnist", 2, (3, 5), 5), Job("unet", 2, (3, 5), 5), Job("dit", 2, (3, 5), 5))


def ways_of(w: Workload) -> list[Way]:
    """Return the methods that a workload supports."""
    return [way for way in WAYS.values() if way.fits(w)]


def memory(
    workload: str, way: str, M: int, batch: int, device: str, size: str = "bench"
) -> dict[str, Any]:
    """Return peak, evaluations and work of a run; under ``device="fake"`` nothing is computed.

    The work of more than `COUNTED` steps is None.
    """
    place = "cpu" if device == "fake" else device
    fake = FakeTensorMode(allow_non_fake_inputs=True) if device == "fake" else nullcontext()
    with fake:
        w = WORKLOADS[workload](M, batch, place, size)
        run = WAYS[way].prepared(w)
        if place != "cpu":
            run()  # libraries allocate their workspaces in the first run
        w.forget()
        w.evaluations.count = 0
        with working() if M <= COUNTED else nullcontext() as work, meter(place) as reading:
            run()
    return {
        "workload": workload, "way": way, "M": M, "batch": batch,
        "peak_bytes": reading.peak_bytes, "evaluations": w.evaluations.count,
        "flops": work.flops if work else None,
    }  # fmt: skip


def timing(job: Job, device: str, pairs: int, size: str = "bench") -> dict[str, Any]:
    """Return seconds of alternating runs; the median is robust against a slow first run."""
    w = WORKLOADS[job.workload](job.M, job.batch, device, size)

    def fresh(way: Way) -> Any:
        run = way.prepared(w)

        def forget_and_run() -> None:
            w.forget()
            run()

        return forget_and_run

    runs = {way.name: fresh(way) for way in ways_of(w)}
    rounds({"plain loop": runs["plain loop"]}, 1, device)  # pays first-call costs
    seconds = rounds(runs, pairs, device)
    return {"workload": job.workload, "M": job.M, "batch": job.batch, "seconds": seconds}


def frontier(job: Job, device: str, size: str = "bench") -> list[dict[str, Any]]:
    """Return predicted bytes and work of the plans that are best for some amount of memory."""
    w = WORKLOADS[job.workload](job.M, job.batch, device, size)
    plans = {f"last {k} graphs": keep_last(w.M, k) for k in range(1, w.M + 1)}
    plans |= {f"{s} nodes": binomial(w.M, slots=s) for s in range(1, w.M)}
    rows = []
    for layers, options in (("torch's", {"frozen": "off"}), ("frozen", {"frozen": "auto"})):
        if layers == "frozen" and not w.frozen:
            continue
        of_steps = costs(w, **options)
        priced = {name: plan.with_costs(of_steps) for name, plan in plans.items()}
        rows += [{"workload": job.workload, "M": job.M, "layers": layers, "plan": name,
                  "bytes": plan.peak_bytes, "flops": int(plan.seconds),
                  "evaluations": plan.evaluations}
                 for name, plan in _best(priced).items()]  # fmt: skip
    return rows


def _best(plans: dict[str, Plan]) -> dict[str, Plan]:
    """Return the plans that no other plan beats in both memory and work, by rising memory."""
    best: dict[str, Plan] = {}
    least = float("inf")
    for name, plan in sorted(plans.items(), key=lambda item: (item[1].peak_bytes, item[1].seconds)):
        if plan.seconds < least:
            best[name], least = plan, plan.seconds
    return best


def measure(
    jobs: tuple[Job, ...],
    pairs: int,
    device: str,
    size: str = "bench",
    far: Collection[str] = FAR,
) -> dict[str, Any]:
    """Return all readings; beyond the timed M, only the methods in ``far`` are read."""
    content: dict[str, list[Any]] = {"memory": [], "timing": [], "frontier": []}
    for job in jobs:
        ways = ways_of(WORKLOADS[job.workload](1, job.batch, device, size))
        readings = [(job.workload, way.name, M, job.batch, device, size)
                    for way in ways for M in job.Ms
                    if M <= job.M or way.name in far]  # fmt: skip
        content["memory"] += each_apart(memory, readings, device)
        content["timing"].append(apart(timing, job, device, pairs, size))
        note(f"times of {job.workload}")
        content["frontier"] += apart(frontier, job, device, size)
    return content


def memory_anew(out: Path, ways: Collection[str], device: str) -> dict[str, Any]:
    """Return the figures of a file, with memory and work of some methods measured again."""
    content = json.loads(out.read_text())
    rows = [row for row in content["memory"] if row["way"] in ways]
    readings = [
        (row["workload"], row["way"], row["M"], row["batch"], device, "bench") for row in rows
    ]
    for row, reading in zip(rows, each_apart(memory, readings, device), strict=True):
        row |= reading
    # The rest of the file, in particular its times, keeps its date and environment.
    return {**content, "memory_anew": {"ways": list(ways), **environment(device)}}


def table(content: dict[str, Any]) -> str:
    """Return a Markdown table for each workload, for the timed M."""
    return "\n\n".join(_table(content, row) for row in content["timing"])


def _table(content: dict[str, Any], timed: dict[str, Any]) -> str:
    name, M, batch, seconds = (timed[key] for key in ("workload", "M", "batch", "seconds"))
    rows = {row["way"]: row for row in content["memory"]
            if (row["workload"], row["M"]) == (name, M)}  # fmt: skip
    plain = rows["plain loop"]
    lines = [
        f"| {name}, M = {M}, batch {batch} | MiB | memory | memory : best plan | evaluations "
        "| work | time | images/s |",
        "|---|" + "---:|" * 7,
    ]
    for way, row in rows.items():
        best = pareto.of_frontier(content, row)
        lines.append(
            f"| {way} | {row['peak_bytes'] / 2**20:.1f} "
            f"| {row['peak_bytes'] / plain['peak_bytes']:.3f} "
            f"| {'' if best is None else f'{best:.2f}'} | {row['evaluations']:g} "
            f"| {row['flops'] / plain['flops']:.2f} | {ratio(seconds, way, 'plain loop'):.2f} "
            f"| {batch / median(seconds[way]):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--quick", action="store_true", help="few steps, one pair of runs")
    parser.add_argument("--pairs", type=int, help="timed runs of each method (3; 1 with --quick)")
    parser.add_argument("--far", nargs="+", choices=WAYS, default=FAR, metavar="WAY",
                        help="methods to run up to the largest M")  # fmt: skip
    parser.add_argument("--memory-of", nargs="+", choices=WAYS, metavar="WAY",
                        help="measure only memory and work of these methods again")  # fmt: skip
    parser.add_argument("--out", type=Path, help="JSON file; the figure goes beside it")
    options = parser.parse_args()
    out = options.out or results("throughput", options.device)
    pairs = options.pairs or (1 if options.quick else 3)
    if options.memory_of:
        content = memory_anew(out, options.memory_of, options.device)
    else:
        content = measure(QUICK if options.quick else FULL, pairs, options.device, far=options.far)
    content = save(out, options.device, content)
    pictures = out.with_suffix(".png"), out.with_name(f"{out.stem}_against_M.png")
    pareto.draw(content, pictures[0])
    against_M.draw(content, pictures[1])
    print(table(content))
    print(f"\nwrote {', '.join(map(str, (out, *pictures)))}")


if __name__ == "__main__":
    main()
