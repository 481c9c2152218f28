"""How all benchmarks measure: one process for each memory reading, alternating runs for time."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_PROCESSES = get_context("forkserver")  # a server that has imported torch and has run nothing
_PROCESSES.set_forkserver_preload([
    "torch", "torch._dynamo", "chainograd", "hdiscovery.training.algorithm1",
    "diffusers.models.unets.unet_2d", "diffusers.models.transformers.dit_transformer_2d",
])  # fmt: skip


def apart(function: Callable[..., T], *args: Any) -> T:
    """Return a function's result, computed in a separate process that ends afterwards.

    Raises:
        concurrent.futures.process.BrokenProcessPool: If the process was killed, for example
            because memory ran out.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=_PROCESSES) as process:
        return process.submit(function, *args).result()


def each_apart(function: Callable[..., T], jobs: Iterable[tuple[Any, ...]], device: str) -> list[T]:
    """Return a function's result for each job, each computed in a separate process.

    Counts and bytes do not depend on other processes. On a CPU, and for fake tensors, as many
    processes run at once as there are cores, with one thread each; on a GPU only one runs.
    """
    on_cpu = device == "fake" or torch.device(device).type == "cpu"

    def one(job: tuple[Any, ...]) -> T:
        returned = apart(_on_one_thread, function, *job)
        note(f"{function.__name__}: {', '.join(map(str, job))}")
        return returned

    with ThreadPoolExecutor((os.cpu_count() or 1) if on_cpu else 1) as waiting:
        return list(waiting.map(one, jobs))


def _on_one_thread(function: Callable[..., T], *args: Any) -> T:
    torch.set_num_threads(1)
    return function(*args)


def seconds_of(run: Callable[[], object], device: str) -> float:
    """Return the seconds of a run, including the work that it queued on a GPU."""
    if torch.device(device).type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3


def in_turn(runs: Mapping[str, Callable[[], object]], pairs: int, device: str) -> dict[str, Any]:
    """Return seconds of alternating runs, after one run of each to warm up."""
    return {name: times[1:] for name, times in rounds(runs, 1 + pairs, device).items()}


def rounds(runs: Mapping[str, Callable[[], object]], count: int, device: str) -> dict[str, Any]:
    """Return seconds of alternating runs, without a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(count):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, device))
    return seconds


def ratio(seconds: Mapping[str, list[float]], mine: str, other: str) -> float:
    """Return the median ratio of runs that directly followed each other."""
    pairs = zip(seconds[mine], seconds[other], strict=True)
    return median(a / b for a, b in pairs)


def environment(device: str) -> dict[str, Any]:
    """Return the environment on which the figures depend."""
    cuda = torch.device(device if device != "fake" else "cpu").type == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if cuda else device,
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def results(name: str, device: str = "cpu") -> Path:
    """Return the path of a benchmark's figures."""
    kind = "cpu" if device == "fake" else torch.device(device).type
    return Path(__file__).parent / "results" / kind / f"{name}.json"


def save(path: Path, device: str, content: dict[str, Any]) -> dict[str, Any]:
    """Write figures with their environment; an old file is replaced only by a complete new one."""
    content = {"environment": environment(device), **content}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
    return content


def default_device() -> str:
    """Return ``"cuda"`` if there is a GPU, else ``"cpu"``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def note(text: str) -> None:
    """Report progress on stderr."""
    print(text, file=sys.stderr, flush=True)
