"""What a step sees besides its arguments: captured in the first run, restored in each rerun."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy
import torch
from torch import Generator, Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn import Module
from torch.utils._mode_utils import no_dispatch

from chainograd.errors import ReplayError

Verify = Literal["exact", "close", "off"]

# Note [Surroundings]
# 1. What a step sees besides its arguments is captured once, before the first run of that step.
# 2. Every rerun happens inside those surroundings and leaves no trace outside.
# 3. The streams that belong to the caller continue as if there had been no rerun.

# Note [Host streams]
# 1. To read where Python's and numpy's streams stand takes longer than much that the engine does
#    in a small step, and hardly any step draws from them. So they are read around step 0, for a
#    chain that draws at all mostly draws there, and around the whole forward pass.
# 2. If step 0 drew, they are read at every step from there on, and from then on in every call.
# 3. If they have moved in the end only, it is not known in which step: the forward pass is run
#    once more from where everything stood, and they are read at every step.


@dataclass(frozen=True, slots=True)
class Autocast:
    """The autocast state of one device type.

    Steps always run with the cache of cast weights off: a weight that was cast without a graph
    would be reused where the graph is wanted, and its gradient would be silently lost.
    """

    device_type: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def current(cls, device_type: str) -> Autocast:
        """Return the state that is in force."""
        enabled = torch.is_autocast_enabled(device_type)
        return cls(device_type, enabled, torch.get_autocast_dtype(device_type))


@contextmanager
def autocast_as(states: Sequence[Autocast]) -> Iterator[None]:
    """Put the given autocast states in force, with the cache off."""
    with ExitStack() as stack:
        for state in states:
            if state.enabled or torch.is_autocast_enabled(state.device_type):
                stack.enter_context(
                    torch.autocast(
                        state.device_type, state.dtype, enabled=state.enabled, cache_enabled=False
                    )
                )
        yield


@contextmanager
def uncached_parametrizations() -> Iterator[None]:
    """Let `torch.nn.utils.parametrize.cached` cache nothing.

    A weight that was made without a graph would be reused where the graph is wanted, as under
    autocast, and one that was made in a step's graph would tie the steps' graphs together.
    """
    parametrize: Any = sys.modules.get("torch.nn.utils.parametrize")
    if parametrize is None or not parametrize._cache_enabled:
        yield
        return
    depth, cache = parametrize._cache_enabled, parametrize._cache
    parametrize._cache_enabled, parametrize._cache = 0, {}
    try:
        yield
    finally:
        parametrize._cache_enabled, parametrize._cache = depth, cache


class RandomStreams:
    """The random streams that steps may draw from: the global ones, and named generators.

    Global are those of Python, of numpy, of torch on the CPU and on each CUDA device in use.

    Args:
        devices: Devices in use; each CUDA device has a global stream of its own.
        generators: Generators that the steps draw from.
    """

    def __init__(
        self, devices: Iterable[torch.device], generators: Sequence[Generator] = ()
    ) -> None:
        self.cuda = sorted({d.index or 0 for d in devices if d.type == "cuda"})
        self.generators = tuple(generators)
        self.closely = True  # note [Host streams]
        self._states = [
            torch.default_generator.get_state,
            *(partial(torch.cuda.get_rng_state, index) for index in self.cuda),
            *(generator.get_state for generator in self.generators),
        ]

    def state(self, since: Streams | None = None) -> Streams:
        """Return where the streams stand; ``since`` itself if nothing was drawn since then."""
        if torch._C._len_torch_dispatch_stack():
            with no_dispatch():  # these are real tensors, under FakeTensorMode too
                own = self._torchs()
        else:  # where a context of nothing would take as long as the rest
            own = self._torchs()
        still = since is not None and own == since.torch
        if since is None or self.closely:
            now = Streams(own, random.getstate(), numpy.random.get_state(legacy=False))
            return since if since is not None and still and since.same_on_host(now) else now
        return since if still else Streams(own, since.python, since.numpy)

    def _torchs(self) -> list[bytes]:
        return [state().numpy().tobytes() for state in self._states]

    def set(self, state: Streams) -> None:
        """Put the streams where they stood."""
        with no_dispatch():
            cpu, *rest = (torch.frombuffer(bytearray(own), dtype=torch.uint8) for own in state.torch)
        torch.set_rng_state(cpu)
        for index, device_state in zip(self.cuda, rest, strict=False):
            torch.cuda.set_rng_state(device_state, index)
        for generator, own in zip(self.generators, rest[len(self.cuda) :], strict=True):
            generator.set_state(own)
        random.setstate(state.python)
        numpy.random.set_state(state.numpy)


class Streams(NamedTuple):
    """Where random streams stand: torch's as text, which is compared faster than tensors."""

    torch: list[bytes]
    python: Any
    numpy: Any

    def same_on_host(self, other: Streams) -> bool:
        """Return whether nothing was drawn from Python's or numpy's stream between the two."""
        if self.python is other.python and self.numpy is other.numpy:
            return True
        return self.python == other.python and _equal(self.numpy, other.numpy)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two nested dicts of numbers, text and arrays are the same."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return numpy.array_equal(a, b)


@contextmanager
def undisturbed(streams: RandomStreams) -> Iterator[None]:
    """Put the caller's streams back where they stood, however the block ends."""
    before = streams.state()
    try:
        yield
    finally:
        streams.set(before)


@contextmanager
def without_hooks(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Let hooks that tensors were given since the first run wait for the whole gradient."""
    hooked = [tensor._backward_hooks for tensor in tensors if tensor._backward_hooks]
    kept = [dict(hooks) for hooks in hooked]
    for hooks in hooked:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in zip(hooked, kept, strict=True):
            hooks.update(own)


@contextmanager
def in_modes(modes: Sequence[tuple[Module, bool]]) -> Iterator[None]:
    """Put modules in the modes they were in, training or not, and back in those they are in."""
    other = [(module, mode) for module, mode in modes if module.training != mode]
    for module, mode in other:
        module.training = mode
    try:
        yield
    finally:
        for module, mode in other:
            module.training = not mode


@contextmanager
def unchanged(buffers: Sequence[Tensor]) -> Iterator[None]:
    """Put buffers back as they were: statistics of batches count a step's first run only."""
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        put_back(buffers, before)


def put_back(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Give buffers the values that they had."""
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            # Batch norm changes its statistics without counting a version; so does this, for
            # graphs outside the chain that hold them. Of fakes it is not known what they hold.
            if isinstance(buffer, FakeTensor) or not torch.equal(buffer, value):
                with _unsafe_preserve_version_counter(buffer):
                    buffer.copy_(value)


def compare(index: int, first: Sequence[object], again: Sequence[object], verify: Verify) -> None:
    """Check that step ``index`` gave the same state again.

    Raises:
        ReplayError: If it did not.
    """
    if verify == "off":
        return
    for a, b in zip(first, again, strict=False):
        if isinstance(a, Tensor) and isinstance(b, Tensor) and not _alike(a, b, verify):
            raise ReplayError(f"Step {index} {_difference(a, b)}. {_ADVICE}")
    if len(first) != len(again):
        raise ReplayError(
            f"Step {index} was recomputed with {len(again)} leaves in its state, but the forward "
            f"pass saw {len(first)}. {_ADVICE}"
        )


def compare_rounded(
    index: int, first: Sequence[object], again: Sequence[object], dtype: torch.dtype
) -> None:
    """Check that step ``index`` gave about the same state from a rounded one.

    How rounding grows in a step is not known, so this only notices what is far off: other noise,
    other weights.

    Raises:
        ReplayError: If it did not.
    """
    for a, b in zip(first, again, strict=True):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or not a.is_floating_point():
            continue
        off = torch.linalg.vector_norm(b.detach() - a, dtype=torch.float64)
        room = 32 * torch.finfo(dtype).eps * torch.linalg.vector_norm(a, dtype=torch.float64)
        if off > room:
            raise ReplayError(
                f"Step {index}, run again from a state rounded to {dtype}, is {off.item():.3g} "
                f"away from what it gave first; rounding explains {room.item():.3g}. {_ADVICE} "
                "Where a step is as sensitive as that, keep states in full, or pass `verify='off'`."
            )


def sample(leaves: Sequence[object]) -> tuple[Tensor | None, ...]:
    """Return up to 2048 entries of each tensor: enough to tell other noise from rounding."""
    return tuple(_some(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)


def _some(tensor: Tensor) -> Tensor:
    entries = tensor.detach().flatten()
    return entries[:: max(entries.numel() // 1024, 1)].clone()


Digest = tuple[Tensor | None, ...]


def digest(leaves: Sequence[object]) -> Digest:
    """Return a number for each tensor that almost surely changes when a bit of it does.

    It is the sum of the tensor's bits as integers, without carrying: 8 bytes in place of a state.
    """
    return tuple(_sum_of_bits(leaf) if isinstance(leaf, Tensor) else None for leaf in leaves)


def compare_digest(index: int, first: Digest, again: Sequence[object]) -> None:
    """Check that step ``index`` gave a state with the same digest again.

    Raises:
        ReplayError: If it did not.
    """
    for a, b in zip(first, digest(again), strict=False):
        if (a is None) != (b is None) or (
            a is not None and b is not None and not torch.equal(a, b)
        ):
            break
    else:
        if len(first) == len(again):
            return
    raise ReplayError(
        f"Step {index} was recomputed with another result than in the forward pass (the state is "
        f"not kept, so the difference is not known). {_ADVICE}"
    )


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum_of_bits(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


_ADVICE = (
    "A step must be a pure function of its index and its state: carry what it remembers in the "
    "state, hand its generators in with `generators=[…]`, and leave its weights and settings "
    "alone until the backward pass is over. If the kernels in use do not repeat their results "
    "exactly, pass `verify='close'`."
)


def _alike(a: Tensor, b: Tensor, verify: Verify) -> bool:
    if a.dtype == b.dtype and torch.equal(a, b):
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if verify == "exact":
        return bool(((a == b) | (a.isnan() & b.isnan())).all())
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    # Room for reordered sums, far from what other noise or other weights would do.
    tolerance = 100 * torch.finfo(a.dtype).eps
    sizes = torch.where(a.isfinite(), a, 0).abs().flatten()
    largest = float(sizes.max()) if sizes.numel() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _difference(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return (
            f"was recomputed with shape {tuple(b.shape)} and {b.dtype}, but the forward pass saw "
            f"{tuple(a.shape)} and {a.dtype}"
        )
    return (
        "was recomputed with another result than in the forward pass: the largest difference is "
        f"{(_wide(a) - _wide(b)).abs().max().item():.3g}"
    )
