"""What must not change between the forward and the backward pass: tensors and their ``.grad``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from chainograd.engine.shared import SharedTensors
from chainograd.errors import ChainError, ChangedTensorError
from chainograd.state import versions
from chainograd.torch_internals.tensors import version_or_zero


class ChangeDetector:
    """Notices in-place changes of the tensors that the steps of a call can reach.

    Args:
        shared: The tensors, before the first step runs.

    Attributes:
        tensors: The tensors that are watched.
        versions: How often each of them had been changed.
        grads: Which gradients had been accumulated in captured tensors.
    """

    def __init__(self, shared: SharedTensors) -> None:
        self.shared, self.tensors = shared, shared.tensors
        self.versions = versions(self.tensors)
        self.grads = [_grad_version(tensor) for tensor in shared.inner_captured]

    @property
    def changed(self) -> list[Tensor]:
        """Tensors that the steps can reach and that have changed since the forward pass."""
        now = versions(self.tensors)
        if now == self.versions:
            return []
        pairs = zip(self.tensors, now, self.versions, strict=True)
        return [tensor for tensor, after, before in pairs if after != before]

    def forget_unused(self) -> None:
        """Release the tensors that the steps have released, and watch what stands in for them."""
        self.tensors = self.shared.tensors  # with the same versions, for they share their memory

    def refuse_changes(self, index: int, used: Callable[[Tensor], bool]) -> None:
        """Check that no tensor that a step uses has changed since the forward pass.

        A tensor that the step can reach but does not use, such as another network of the same
        object, may change.

        Raises:
            ChangedTensorError: If a tensor has changed that ``used`` returns True for.
        """
        for tensor in filter(used, self.changed):
            raise ChangedTensorError(
                f"A tensor of shape {tuple(tensor.shape)} that step {index} uses was changed "
                "in place after the forward pass, so its gradient would be that of another "
                "chain. Call `backward()` before `optimizer.step()` and other in-place "
                "changes."
            )

    def refuse_own_backward(self, index: int) -> None:
        """Check that steps up to ``index`` have accumulated no gradients in captured tensors.

        Raises:
            ChainError: If they have: their reruns would accumulate the gradients again.
        """
        for tensor, before in zip(self.shared.inner_captured, self.grads, strict=True):
            if tensor.is_leaf and tensor.grad is not None and _grad_version(tensor) != before:
                raise ChainError(
                    f"Step {index}, or one before it, calls `backward()` on something that depends "
                    f"on a tensor of shape {tuple(tensor.shape)} outside the chain. Its `.grad` "
                    "grows whenever the step runs again. Take the gradient that the step needs "
                    "with `torch.autograd.grad`, or take that loss after the chain."
                )


def _grad_version(tensor: Tensor) -> tuple[int, int] | None:
    grad = tensor.grad if tensor.is_leaf else None
    return None if grad is None else (id(grad), version_or_zero(grad))
