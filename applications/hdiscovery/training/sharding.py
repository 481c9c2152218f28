"""Shards a frozen diffusion model over the processes, if it is too large for one GPU."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from hdiscovery.dm.hspace import HSpaceUNet
from hdiscovery.training.world import World

PARTS = ("encode", "middle", "decode")


def shard(unet: HSpaceUNet, world: World) -> HSpaceUNet:
    """Shard a frozen network over the processes, by FSDP2; each gathers a block as it needs it.

    The chain runs the blocks again on its way back and gathers them again; its results are the
    same. Blocks are the entries of the network's module lists.

    Args:
        unet: The network, frozen, the same in every process. It is changed in place.
        world: The processes.

    Returns:
        ``unet``.

    Raises:
        ValueError: If there is only one process.
    """
    if world.size == 1:
        raise ValueError(
            "`shard_dm` shards the diffusion model over several processes, but there is one. "
            "Start several with torchrun, or pass `--no-shard-dm`."
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    blocks = [block for each in unet.modules() if isinstance(each, nn.ModuleList) for block in each]
    for block in reversed(blocks):  # inner lists before outer ones
        if any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    fully_shard(unet, mesh=mesh)
    for part in PARTS:  # the application calls these, and forward alone gathers by itself
        register_fsdp_forward_method(unet, part)
    return unet
