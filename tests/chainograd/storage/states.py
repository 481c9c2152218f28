"""States of every kind, and stores for them."""

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from chainograd import (
    Store,
    binomial,
    keep_last,
)
from chainograd.storage.host import HostStorage
from chainograd.storage.transfers import Transfers
from tests.chainograd.tensors.accelerators import Accelerator

M = 7
PLANS = {
    "nodes": keep_last(M, 1),
    "graph": keep_last(M, M),
    "last 3": keep_last(M, 3),
    "1 slot": binomial(M, slots=1),
    "3 slots": binomial(M, slots=3),
}


def storage_of(place, state, folder):
    if place == "folder":
        return Store(folder).storage(state, lambda: 1)
    if place == "host":
        return HostStorage(Transfers(torch.device("cpu"), Accelerator(), torch.empty))
    return Store("device", torch.bfloat16).storage(state, lambda: 1)


class Named(torch.Tensor):
    """A tensor of another class, and nothing more."""


ODD = {
    "sparse_coo": lambda: torch.eye(3).to_sparse(),
    "sparse_csr": lambda: torch.eye(3).to_sparse_csr(),
    "NestedTensor": lambda: torch.nested.nested_tensor(
        [torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged
    ),
    "nested tensor": lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]),
    "quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 3, torch.qint8),
    "class TwoTensor": lambda: TwoTensor(torch.ones(3), torch.ones(3)),
    "class Named": lambda: torch.ones(3).as_subclass(Named),
}
odd = pytest.mark.filterwarnings(
    "ignore:Sparse .* tensor support is in beta",
    "ignore:The PyTorch API of nested tensors",
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel",
)
