"""One of two gloo processes with a denoiser that FSDP2 shards; rank 0 prints what it saw.

Run by ``test_distributed`` with RANK and WORLD_SIZE set:
``python -m tests.distributed.fsdp_matrix FOLDER``.
"""

import json
import os
import sys
import warnings

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from chainograd import ChainError, CheckpointedChain, binomial
from tests.distributed.ddp_matrix import M, made
from tests.problems import plain

PLANS = {"nodes": "nodes", "graph": "graph", "2 slots": binomial(M, slots=2)}


def sharded(trainable, reshard):
    """Return the denoiser of every process, in shards."""
    denoiser, X = made()
    denoiser.requires_grad_(trainable)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (denoiser.a, denoiser.b, denoiser):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard)
    return denoiser, X


def shift():
    """Return a trainable tensor outside the denoiser."""
    torch.manual_seed(7)
    return torch.randn(6, dtype=torch.float64).requires_grad_()


def expected():
    """Return the gradients of the whole batch in one process: of x_T, the shift, the denoiser."""
    denoiser, X = made()
    s = shift()
    X.requires_grad_()
    plain(lambda x, i: denoiser(x + s, i), M, X).square().mean().backward()
    return X.grad, s.grad, [p.grad for p in denoiser.parameters()]


def error(trainable, reshard, plan):
    """Return the largest difference to the gradients of the whole batch."""
    denoiser, X = sharded(trainable, reshard)
    rank, s = dist.get_rank(), shift()
    mine = X[4 * rank : 4 * rank + 4].clone().requires_grad_()
    chain = CheckpointedChain(lambda x, i: denoiser(x + s, i), M, plan=plan)
    for _ in range(2):  # the second iteration runs on what FSDP learnt in the first
        denoiser.zero_grad()
        mine.grad = s.grad = None
        chain(mine).square().mean().backward()
    x_grad, s_grad, parameters = expected()
    total = s.grad.clone()
    dist.all_reduce(total)
    pairs = [(mine.grad / 2, x_grad[4 * rank : 4 * rank + 4]), (total / 2, s_grad)]
    if trainable:
        grads = [p.grad.full_tensor() for p in denoiser.parameters()]
        pairs += zip(grads, parameters, strict=True)
    return max((g - e).abs().max().item() for g, e in pairs)


def side_effect():
    """Return the error of x_T's gradient alone, and whether the shards got one unasked."""
    denoiser, X = sharded(trainable=True, reshard=True)
    rank, s = dist.get_rank(), shift()
    mine = X[4 * rank : 4 * rank + 4].clone().requires_grad_()
    y = CheckpointedChain(lambda x, i: denoiser(x + s, i), M)(mine)
    (g,) = torch.autograd.grad(y.square().mean(), mine)
    unasked = any(p.grad is not None for p in denoiser.parameters())
    return [(g / 2 - expected()[0][4 * rank : 4 * rank + 4]).abs().max().item(), unasked]


def shards_by_grad():
    """Return whether `torch.autograd.grad` for shards is an error, and if it fills ``.grad``."""
    denoiser, X = sharded(trainable=True, reshard=True)
    y = CheckpointedChain(denoiser, M)(X)
    try:
        torch.autograd.grad(y.square().mean(), list(denoiser.parameters()))
    except RuntimeError:
        return [True, any(p.grad is not None for p in denoiser.parameters())]
    return [False, False]


def second_derivative():
    """Return what a second derivative through trainable shards says."""
    denoiser, X = sharded(trainable=True, reshard=True)
    y = CheckpointedChain(denoiser, M)(X.requires_grad_())
    try:
        torch.autograd.grad(y.sum(), X, create_graph=True)
    except ChainError as refused:
        return str(refused)
    return "not refused"


def main(folder):
    """Try everything; rank 0 prints one JSON object."""
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    seen = {
        f"{'trainable' if trainable else 'frozen'} {'resharded' if reshard else 'kept'} {name}": (
            error(trainable, reshard, plan)
        )
        for trainable in (False, True)
        for reshard in (False, True)
        for name, plan in PLANS.items()
    }
    seen["x_T alone"] = side_effect()
    seen["shards by grad"] = shards_by_grad()
    seen["second derivative"] = second_derivative()
    if dist.get_rank() == 0:
        print(json.dumps(seen), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
