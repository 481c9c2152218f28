"""One call of a block in a step: what it saw, what is kept of it, and its rerun."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import Module

from chainograd.blocks.attention import AttentionOutputs, replaying
from chainograd.captured.stand_ins import StandIns
from chainograd.engine.abstract_step import GraphOptions
from chainograd.engine.block_run import Block, BlockRun, run_block
from chainograd.engine.comparison import Comparison, SeenBlock
from chainograd.engine.graph import Mark
from chainograd.engine.running import cutting
from chainograd.engine.surroundings import Surroundings
from chainograd.engine.weigh_blocks import BlockWeigher
from chainograd.errors import ChainError
from chainograd.replay.context import StepContext
from chainograd.replay.rng import RNGState
from chainograd.state import State
from chainograd.storage.kept_tensors import Keeper, KeptTensors


@dataclass(slots=True, eq=False)
class BlockCall:
    """A call of a block, which can be run once more.

    Attributes:
        block: The block.
        mark: For the nodes of its graphs.
        options: How graphs are made.
        surroundings: What steps see besides their arguments.
        comparison: Compares its rerun with its first run.
        start: Where the random streams stood before it.
        drew: Whether it may have drawn random numbers.
        context: Settings and modes that it saw.
        seen: What is remembered of its first run.
        kept: The tensors that entered it, and its attention's outputs.
        wanted: Which of the tensors need a gradient.
        rest: What entered it besides tensors; in a tensor's place, which of ``kept`` it is.
        attention: Its attention's outputs, whose tensors are among ``kept``.
        weigher: Weighs it, if it is measured.
    """

    block: Block
    mark: Mark
    options: GraphOptions
    surroundings: Surroundings
    comparison: Comparison
    start: RNGState
    context: StepContext
    drew: bool = True
    seen: SeenBlock | None = None
    kept: KeptTensors | None = None
    wanted: list[bool] = field(default_factory=list)
    rest: State | None = None
    attention: AttentionOutputs | None = None
    weigher: BlockWeigher | None = None

    def keep(self, run: BlockRun, outside: State, keeper: Keeper) -> None:
        """Keep what the block needs to run once more.

        Args:
            run: Its first run.
            outside: What entered it.
            keeper: Keeps tensors.
        """
        self.seen = self.comparison.saw_block(run)
        tensors = {id(tensor): tensor for tensor in outside.tensors}  # each once
        places = {key: place for place, key in enumerate(tensors)}
        self.wanted = [tensor.requires_grad for tensor in tensors.values()]
        self.rest = outside._replace(
            leaves=tuple(
                places[id(leaf)] if isinstance(leaf, Tensor) else (leaf,) for leaf in outside.leaves
            )
        )
        outputs = [] if self.attention is None else self.attention.take()
        if self.weigher is not None:
            self.weigher.enters(self.block.name, outside.tensors, outputs)
        self.kept = keeper.keep([*tensors.values(), *outputs])

    def __call__(self) -> BlockRun:
        """Run the block once more, with its graph, and compare what it returns."""
        entering = self._loaded()
        surroundings, shared = self.surroundings, self.surroundings.shared
        start = self.start if self.drew else None
        with ExitStack() as stack:
            stack.enter_context(cutting(None))
            stack.enter_context(surroundings.of_block(self.block.step, start, self.context))
            stack.enter_context(self.options.layers())
            if shared.stand_ins:
                stack.enter_context(StandIns(shared.stand_ins))
            if self.attention is not None:
                stack.enter_context(replaying(self.attention))
            if self.weigher is not None:
                stack.enter_context(self.weigher.reran(self.block.name))
            run = run_block(self.block, entering, self.mark, signed=self.options.signed)
        if self.attention is not None and self.attention.verifier is not None:
            words = (
                f"ran its block `{self.block.name}` again, whose attention was given other values"
            )
            self.comparison.adopt(self.block.step, self.attention.verifier, words)
        self.attention = None
        assert self.seen is not None
        self.comparison.same_block(self.block, run, self.seen)
        return run

    def _loaded(self) -> State:
        """Return what entered the block, as leaves, and free it here."""
        if self.kept is None or self.rest is None:
            raise ChainError(f"The gradient passes the {self.block} twice.")
        tensors, rest = self.kept.load(), self.rest
        self.kept = self.rest = None
        count = len(self.wanted)
        if self.attention is not None:
            self.attention.put(tensors[count:])
        begun = State(tuple(tensors[:count]), rest.spec).entering(self.wanted).leaves
        leaves = (leaf[0] if isinstance(leaf, tuple) else begun[leaf] for leaf in rest.leaves)
        return rest._replace(leaves=tuple(leaves))


def modes_of(module: Module) -> Sequence[tuple[Module, bool]]:
    """Return the modules of a block, and whether each is in training."""
    return [(each, each.training) for each in module.modules()]
