"""Blocks that a model's class declares, as those of diffusers and transformers do."""

from __future__ import annotations

from torch import nn

from chainograd.blocks.tree import Place, class_of, consists_of, original, size

# The classes that accelerate leaves on one device, and those that
# `model.compile_repeated_blocks()` compiles.
_DECLARATIONS = ("_no_split_modules", "_repeated_blocks")


def declared_names(module: nn.Module) -> frozenset[str]:
    """Return the names of classes that a model declares: lists or sets of strings."""
    model = original(module)
    values = (vars(model).get(name, getattr(type(model), name, None)) for name in _DECLARATIONS)
    lists = [value for value in values if isinstance(value, (list, tuple, set, frozenset))]
    return frozenset(name for names in lists for name in names if isinstance(name, str))


def declared_blocks(model: Place) -> list[Place]:
    """Return the blocks that a model and the models in it declare.

    The declarations were made for other ends, so they list more than blocks. All the classes in
    diffusers 0.42 and transformers 5.24 were looked at for these two rules:

    1. Of modules inside one another, the inner ones are the blocks if they hold at least half of
       the outer one's parameters. So a UNet's blocks are its ``ResnetBlock2D`` and
       ``BasicTransformerBlock``, not the ``CrossAttnUpBlock2D`` around them.
    2. A class of which the model has only one module is glue if its name says "Embed", or if it
       holds less than a quarter of an average block's parameters and its name does not say "Block":
       ``PatchEmbed``, output norms, final layers, projectors. An average block is one of the class
       that holds most parameters.
    """
    return _without_glue(_within(model, frozenset(), set()))


def _within(place: Place, names: frozenset[str], seen: set[nn.Module]) -> list[Place]:
    """Return the modules of the named classes, by the first rule."""
    module = place.module
    if module in seen:
        return []
    seen.add(module)
    all_names = names | declared_names(module)
    found = [block for inner in place.inner() for block in _within(inner, all_names, seen)]
    if _name_in(module, names) and not consists_of(module, (block.module for block in found)):
        return [place]
    return found


def _name_in(module: nn.Module, names: frozenset[str]) -> bool:
    # A subclass that a wrapper or a user made is a block as well.
    return any(cls.__name__ in names for cls in type(original(module)).__mro__)


def _without_glue(blocks: list[Place]) -> list[Place]:
    """Leave out what is no block by the second rule."""
    classes: dict[type, list[int]] = {}
    for block in blocks:
        classes.setdefault(class_of(block.module), []).append(size(block.module))
    sizes = max(classes.values(), key=sum, default=[0])
    average = sum(sizes) / len(sizes)
    glue = {
        cls
        for cls, held in classes.items()
        if len(held) == 1
        and ("Embed" in cls.__name__ or (4 * held[0] < average and "Block" not in cls.__name__))
    }
    return [block for block in blocks if class_of(block.module) not in glue]
