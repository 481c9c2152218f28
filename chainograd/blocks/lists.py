"""Blocks of models that declare none: modules of one class in lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from torch import nn

from chainograd.blocks.tree import Place, class_of, consists_of, is_called, parameters_of, size

_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def listed_blocks(root: Place, closed: list[Place]) -> list[Place]:
    """Return the blocks of a module that declares none.

    1. Candidates are modules of one class in one ``nn.ModuleList``, ``nn.ModuleDict`` or
       ``nn.Sequential``, at least two, with parameters. Layers of torch's own without modules
       inside, such as ``nn.Linear``, do not count.
    2. If most candidates of a list have parameters of the same shapes, all modules of their class
       are blocks, whatever is inside: the layers of a transformer, not the experts or heads in
       them.
    3. Otherwise they may be stages, as in a UNet. Candidates inside a stage are blocks in its place
       if they hold at least half of its parameters.
    4. All other modules of the blocks' classes are blocks too, such as those in the middle of a
       UNet, if they neither hold blocks nor lie in blocks. ``nn.Sequential`` is no such class.
    5. A class that holds less than a hundredth of the parameters is left out.

    Args:
        root: The module.
        closed: Modules whose blocks are known. No block lies in them or around them.
    """
    known = {place.module for place in closed}
    first = _Lists(known)
    first.within(root)  # now the classes of rule 2 are known
    listed = {block.module for block in _Lists(known, first.repeated).within(root)}
    classes = {class_of(module) for module in listed} - {nn.Sequential}
    blocks = _of_classes(root, classes, known, listed, set())
    return _without_small(blocks, size(root.module) - size(*known))


class _Lists:
    """The candidates in lists, by the first three rules.

    Attributes:
        closed: Modules that must not be looked into.
        repeated: The classes of the second rule that are known so far.
        seen: Modules that have been looked into.
    """

    def __init__(self, closed: set[nn.Module], repeated: Iterable[type[nn.Module]] = ()) -> None:
        self.closed = closed
        self.repeated = set(repeated)
        self.seen: set[nn.Module] = set()

    def within(self, place: Place) -> list[Place]:
        """Return the blocks inside a module."""
        if place.module in self.closed or place.module in self.seen:
            return []
        self.seen.add(place.module)
        if class_of(place.module) in self.repeated and self._is_open(place.module):
            self.seen.update(place.module.modules())
            return [place]
        groups = list(_groups(place)) if isinstance(place.module, _LISTS) else []
        grouped = {block.module for group in groups for block in group}
        found = [block for group in groups for block in self._of_group(group)]
        rest = [inner for inner in place.inner() if inner.module not in grouped]
        return found + [block for inner in rest for block in self.within(inner)]

    def _of_group(self, group: list[Place]) -> Iterator[Place]:
        repeated = _have_same_shapes([candidate.module for candidate in group])
        if repeated:
            self.repeated |= {class_of(group[0].module)} - {nn.Sequential}
        for candidate in group:
            is_open = self._is_open(candidate.module)
            inner = [] if repeated and is_open else self.within(candidate)
            if is_open and not consists_of(candidate.module, (block.module for block in inner)):
                self.seen.update(candidate.module.modules())
                yield candidate
            else:
                yield from inner

    def _is_open(self, module: nn.Module) -> bool:
        return self.closed.isdisjoint(module.modules())


def _groups(place: Place) -> Iterator[list[Place]]:
    """Yield the candidates of a list, those of one class together."""
    classes: dict[type, dict[nn.Module, Place]] = {}
    for entry in _entries(place):
        if _may_be_block(entry.module):
            classes.setdefault(class_of(entry.module), {}).setdefault(entry.module, entry)
    return (list(group.values()) for group in classes.values() if len(group) > 1)


def _entries(place: Place) -> Iterator[Place]:
    """Yield the modules that are called in a list, and in lists or bare modules in it."""
    for entry in place.inner():
        if not is_called(entry.module):
            yield from _entries(entry)
        else:
            yield entry


def _may_be_block(module: nn.Module) -> bool:
    library = class_of(module).__module__.partition(".")[0]
    is_layer = any(cls.__module__.startswith("torch.nn.modules.") and cls is not nn.Module
                   for cls in class_of(module).__mro__)  # fmt: skip
    is_leaf = not any(True for _ in module.children())
    # A layer with an adapter has modules inside.
    return library != "peft" and not (is_layer and is_leaf) and any(parameters_of(module))


def _have_same_shapes(modules: list[nn.Module]) -> bool:
    """Return whether more than half of some modules have parameters of the same shapes."""
    shapes = Counter(
        tuple((name, tuple(p.shape)) for name, p in parameters_of(module)) for module in modules
    )
    return 2 * max(shapes.values()) > len(modules)


def _of_classes(
    place: Place, classes: set[type[nn.Module]], closed: set[nn.Module],
    listed: set[nn.Module], seen: set[nn.Module],
) -> list[Place]:  # fmt: skip
    """Return the listed modules and, by the fourth rule, others of the same classes."""
    module = place.module
    if module in closed or module in seen:
        return []
    seen.add(module)
    if module in listed:
        seen.update(module.modules())
        return [place]
    found = [
        block
        for inner in place.inner()
        for block in _of_classes(inner, classes, closed, listed, seen)
    ]
    if class_of(module) in classes and not found and closed.isdisjoint(module.modules()):
        return [place]
    return found


def _without_small(blocks: Iterable[Place], total: int) -> list[Place]:
    """Leave out what is small by the fifth rule."""
    classes: dict[type, list[Place]] = {}
    for block in blocks:
        classes.setdefault(class_of(block.module), []).append(block)
    small = {
        cls
        for cls, held in classes.items()
        if 100 * size(*(block.module for block in held)) < total
    }
    return [block for block in blocks if class_of(block.module) not in small]
