"""Networks that torch.distributed wraps, in one process."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.correctness.case import M, Values, case, gradients, leaf, square
from tests.correctness.ways import Way


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1
        )
        try:
            yield
        finally:
            dist.destroy_process_group()


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return torch.tanh(self.used(x))


@case("pytorch#90171")
def ddp_inside_of_the_step(run: Way) -> Values:
    """The step calls a `DistributedDataParallel` network with `find_unused_parameters=True`."""
    net, x = _Net(), leaf(3, 4)
    with _alone():
        wrapped = DistributedDataParallel(net, find_unused_parameters=True)
        return gradients(square(run(lambda x, i: wrapped(x), M, x)), net=net, x=x)


@case("pytorch#40566")
def ddp_around_the_sampler(run: Way) -> Values:
    """`DistributedDataParallel(find_unused_parameters=True)` around the module that samples."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _Net()

        def forward(self, x):
            return run(lambda x, i: self.net(x), M, x)

    model, x = Model(), leaf(3, 4)
    with _alone():
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        return gradients(square(wrapped(x)), net=model.net, x=x)


@case(needs="torch.distributed.fsdp:fully_shard")
def fsdp2(run: Way) -> Values:
    """The step calls a network that `fully_shard` shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, x = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 4)), leaf(3, 4)
    with _alone():
        fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
        values = gradients(square(run(lambda x, i: torch.tanh(net(x)), M, x)), x=x)
        shards = {name: p.grad.full_tensor() for name, p in net.named_parameters()}
        return {**values, **shards}
