"""Where the blocks of the models are that a step calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from chainograd.blocks.choice import Blocks, chosen_blocks, refuse_unusable
from chainograd.blocks.declared import declared_blocks, declared_names
from chainograd.blocks.lists import listed_blocks
from chainograd.blocks.tree import Place, class_of, consists_of, reached, within


@dataclass(frozen=True, slots=True)
class FoundBlocks:
    """The blocks of the models that a step calls.

    Attributes:
        modules: The blocks as the model calls them: if `torch.compile(block)` made another module,
            that one. In the order of registration, which need not be the order of calls.
        names: The path to each block from its root. It begins with the root's class if blocks of
            several roots were found.
        how: What the choice rests on, for a reader.
        named: Whether the caller has named them.
    """

    modules: tuple[nn.Module, ...] = ()
    names: tuple[str, ...] = ()
    how: str = ""
    named: bool = False

    def __str__(self) -> str:
        if not self.modules:
            return "no blocks"
        classes = Counter(class_of(module).__name__ for module in self.modules)
        counts = ", ".join(f"{count} {name}" for name, count in classes.items())
        number = len(self.modules)
        return f"{number} block{'s' * (number > 1)}: {counts} ({self.how})"


def find_blocks(roots: Iterable[nn.Module], choice: Blocks) -> FoundBlocks:
    """Return the blocks of models.

    If a model's class declares blocks, its blocks are those of `declared_blocks`. Other models'
    blocks, and those that a model's declaration leaves out, are those of `listed_blocks`. A module
    that torch.compile or TorchScript compiled as a whole may be a block, but has no blocks inside.

    Args:
        roots: The modules that a step reaches. They may be inside one another, in any order.
        choice: ``"auto"``, the blocks themselves, or None for no blocks.

    Raises:
        TypeError: If the choice is something else.
        ValueError: If the step does not reach a chosen module, or cannot run it as a block.
    """
    chosen = chosen_blocks(choice)
    if chosen is None:
        return FoundBlocks()
    tops, modules = reached(roots)
    if chosen != "auto":
        places = {place.module: _named(top, place, alone=len(tops) == 1)
                  for top in tops for place in within(top)}  # fmt: skip
        refuse_unusable(chosen, modules, places.keys())
        names = tuple(places[block] for block in chosen)
        return FoundBlocks(chosen, names, "named by `blocks`", named=True)
    found = [(top, blocks) for top in tops if (blocks := _found_in(Place("", top)))]
    hows = dict.fromkeys(how for _, blocks in found for how, _ in blocks)
    places = {
        place.module: _named(top, place, alone=len(found) == 1)
        for top, blocks in found
        for _, place in blocks
    }
    return FoundBlocks(tuple(places), tuple(places.values()), "; ".join(hows))


def _named(top: nn.Module, place: Place, *, alone: bool) -> str:
    root = class_of(top).__name__
    return (place.path or root) if alone else ".".join(filter(None, (root, place.path)))


def _found_in(top: Place) -> list[tuple[str, Place]]:
    """Return the blocks in a root, and how each was found.

    If a model declares blocks that hold less than half of it, its lists are looked at too.
    """
    models = list(_models(top, set()))
    found = [
        (f"declared by {class_of(model.module).__name__}", block)
        for model, blocks in models
        for block in blocks
    ]
    closed: list[Place] = []
    for model, blocks in models:
        whole = consists_of(model.module, (block.module for block in blocks))
        closed += [model] if whole else blocks
    how = f"in lists of {class_of(top.module).__name__}"
    return found + [(how, block) for block in listed_blocks(top, closed)]


def _models(place: Place, seen: set[nn.Module]) -> Iterator[tuple[Place, list[Place]]]:
    """Yield the models inside that declare blocks, outermost ones, with their blocks."""
    if place.module in seen:
        return
    seen.add(place.module)
    blocks = declared_blocks(place) if declared_names(place.module) else []
    if blocks:
        yield place, blocks
        return
    for inner in place.inner():
        yield from _models(inner, seen)
