"""Attention's outputs, kept from a first run, so that a rerun does not run the kernel again.

    with keeping() as outputs, torch.no_grad():
        y = block(x)  # the first run; or one with a graph that is thrown away
    with replaying(outputs):
        y = block(leaf)  # the rerun: its graph saves q, k, v and the kept outputs

The result and the gradients are those of a run with the kernel, to the bit. What is kept is about
the size of the block's input for each attention layer; what is saved is attention's forward part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from chainograd.errors import ReplayError
from chainograd.replay.comparison import ADVICE
from chainograd.replay.verify import Verifier
from chainograd.tensors.parts import tensor_bytes
from chainograd.torch_internals.attention import (
    FUSED_KERNELS,
    LOG_SUM_EXP,
    may_leave_out_log_sum_exp,
    named_arguments,
)
from chainograd.torch_internals.modes import LightDispatchMode
from chainograd.torch_internals.tensors import version_or_zero
from chainograd.torch_internals.transforms import forward_ad_active, transforms_active

# Note [Attention's outputs]
# 1. A function mode sees calls of attention. Only for the time of such a call is a dispatch mode in
#    force, which sees the kernel below autograd. So other operations pay for the function mode
#    alone, and autograd saves for its backward pass what it always saves.
# 2. Outputs are kept in the order of the calls. A rerun that calls attention with other arguments
#    than the first run is refused. So is one whose q, k and v have other values: the result would
#    not show it, for the kept output stands in for what depends on them.
# 3. A call with dropout is computed again, for it must draw from the generator again. So is a call
#    without a fused kernel, and a call whose outputs were changed in place afterwards.
# 4. Some kernels leave out the log-sum-exp if recording is off. It is asked for then.
# 5. Code that torch.compile made calls kernels by itself, and may write into their outputs. Nothing
#    of it is seen here. The same holds inside transforms of `torch.func`.
# 6. Torch's attention and encoder layers in eval mode take a fast path where nothing requires a
#    gradient, unless a function mode is in force. See note [Frozen layers], 3.

_REACH_KERNELS = frozenset({F.scaled_dot_product_attention, F.multi_head_attention_forward})
_TAKEN = object()  # stands for a tensor that `take` has taken

Signature = tuple[object, ...]


@dataclass(slots=True, eq=False)
class AttentionCall:
    """One call of a fused kernel.

    Attributes:
        signature: The kernel, and its arguments: of a tensor its dtype, shape and device.
        complete: Whether the log-sum-exp is among the outputs.
        outputs: What the kernel returned: tensors outside any graph, sizes, None. It is None as a
            whole if the call must be computed again.
        versions: How often each output had been changed in place when it was kept.
    """

    signature: Signature
    complete: bool
    outputs: tuple[Any, ...] | None
    versions: tuple[int, ...] = ()

    @property
    def tensors(self) -> list[Tensor]:
        """The outputs that are tensors; none if the call must be computed again."""
        return [output for output in self._unchanged() or () if isinstance(output, Tensor)]

    def stand_ins(self) -> tuple[Any, ...] | None:
        """Return new aliases of the outputs; None if the call must be computed again."""
        outputs = self._unchanged()
        assert outputs is None or _TAKEN not in [o for o in outputs if not isinstance(o, Tensor)]
        return None if outputs is None else _mapped(Tensor.detach, outputs)

    def replace(self, new: Callable[[Any], Any]) -> None:
        """Replace each output by what a function returns for it, unless there are none."""
        outputs = self._unchanged()
        self.outputs = None if outputs is None else tuple(new(output) for output in outputs)
        self.versions = _versions(self.outputs or ())

    def leave_graph(self) -> None:
        """Detach the outputs from the graph, when autograd has seen them."""
        # Not in the dispatch mode: changes of aliases that are made there are not counted.
        self.outputs = _mapped(Tensor.detach, self.outputs or ())
        self.versions = _versions(self.outputs)

    def _unchanged(self) -> tuple[Any, ...] | None:
        outputs = self.outputs
        return None if outputs is None or _versions(outputs) != self.versions else outputs


@dataclass(slots=True, eq=False)
class AttentionOutputs:
    """What the fused attention kernels of one run returned.

    Attributes:
        verifier: Knows what the kernels were given; None if that is not compared.
        calls: The calls of kernels, in order.
    """

    verifier: Verifier | None = None
    calls: list[AttentionCall] = field(default_factory=list)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that are kept, in order."""
        return [tensor for call in self.calls for tensor in call.tensors]

    @property
    def nbytes(self) -> int:
        """How many bytes the tensors take."""
        return sum(tensor_bytes(tensor) for tensor in self.tensors)

    def take(self) -> list[Tensor]:
        """Return the tensors and hold them no longer, so that they may be stored elsewhere.

        They must be put back before a rerun. Until then a change of them in place goes unnoticed.
        """
        tensors = self.tensors
        for call in self.calls:
            call.replace(lambda output: _TAKEN if isinstance(output, Tensor) else output)
        return tensors

    def put(self, tensors: Sequence[Tensor]) -> None:
        """Take back what `take` returned, or copies of it."""
        left = iter(tensors)
        for call in self.calls:
            call.replace(lambda output: next(left) if output is _TAKEN else output)
        assert next(left, None) is None


@contextmanager
def keeping(verifier: Verifier | None = None) -> Iterator[AttentionOutputs]:
    """Return a context that keeps what fused attention kernels return inside it.

    Args:
        verifier: Compares what kernels are given in a rerun with what they are given here.

    Example:
        >>> q = torch.ones(1, 2, 8, 4)
        >>> with keeping() as outputs:
        ...     y = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        >>> [tuple(tensor.shape) for tensor in outputs.tensors], outputs.nbytes
        ([(1, 2, 8, 4), (1, 2, 8)], 320)
    """
    kernels = _KeptKernels(AttentionOutputs(verifier))
    with _AttentionCalls(kernels):
        yield kernels.outputs


@contextmanager
def replaying(outputs: AttentionOutputs) -> Iterator[None]:
    """Return a context in which kept outputs stand in for calls of fused attention kernels.

    A block may be run inside it several times, each time in a context of its own.

    Raises:
        ReplayError: If attention is called more or less often than in the first run, by another
            kernel or with other arguments.
    """
    kernels = _ReplayedKernels(outputs)
    with _AttentionCalls(kernels):
        yield
    kernels.finish()


class AttentionSeen(TorchFunctionMode):
    """Notes whether attention is called in a block.

    Attributes:
        seen: Whether it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen |= func in _REACH_KERNELS
        return func(*args, **(kwargs or {}))


class _AttentionCalls(TorchFunctionMode):
    """Lets a dispatch mode see the kernels of attention: note [Attention's outputs], 1."""

    def __init__(self, kernels: _Kernels) -> None:
        super().__init__()
        self.kernels = kernels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # The compiler comes first: it traces this function, and stops here.
        if torch.compiler.is_compiling() or func not in _REACH_KERNELS:
            return func(*args, **kwargs)
        if transforms_active() or forward_ad_active():
            return func(*args, **kwargs)
        with self.kernels:
            y = func(*args, **kwargs)
        self.kernels.returned()
        return y


class _Kernels(LightDispatchMode):
    """Sees the operations of one call of attention."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in FUSED_KERNELS:
            return func(*args, **kwargs)
        given = named_arguments(func, args, kwargs)
        if given.get("dropout_p", 0.0):
            return func(*args, **kwargs)
        complete = not may_leave_out_log_sum_exp(func) or given.pop(LOG_SUM_EXP, False)
        return self.run(func, given, complete)

    def run(self, kernel: Any, given: dict[str, Any], complete: bool) -> Any:
        """Return the outputs of a kernel for given arguments, from which `LOG_SUM_EXP` is taken."""
        raise NotImplementedError

    def returned(self) -> None:
        """Be told that the call of attention has returned."""


class _KeptKernels(_Kernels):
    def __init__(self, outputs: AttentionOutputs) -> None:
        super().__init__()
        self.outputs = outputs
        self.new: list[AttentionCall] = []
        self.given: list[list[Tensor]] = []

    def run(self, kernel: Any, given: dict[str, Any], complete: bool) -> Any:
        complete |= not torch.is_grad_enabled()  # note [Attention's outputs], 4
        outputs = _call(kernel, given, complete)
        self.new.append(AttentionCall(_signature(kernel, given), complete, outputs))
        self.given.append(_tensors(given))
        return outputs

    def returned(self) -> None:
        for call, given in zip(self.new, self.given, strict=True):
            call.leave_graph()
            self.outputs.calls.append(call)
            if self.outputs.verifier is not None:
                with torch.no_grad():
                    self.outputs.verifier.saw(len(self.outputs.calls), given)
        self.new, self.given = [], []


class _ReplayedKernels(_Kernels):
    def __init__(self, outputs: AttentionOutputs) -> None:
        super().__init__()
        self.calls, self.verifier = outputs.calls, outputs.verifier
        self.seen = 0
        self.given: list[tuple[int, list[Tensor]]] = []

    def run(self, kernel: Any, given: dict[str, Any], complete: bool) -> Any:
        call = self._next(_signature(kernel, given))
        outputs = call.stand_ins() if call.complete or not complete else None
        if outputs is None:
            return _call(kernel, given, complete)
        self.given.append((self.seen - 1, _tensors(given)))
        return outputs

    def returned(self) -> None:
        compared, self.given = self.given, []
        for at, given in compared if self.verifier is not None else ():
            assert self.verifier is not None
            try:
                with torch.no_grad():
                    self.verifier.same(at, given, None)
            except ReplayError as error:
                raise self._refused("some values of q, k and v", "others") from error

    def _next(self, now: Signature) -> AttentionCall:
        self.seen += 1
        if self.seen > len(self.calls):
            raise self._refused("none", _in_words(now))
        call = self.calls[self.seen - 1]
        if call.signature != now:
            raise self._refused(_in_words(call.signature), _in_words(now))
        return call

    def finish(self) -> None:
        if self.seen < len(self.calls):
            first = self.calls[self.seen].signature
            self.seen += 1
            raise self._refused(_in_words(first), "none")

    def _refused(self, first: str, now: str) -> ReplayError:
        return ReplayError(
            f"Call {self.seen} of an attention kernel differs between the two runs of a block. In "
            f"the first run it was: {first}. In the rerun it is: {now}. {ADVICE}"
        )


def _call(kernel: Any, given: dict[str, Any], complete: bool) -> tuple[Any, ...]:
    leaves_out = {LOG_SUM_EXP: complete} if may_leave_out_log_sum_exp(kernel) else {}
    return kernel(**given, **leaves_out)


def _tensors(given: dict[str, Any]) -> list[Tensor]:
    return [value.detach() for value in given.values() if isinstance(value, Tensor)]


def _mapped(function: Callable[[Tensor], Tensor], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(function(o) if isinstance(o, Tensor) else o for o in outputs)


def _versions(outputs: tuple[Any, ...]) -> tuple[int, ...]:
    return tuple(version_or_zero(output) for output in outputs if isinstance(output, Tensor))


def _signature(kernel: Any, given: dict[str, Any]) -> Signature:
    return kernel, *((name, _described(value)) for name, value in given.items())


def _described(value: object) -> object:
    return (value.dtype, value.shape, value.device) if isinstance(value, Tensor) else value


def _in_words(signature: Signature) -> str:
    kernel, *given = signature
    return f"{kernel}({', '.join(f'{name}={_value(v)}' for name, v in given)})"  # type: ignore


def _value(described: Any) -> str:
    if not isinstance(described, tuple):
        return str(described)
    dtype, shape, device = described
    return f"{str(dtype).removeprefix('torch.')}{list(shape)} on {device}"
