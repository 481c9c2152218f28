"""Tensors of every kind, taken apart into plain ones."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor

from chainograd.tensors.parts import dense_parts, is_plain, kind_of, tensor_bytes

pytestmark = pytest.mark.filterwarnings(
    "ignore:Sparse .* tensor support is in beta",
    "ignore:The PyTorch API of nested tensors",
    "ignore:torch.quantize_per_tensor, torch.quantize_per_channel",
)


class Named(torch.Tensor):
    """A tensor of another class, and nothing more."""


def uncoalesced():
    return torch.sparse_coo_tensor([[0, 0, 2]], [1.0, 2.0, 3.0], (4,), check_invariants=True)


def jagged():
    rows = [torch.ones(2, 3), torch.zeros(4, 3)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


def with_holes():
    values = torch.arange(10.0).view(5, 2)
    return torch.nested.nested_tensor_from_jagged(
        values, torch.tensor([0, 3, 5]), lengths=torch.tensor([2, 1])
    )


def per_channel():
    x = torch.arange(6.0).view(2, 3)
    return torch.quantize_per_channel(
        x, torch.tensor([0.5, 1]), torch.tensor([0, 1]), 0, torch.qint8
    )


# How to make it, the shapes of its parts, its bytes.
KINDS = {
    "a view": (lambda: torch.ones(4, 6)[:, ::2], [(4, 3)], 48),
    "a parameter": (lambda: torch.nn.Parameter(torch.ones(3)), [(3,)], 12),
    "conjugated": (lambda: torch.ones(3, dtype=torch.complex64).conj(), [(3,)], 24),
    "8 bits": (lambda: torch.ones(3).to(torch.float8_e4m3fn), [(3,)], 3),
    "flags": (lambda: torch.ones(3, dtype=torch.bool), [(3,)], 3),
    "bits": (lambda: torch.empty(3, dtype=torch.uint8).view(torch.bits8), [(3,)], 3),
    "COO": (uncoalesced, [(1, 3), (3,)], 36),
    "CSR": (lambda: torch.eye(4).to_sparse_csr(), [(5,), (4,), (4,)], 88),
    "CSC": (lambda: torch.eye(4).to_sparse_csc(), [(5,), (4,), (4,)], 88),
    "BSR": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), [(3,), (2,), (2, 2, 2)], 72),
    "BSC": (lambda: torch.eye(4).to_sparse_bsc((2, 2)), [(3,), (2,), (2, 2, 2)], 72),
    "jagged": (jagged, [(6, 3), (3,)], 96),
    "jagged with holes": (with_holes, [(5, 2), (3,), (2,)], 80),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]),
               [(2, 3), (1, 3)], 36),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 3, torch.qint8),
                  [(3,), (), ()], 3),
    "quantized by channel": (per_channel, [(2, 3), (2,), (2,)], 6),
    "oneDNN": (lambda: torch.ones(3).to_mkldnn(), [(3,)], 12),
    "two in one": (lambda: TwoTensor(torch.ones(3), torch.eye(3).to_sparse().sum(0).to_dense()),
                   [(3,), (3,)], 24),
    "a wrapper of a wrapper": (lambda: TwoTensor(TwoTensor(torch.ones(2), torch.ones(2)),
                                                 TwoTensor(torch.ones(2), torch.ones(2))),
                               [(2,)] * 4, 32),
    "of another class": (lambda: torch.ones(3).as_subclass(Named), [(3,)], 12),
}  # fmt: skip


@pytest.mark.parametrize(("make", "shapes", "size"), KINDS.values(), ids=KINDS)
def test_a_tensor_of_any_kind_is_made_of_plain_ones(make, shapes, size):
    if make is with_holes and torch.__version__ < "2.6":
        pytest.skip("lengths came later")
    tensor = make()
    parts = dense_parts(tensor)

    assert all(map(is_plain, parts))
    assert not any(part.is_conj() or part.requires_grad for part in parts)
    assert [tuple(part.shape) for part in parts] == shapes
    assert tensor_bytes(tensor) == size


def test_the_parts_of_a_quantized_tensor_hold_scale_and_zero_point():
    def parts(scale, zero):
        made = torch.quantize_per_tensor(torch.tensor([0.0]), scale, zero, torch.qint8)
        return [part.item() for part in dense_parts(made)[1:]]

    assert parts(0.5, 3) == [0.5, 3]
    assert [part.tolist() for part in dense_parts(per_channel())[1:]] == [[0.5, 1], [0, 1]]


def test_cached_lengths_of_a_jagged_tensor_are_not_among_its_parts():
    fresh, used = jagged(), jagged()
    used._max_seqlen  # noqa: B018  # as attention asks for it, and keeps it

    assert len(dense_parts(fresh)) == len(dense_parts(used)) == 2


def test_plain_tensors_share_memory_with_their_parts():
    x = torch.ones(3, requires_grad=True)
    assert dense_parts(x)[0].data_ptr() == x.data_ptr()
    y = uncoalesced()
    assert dense_parts(y)[1].data_ptr() == y._values().data_ptr()


def test_a_fake_tensor_is_its_own_part():
    with FakeTensorMode():
        (part,) = dense_parts(torch.ones(3))
    assert part.shape == (3,)


def test_an_error_names_the_kind():
    assert kind_of(torch.eye(2).to_sparse()) == "tensor of the layout sparse_coo"
    assert kind_of(KINDS["quantized"][0]()) == "quantized tensor"
    assert kind_of(KINDS["nested"][0]()) == "nested tensor"
    assert kind_of(KINDS["two in one"][0]()) == "tensor of the class TwoTensor"
