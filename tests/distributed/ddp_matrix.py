"""One of two gloo processes that try every way to wrap a chain in DDP; rank 0 prints what it saw.

Run by ``test_distributed`` with RANK and WORLD_SIZE set:
``python -m tests.distributed.ddp_matrix FOLDER``.
"""

import json
import os
import sys
import warnings
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from chainograd import ChainError, CheckpointedChain
from tests.problems import plain

M = 4
OPTIONS = {"default": {}, "find_unused": {"find_unused_parameters": True},
           "static_graph": {"static_graph": True}}  # fmt: skip


class Denoiser(nn.Module):
    """A step with two layers, shared by all steps of the chain."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Linear(6, 6, dtype=torch.float64) for _ in range(2))

    def forward(self, x, i):
        """Return the next state."""
        return x + 0.3 * torch.tanh(self.b(torch.sin(self.a(x))) + i / 10)


class Sampler(nn.Module):
    """A module that calls the chain: what is to be wrapped."""

    def __init__(self, denoiser, plan):
        super().__init__()
        self.denoiser = denoiser
        self.chain = CheckpointedChain(denoiser, M, plan=plan)

    def forward(self, x):
        """Return the sample."""
        return self.chain(x)


def made():
    """Return the same network in every process, and the whole batch."""
    torch.manual_seed(0)
    return Denoiser(), torch.randn(8, 6, dtype=torch.float64)


def error(where, options, plan, rank, accumulate):
    """Return the largest difference to the gradient of the whole batch in one process."""
    reference, X = made()
    plain(reference, M, X).square().mean().backward()
    denoiser, _ = made()
    mine = X[4 * rank : 4 * rank + 4]
    if where == "sampler":
        model = DistributedDataParallel(Sampler(denoiser, plan), **OPTIONS[options])
        run = model
    else:
        model = DistributedDataParallel(denoiser, **OPTIONS[options])
        run = CheckpointedChain(model, M, plan=plan)
    for _ in range(2):  # the second iteration runs on what DDP learnt in the first
        denoiser.zero_grad()
        for n, part in enumerate(parts := mine.split(2) if accumulate else [mine]):
            last = n == len(parts) - 1
            with nullcontext() if last else model.no_sync():
                (run(part).square().mean() / len(parts)).backward()
    pairs = zip(denoiser.parameters(), reference.parameters(), strict=True)
    return max((p.grad - q.grad).abs().max().item() for p, q in pairs)


def main(folder):
    """Try everything; rank 0 prints one JSON object."""
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    seen = {}
    for where in ("sampler", "denoiser"):
        for options in OPTIONS:
            for plan in ("nodes", "graph"):
                # `no_sync` with a static graph fails an assertion inside torch's reducer.
                for accumulate in (False, True) if options != "static_graph" else (False,):
                    name = f"{where} {options} {plan}{' accumulate' if accumulate else ''}"
                    try:
                        seen[name] = error(where, options, plan, dist.get_rank(), accumulate)
                    except ChainError as refused:
                        seen[name] = str(refused)
    if dist.get_rank() == 0:
        print(json.dumps(seen), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
