"""One of two gloo processes that do a step of discovery together; rank 0 prints what it saw.

Run by ``test_distributed``: ``python -m tests.hdiscovery.training.together``, with what torchrun
sets.
"""

import json
import warnings

import torch
import torch.distributed as dist
from hdiscovery.training.sharding import shard
from hdiscovery.training.trainer import Trainer
from hdiscovery.training.world import World, joined

from tests.hdiscovery.tiny import tiny

RATE = {"learning_rate": 1e-15}  # so small that D's step is no part of the comparison


class Plain(torch.nn.Module):
    """A reconstructor without batch norm, which would see the batch of its process."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2 * 64, 4)

    def forward(self, x_0, shifted):
        """Return logits and shift."""
        out = self.layer(torch.cat([x_0, shifted], 1).flatten(1))
        return out[:, :-1], out[:, -1]


def trainer(world, **changes):
    """Return a trainer of tiny networks, the same ones in every process."""
    d = tiny(batch_size=8, **RATE, **changes)
    torch.manual_seed(2)
    d.R = Plain().double()
    return Trainer(d, world)


def batch(d):
    """Return the whole batch, the same one in every process."""
    torch.manual_seed(3)
    x_T, k, s = d.draw(8)
    return x_T.double(), k, s.double()


def gradients(one):
    """Return the gradients that a step left, of each network as one vector."""
    nets = (one.networks.shift_block, one.networks.R, one.networks.D)
    return [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in nets]


def apart(got, expected):
    """Return the largest difference of gradients, relative to the network's largest one."""
    pairs = zip(got, expected, strict=True)
    return max(((g - e).abs().max() / e.abs().max()).item() for g, e in pairs)


def error(world, **changes):
    """Return the largest difference to one process with the whole batch, and the reductions."""
    alone = trainer(World(), **changes)
    alone.step(*batch(alone.networks))
    expected = gradients(alone)
    together, reductions = trainer(world, **changes), [0, 0]

    def counted(which):
        def hook(state, bucket):
            reductions[which] += bucket.is_last()
            mean = bucket.buffer() / world.size
            dist.all_reduce(mean)
            # No callback: a thread of gloo that still holds one when Python ends, aborts it.
            done = torch.futures.Future()
            done.set_result(mean)
            return done

        return hook

    together.algorithm.D.register_comm_hook(None, counted(0))
    together.algorithm.objective.register_comm_hook(None, counted(1))
    x_T, k, s = (tensor.chunk(world.size)[world.rank] for tensor in batch(together.networks))
    for _ in range(2):  # the second step runs on what DDP learnt in the first
        record = together.step(x_T, k, s)
    difference = apart(gradients(together), expected)
    return {"difference": difference, "reductions": reductions, "L_D": record["L_D"]}


def shards(world):
    """Return the difference that sharding the frozen model makes, and a process's part of it."""
    whole, parts = trainer(world), trainer(world)
    total = sum(p.numel() for p in parts.networks.dm.unet.parameters())
    shard(parts.networks.dm.unet, world)
    mine = sum(p.to_local().numel() for p in parts.networks.dm.unet.parameters())
    x_T, k, s = (tensor.chunk(world.size)[world.rank] for tensor in batch(whole.networks))
    for each in (whole, parts):
        for _ in range(2):
            each.step(x_T, k, s)
    difference = apart(gradients(parts), gradients(whole))
    return {"difference": difference, "part": mine / total}


def main():
    """Try everything; rank 0 prints one JSON object."""
    warnings.simplefilter("ignore")
    with joined("cpu") as world:
        seen = {
            "plain": error(world),
            "micro-batches": error(world, micro_batch=2),
            "again": error(world, r_updates=3),
            "shards": shards(world),
        }
        if world.leads:
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
