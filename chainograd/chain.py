"""`CheckpointedChain`: the border between the user and the engine."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

from chainograd.blocks.choice import Blocks
from chainograd.captured.find import find_captured
from chainograd.engine.autograd import attach
from chainograd.engine.first_call import FirstCalls, refuse_counted_passes, refuse_uncut
from chainograd.engine.forward import run_forward
from chainograd.engine.measure import Kind
from chainograd.engine.plain_states import plain_states, transformed
from chainograd.engine.prepare import Preparation
from chainograd.engine.run import Run
from chainograd.engine.run_options import RunOptions, Transform
from chainograd.errors import ChainError
from chainograd.options import (
    as_blocks,
    as_choice,
    as_count,
    as_function,
    as_generators,
    as_grad_steps,
    as_params,
    as_plan,
    as_progress,
    as_step,
    as_store,
    refuse_shadowed,
)  # fmt: skip
from chainograd.plans.budget import Budget
from chainograd.plans.plan import Plan, StepCost
from chainograd.plans.planners import PlanName, resolve
from chainograd.plans.restrict import without_graphs
from chainograd.preflight.check import check
from chainograd.preflight.cut_off import refuse_cut_off
from chainograd.preflight.findings import Findings
from chainograd.replay.verify import Verify
from chainograd.report.log import Log
from chainograd.report.steps import Report
from chainograd.state import State
from chainograd.storage.store import Store
from chainograd.torch_internals.compiler import eager
from chainograd.trajectory.links import attach_links
from chainograd.truncation.grad_steps import GradSteps, drawn, reached

Frozen = Literal["off", "auto"]


class CheckpointedChain:
    """A chain of steps whose gradient needs the memory of its nodes and of one step.

    Called on a state, it returns what ``for i in range(num_steps): x = step(x, i)`` returns, an
    ordinary differentiable value; its gradient equals the loop's, bit for bit on a CPU, for the
    state, for every tensor argument and for every parameter the steps use. If a gradient cannot be
    computed exactly, the chain raises; it never returns a partial one.

    Under ``no_grad``, in forward-mode AD and inside ``torch.func`` transforms the plain loop runs.
    Second and further derivatives are exact and cost the plain loop's memory.

    Args:
        step: ``step(x, i, *args, **kwargs) -> x`` with ``i`` from 0 to ``num_steps - 1``; a
            function or a module, pure in x, i and its arguments. x is any pytree of tensors.
        num_steps: M, at least 1.
        plan: ``"nodes"`` keeps every node and the last step's graph: 2M-1 step evaluations, the
            memory of M nodes and one graph. ``"graph"`` keeps every graph: M evaluations, M
            graphs. ``"blocks"`` and ``"skeleton"`` need one block's graph at a time: ``"blocks"``
            keeps nodes and runs each block three times, ``"skeleton"`` keeps the inputs of all
            blocks, in ``store``, and runs each block twice. With ``"+attention"`` behind a name
            (but ``"graph"``) attention's outputs are kept too, and its kernels do not run again. A
            number of bytes (an integer, text such as ``"24GiB"``, or a `Budget`) finds the fastest
            plan that fits, each step at its own level: the first call with tensors of given shapes
            then measures every step. Or a `Plan`.
        params: Tensors requiring a gradient that the steps use, besides those that are found by
            themselves (parameters of modules, tensors in closures, globals and attributes).
        generators: ``torch.Generator`` objects that the steps draw from. The global random
            streams are replayed without being named.
        store: Where nodes live: ``"device"``, ``"host"``, a folder, or a `Store`, which can also
            keep them in fewer bits.
        micro_batch: Samples in a slice: every step runs over slices of the batch, and the memory
            of a graph is that of one slice, while the loss sees the whole batch. Tensors of the
            state and of the arguments with the first dimension of ``x`` are cut. Each step runs
            twice, 2M evaluations of every slice; random noise is drawn slice by slice. None is
            the whole batch at once.
        blocks: The modules whose calls a step's graph may be cut into. ``"auto"`` takes those that
            models of diffusers and transformers declare, and of other models the repeated modules
            in their lists; ``print(chain)`` shows them. None cuts nothing. Only plans with
            ``"blocks"`` or ``"skeleton"``, and budgets, cut. Gradients are the plain loop's to the
            bit. A block that changes an argument in place, or uses a tensor with a graph that it
            was not passed, is refused.
        frozen: ``"auto"`` lets layers whose weights need no gradient save only what the gradient of
            their input needs: less memory, with results and gradients equal to the bit. If a call
            saves little, later calls with these shapes leave their layers to torch. Steps that
            torch.compile has a part in always do. ``"off"`` leaves every layer to torch.
        verify: How each recomputed state is compared with the first one: ``"exact"``, ``"close"``
            (for kernels that do not repeat their results to the bit) or ``"off"``.
        grad_steps: Steps that the gradient may pass; the others run as under ``no_grad``. The last
            K (an integer), a set of indices, or a function of ``num_steps`` that returns either
            and is called once a call, for a random truncation. None is all steps. If the set has
            gaps, a loss on the last state reaches the steps after the last gap; losses on earlier
            states of a `trajectory` reach the others.
        grad_transform: ``f(i, g) -> g``, applied to the cotangent g of the state that enters step
            i: to look at it, clip it, rescale it. g is shaped like the state, with None where a
            leaf has no cotangent.
        progress: Show a bar of step evaluations for the forward and for the backward pass.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument is of the wrong kind.
        ImportError: If ``progress`` is wanted and tqdm is not installed.

    References:
        Zhang et al. (2023), Unsupervised Discovery of Interpretable Directions in h-space of
        Pre-trained Diffusion Models, section 4.4 and Algorithm 1.

    Example:
        >>> w = torch.tensor([0.5], requires_grad=True)
        >>> chain = CheckpointedChain(lambda x, i: torch.sin(w * x + i), num_steps=50)
        >>> chain(torch.ones(1)).sum().backward()
        >>> w.grad.shape
        torch.Size([1])
    """

    def __init__(
        self,
        step: Callable[..., Any],
        num_steps: int,
        *,
        plan: PlanName | Plan | int | str | Budget = "nodes",
        params: Iterable[Tensor] = (),
        generators: Iterable[Generator] = (),
        store: Store | str | os.PathLike[str] = "device",
        micro_batch: int | None = None,
        blocks: Blocks = "auto",
        frozen: Frozen = "auto",
        verify: Verify = "exact",
        grad_steps: GradSteps | Callable[[int], GradSteps] | None = None,
        grad_transform: Transform | None = None,
        progress: bool = False,
    ) -> None:
        self.step = as_step(step)
        self.num_steps = as_count("num_steps", num_steps, "an integer")
        self.micro_batch = (
            None
            if micro_batch is None
            else as_count("micro_batch", micro_batch, "a number of samples")
        )
        self.blocks: Blocks = as_blocks(blocks)
        self.plan, self._budget = as_plan(plan, self.num_steps, self.micro_batch)
        self.params = as_params(params)
        self.generators = as_generators(generators)
        self.store = as_store(store, self._budget)
        self.frozen: Frozen = as_choice("frozen", frozen, get_args(Frozen))
        self.verify: Verify = as_choice("verify", verify, get_args(Verify))
        self.grad_steps = as_grad_steps(grad_steps, self.num_steps)
        self.grad_transform = as_function("grad_transform", grad_transform, "f(i, g)")
        self.progress = as_progress(progress)
        self._first_calls = FirstCalls()
        self._log: Log | None = None  # of the last run
        self._ran = self.plan

    @eager
    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the chain.

        Args:
            x: The state that enters step 0: a tensor, or any pytree with tensors.
            args: Passed to every step; tensors among them get gradients.
            kwargs: Passed to every step, with gradients too.

        Returns:
            The state that leaves the last step, differentiable.

        Raises:
            CapturedTensorError: If a step uses a tensor that requires a gradient and that cannot
                be found. (Some can only be seen to be missing in the backward pass.)
            ChainError: If a step changes its input in place.
        """
        steps = self._drawn_grad_steps()
        if not torch.is_grad_enabled() or transformed():
            return deque(plain_states(self._preparation(steps), x, args, kwargs), maxlen=1)[0]
        run = self._begun(x, args, kwargs, reached(steps, self.num_steps))
        result = run_forward(run)
        self._ended(run)
        return attach(run, result).tree()

    @eager
    def trajectory(self, x: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Run the chain and return every state, all of them differentiable.

        Losses on several states cost one backward pass. The states share memory with the nodes.
        Hooks, ``retain_grad()`` and ``torch.autograd.grad`` work on each as in the plain loop.

        Args:
            x: The state that enters step 0.
            args: Passed to every step; tensors among them get gradients.
            kwargs: Passed to every step, with gradients too.

        Returns:
            M + 1 states; the first is ``x`` itself, the last what calling the chain returns.

        Raises:
            CapturedTensorError: As from a call.
            ChainError: As from a call.

        Example:
            >>> chain = CheckpointedChain(lambda x, i: 2 * x, num_steps=3)
            >>> [int(x) for x in chain.trajectory(torch.ones(1, requires_grad=True))]
            [1, 2, 4, 8]
        """
        steps = self._drawn_grad_steps()
        if not torch.is_grad_enabled() or transformed():
            return list(plain_states(self._preparation(steps), x, args, kwargs))
        run = self._begun(x, args, kwargs, steps)
        states: dict[int, State] = {}
        run_forward(run, states.__setitem__)
        self._ended(run)
        _, *after = attach_links(run, State.of(x), states)
        return [x, *(state.tree() for state in after)]

    @eager
    def measure(
        self, x: Any, *args: Any, kind: Kind | None = None, **kwargs: Any
    ) -> tuple[StepCost, ...]:
        """Measure what each step costs, running it forward and back once.

        Under ``FakeTensorMode`` nothing is computed: bytes are what real tensors would take,
        seconds are all 1.

        Args:
            x: The state that enters step 0.
            args: Passed to every step.
            kind: ``kind(i)`` is equal for steps that are alike, of which one is measured; by
                default every step is.
            kwargs: Passed to every step.

        Returns:
            One cost a step, for `Plan.with_costs` and `within`.
        """
        if kind is not None:
            refuse_shadowed(self.step, "measure", "kind")
        return self._first_calls.measure(self._preparation().run(x, args, kwargs), kind)

    @eager
    def check(
        self, x: Any, *args: Any, loss: Callable[[Any], Any] | None = None, **kwargs: Any
    ) -> Findings:
        """Look for what would make the gradients of the steps missing, wrong or surprising.

        The first three steps and the last one run as the plain loop, and again as in a chain; a
        gradient is sent back through both. Then all steps run once as in the forward pass of a
        call, which refuses what any of them keeps or captures. That is 13 + M step evaluations
        (some more with ``micro_batch``), and four graphs at once: take a small batch where one
        hardly fits.

        It leaves no trace: random streams, statistics of batches, parameters and their ``.grad``
        are as before (but for attributes that a step keeps). ``grad_transform`` and ``grad_steps``
        are left out.

        Args:
            x: The state that enters step 0; a small batch will do.
            args: Passed to every step.
            loss: ``loss(x) -> tensor``, called once on the state after these few steps, which
                is no finished sample.
            kwargs: Passed to every step.

        Returns:
            The findings, each with its line and the way out; empty, and so false, if all is well.
            Printed, they say what was looked at.

        Raises:
            Exception: What a step or the loss raises, if the cause has no name.

        Example:
            >>> w = torch.tensor([0.5], requires_grad=True)
            >>> chain = CheckpointedChain(lambda x, i: torch.sin(w.detach() * x), num_steps=50)
            >>> [finding.kind for finding in chain.check(torch.ones(1))]
            ['detached']
        """
        if loss is not None:
            refuse_shadowed(self.step, "check", "loss")

        whole = self._preparation()
        options = replace(whole.options, grad_steps=None, transform=None, progress=False)

        def first_steps(count: int, x: Any) -> Run:
            plan = self._sliced(resolve("nodes", count))
            few = replace(whole, num_steps=count, plan=plan, options=options)
            return few.run(x, args, kwargs)

        return check(first_steps, self.num_steps, x, loss)

    def report(self) -> Report:
        """Return what each step of the last run took: seconds, bytes, norms of cotangents.

        The last run is the last call that wanted gradients; its backward pass is in the report as
        far as it has come. Noting it costs microseconds a step.

        Returns:
            One row a step; printed, it is a table. On a CUDA device this waits for the run.

        Raises:
            ChainError: If there was no such call.

        Example:
            >>> w = torch.tensor(0.5, requires_grad=True)
            >>> chain = CheckpointedChain(lambda x, i: w * x, num_steps=3)
            >>> chain(torch.ones(())).backward()
            >>> [step.cotangent_norm for step in chain.report().steps]
            [None, 0.25, 0.5]
        """
        if self._log is None:
            raise ChainError(
                "There is nothing to report: call the chain with gradients enabled first."
            )
        costs = self._first_calls.last_costs
        return self._log.report(self.num_steps, costs, self._ran)

    def __str__(self) -> str:
        """Return what the chain does: its steps, its plan, and the blocks that it can cut."""
        step = getattr(self.step, "__qualname__", type(self.step).__name__)
        modes = find_captured(self.step).modes
        blocks = self._first_calls.blocks([module for module, _ in modes], self.blocks)
        head = f"CheckpointedChain of {self.num_steps} steps of {step}"
        rows = [head, f"blocks: {blocks}", f"store: {self.store.place}", str(self.plan)]
        return "\n".join(rows)

    def _drawn_grad_steps(self) -> frozenset[int] | None:
        # In calls without gradients too: they leave the random streams where calls with gradients
        # do, and a chain inside a step draws the same when the step runs again.
        return drawn(self.grad_steps, self.num_steps)

    def _begun(self, x: Any, args: Any, kwargs: Any, grad_steps: frozenset[int] | None) -> Run:
        """Return a run with its plan, after what is found out once for given shapes."""
        run = self._preparation(grad_steps).run(x, args, kwargs)
        refuse_uncut(run)
        refuse_counted_passes(run, planned=self._budget is None and self.micro_batch is None)
        self._first_calls.compare_slices(run)
        if self._budget is not None and run.inputs.tensors:
            self.plan = run.plan = self._first_calls.plan(run, self._budget, self._sliced)
        self._log, self._ran = run.log, run.plan
        return run

    def _ended(self, run: Run) -> None:
        """Note what the forward pass of a run has shown."""
        self._first_calls.saves |= run.step.options.saves
        self._first_calls.refuse_cut_off(run, refuse_cut_off)
        run.leave_out_unused()

    def _sliced(self, plan: Plan) -> Plan:
        return plan if self.micro_batch is None else without_graphs(plan)

    def _preparation(self, grad_steps: frozenset[int] | None = None) -> Preparation:
        options = RunOptions(
            self.verify, self.grad_transform, grad_steps, self.store, self.progress
        )
        return Preparation(
            self.step, self.num_steps, self.plan, self.params, self.generators, self.micro_batch,
            self.blocks, watch_frozen=self.frozen == "auto", options=options,
            first_calls=self._first_calls,
        )  # fmt: skip
