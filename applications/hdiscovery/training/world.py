"""The processes that train together, or the only process."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hdiscovery.dm.device import device_of

# Note [Restarts]
# Where processes meet, torchrun keeps one store for all attempts, and gloo may read there the
# addresses of processes that are dead, and wait for them. On one machine each attempt gets keys of
# its own. Among several machines attempts are not counted alike: there torchrun has to be started
# with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which makes a store for each attempt.


@dataclass(frozen=True, slots=True)
class World:
    """One process among those that train together.

    Attributes:
        rank: Number of this process; process 0 writes.
        size: Number of processes.
        device: Where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return a module whose backward pass averages gradients over the processes, once."""
        if self.size == 1:
            return module
        # DDP copies rank 0's buffers at every forward pass: the running statistics of batch norms.
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def share(self, total: int) -> int:
        """Return this process's part of a batch.

        Raises:
            ValueError: If the batch cannot be shared out evenly.
        """
        if total % self.size:
            raise ValueError(
                f"`batch_size` {total} is that of all processes together and must be a multiple of "
                f"their number, {self.size}: try {total // self.size * self.size + self.size}."
            )
        return total // self.size

    def average(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Return numbers, averaged over the processes."""
        numbers = torch.stack([value.detach().double() for value in values.values()])
        if self.size > 1:
            dist.all_reduce(numbers)
            numbers /= self.size
        return dict(zip(values, numbers.tolist(), strict=True))

    def average_finite(self, terms: Mapping[str, Tensor]) -> dict[str, float]:
        """Return numbers, averaged over the processes, the same ones in every process.

        Raises:
            FloatingPointError: If a number is not finite.
        """
        record = self.average(terms)
        for name, value in record.items():
            if not math.isfinite(value):
                raise FloatingPointError(f"{name} is {value}")
        return record

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Average the gradients of parameters over the processes, in one reduction."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.size == 1 or not grads:
            return
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, mean in zip(grads, (flat / self.size).split([g.numel() for g in grads]),
                              strict=True):  # fmt: skip
            grad.copy_(mean.view_as(grad))

    def gather(self, thing: Any) -> list[Any]:
        """Return the things of all processes by rank, in rank 0; an empty list in the others."""
        if self.size == 1:
            return [thing]
        things: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(thing, things)
        return things or []

    def first(self, action: Any) -> Any:
        """Run an action in rank 0; return its result, or raise its error, in every process."""
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome[0] = action()
            except Exception as error:
                outcome[1] = error
        if self.size > 1:
            dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or be the only one.

    Args:
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for CUDA where there is some.

    Raises:
        ValueError: If there is no such device.
    """
    here = device_of(device)
    if "WORLD_SIZE" not in os.environ:
        yield World(device=here)
        return
    if here.type == "cuda":
        here = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(here)
    backend = "cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo"
    store, rank, size = next(dist.rendezvous("env://"))  # pyright: ignore[reportPrivateImportUsage]
    if os.environ.get("LOCAL_WORLD_SIZE") == str(size):  # note [Restarts]
        store = dist.PrefixStore(f"attempt {_restarts()}", store)  # pyright: ignore
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), here)
    finally:
        dist.destroy_process_group()


def restarted() -> bool:
    """Return whether ``torchrun`` started this process again after one has died."""
    return _restarts() > 0


def launcher() -> str:
    """Return what started this process: the same for all attempts of one ``torchrun``."""
    return f"{socket.gethostname()} {os.getppid()}"


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
