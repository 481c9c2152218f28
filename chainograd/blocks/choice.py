"""The blocks that a user chooses."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Literal

from torch import nn

from chainograd.blocks.tree import class_of, is_called

Blocks = Literal["auto"] | Iterable[nn.Module] | None


def chosen_blocks(choice: Blocks) -> Literal["auto"] | tuple[nn.Module, ...] | None:
    """Return the choice of blocks, with its modules as a tuple, each once.

    Raises:
        TypeError: If it is neither ``"auto"`` nor None nor a list of modules that can be called.
    """
    if choice is None or (isinstance(choice, str) and choice == "auto"):
        return choice  # type: ignore[return-value]
    if isinstance(choice, nn.Module) and not isinstance(choice, nn.ModuleList):
        raise TypeError(
            f"`blocks` must be 'auto', None or a list of modules, got a {type(choice).__name__}. "
            "Pass `blocks=[module]`."
        )
    if isinstance(choice, (str, bytes)) or not isinstance(choice, Iterable):
        raise TypeError(
            f"`blocks` must be 'auto', None or a list of modules, got {choice!r:.60}. Pass "
            "`blocks='auto'` or `blocks=[module]`."
        )
    listed = list(choice)
    for position, module in enumerate(listed):
        _refuse_uncallable(position, module)
    return tuple(dict.fromkeys(listed))


def _refuse_uncallable(position: int, module: object) -> None:
    kind = type(module).__name__
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`blocks` must hold modules; entry {position} is a {kind}. Pass `blocks=[module]`, "
            "the modules themselves, or `blocks='auto'`."
        )
    if not is_called(module):
        raise TypeError(
            f"`blocks` must hold modules that are called; entry {position} is a {kind}, which only "
            "holds modules. Pass its modules: `blocks=[*entry]`."
        )


def refuse_unusable(
    blocks: tuple[nn.Module, ...], modules: Set[nn.Module], open_modules: Set[nn.Module]
) -> None:
    """Refuse chosen modules that cannot run as blocks.

    Args:
        blocks: The chosen modules.
        modules: The modules that the step reaches.
        open_modules: Those of them that are not inside a compiled or scripted module.

    Raises:
        ValueError: If the step does not reach a module, or it is inside a compiled module or
            another chosen one.
    """
    for block in blocks:
        kind = class_of(block).__name__
        if block not in modules:
            raise ValueError(
                f"`blocks` names a {kind} that the step does not reach. Name modules of the models "
                "that the step calls, such as `blocks=model.transformer_blocks`, or pass "
                "`blocks='auto'`."
            )
        if block not in open_modules:
            raise ValueError(
                f"`blocks` names a {kind} inside a module that torch compiled as a whole, so it "
                "cannot be called on its own. Name the compiled module, or compile the blocks "
                "instead of the model: `block.compile()`."
            )
        inside = [inner for inner in blocks if inner is not block and inner in set(block.modules())]
        if inside:
            raise ValueError(
                f"`blocks` names a {kind} and a {class_of(inside[0]).__name__} inside it. Name one "
                "of the two."
            )
