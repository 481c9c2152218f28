"""A state as bytes comes back with its values, dtype and strides, or is refused."""

import pytest
import torch

from chainograd import Store, StoreError
from chainograd.state import State
from chainograd.storage.packing import Layout
from tests.chainograd.storage.states import ODD, odd, storage_of

STRANGE = {
    "transposed": lambda: torch.randn(4, 3).t(),
    "expanded": lambda: torch.randn(3, 1).expand(3, 4),
    "expanded with gaps": lambda: torch.randn(3, 8)[:, ::2, None].expand(3, 4, 5),
    "overlapping": lambda: torch.randn(9).unfold(0, 4, 1),
    "strided": lambda: torch.randn(3, 8)[:, ::2],
    "a part with gaps": lambda: torch.randn(4, 3, 8)[1:, 1, 2:],
    "channels last": lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    "channels last, one sample": lambda: torch.randn(1, 8, 4, 4).to(
        memory_format=torch.channels_last
    ),
    "channels last, one channel": lambda: torch.randn(2, 1, 4, 4).to(
        memory_format=torch.channels_last
    ),
    "channels last, 3d, one sample": lambda: torch.randn(1, 8, 2, 4, 4).to(
        memory_format=torch.channels_last_3d
    ),
    "channels last, one row": lambda: torch.randn(1, 8, 1, 4).to(memory_format=torch.channels_last),
    "negated": lambda: torch.randn(3, 4, dtype=torch.complex64).conj().imag,
    "conjugated": lambda: torch.randn(3, 4, dtype=torch.complex64).conj(),
    "empty": lambda: torch.randn(0, 4),
    "a number": lambda: torch.tensor(3.0),
    "integers": lambda: torch.arange(5),
    "flags": lambda: torch.tensor([True, False]),
    "8 bits": lambda: torch.randn(5).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("place", ["folder", "host", "rounded"])
@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_a_state_comes_back_with_values_dtype_and_strides(make, place, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, side: None)
    tensor = make()
    state = State.of({"x": tensor, "step": 3, "none": None})
    storage = storage_of(place, state, tmp_path)
    node = storage.put(0, state)

    back = node.load().tree()

    expected = tensor
    if place == "rounded" and tensor.is_floating_point() and tensor.itemsize > 2:
        expected = tensor.bfloat16().to(tensor.dtype)
    assert torch.equal(back["x"].to(torch.complex64), expected.to(torch.complex64))
    assert back["x"].dtype == tensor.dtype
    assert back["x"].stride() == tensor.stride()
    assert (back["x"].is_conj(), back["x"].is_neg()) == (tensor.is_conj(), tensor.is_neg())
    assert (back["step"], back["none"]) == (3, None)
    again = storage.put(1, State.of(back)).load().tree()  # what came back can be kept
    assert again["x"].stride() == tensor.stride()
    storage.close()


def test_a_strided_tensor_is_stored_without_its_gaps():
    assert Layout.of(torch.randn(3, 8)[:, ::4]).count == 6
    assert Layout.of(torch.randn(3, 1).expand(3, 100)).count == 3
    assert Layout.of(torch.randn(9).unfold(0, 4, 1)).count == 9


@odd
@pytest.mark.parametrize("place", ["folder", "host"])
@pytest.mark.parametrize("kind", ODD)
def test_a_state_that_bytes_do_not_bring_back_is_refused_by_the_name_of_its_kind(
    kind, place, tmp_path, monkeypatch
):
    state = State.of([torch.ones(2), ODD[kind]()])
    message = rf"(?s)`store` .*holds a .*{kind}.*store='device'"
    plain_state = State.of(torch.ones(2))

    store = Store(tmp_path if place == "folder" else "host")
    monkeypatch.setattr("chainograd.storage.store.is_accelerator", lambda device: True)
    with pytest.raises(StoreError, match=message):  # as the state that enters the chain
        store.storage(state, lambda: 1)
    storage = storage_of(place, plain_state, tmp_path)
    with pytest.raises(StoreError, match=message):  # and as one on the way
        storage.put(1, state)
    storage.close()
