"""`CheckpointedChain`: the border between the user and the engine."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Generator, Tensor

from chainograd.captured.find import find_captured
from chainograd.captured.generators import UnlistedGenerators
from chainograd.captured.stand_ins import current_stand_ins
from chainograd.captured.wrappers import refuse_cuda_graphs
from chainograd.engine.autograd import attach
from chainograd.engine.forward import run_forward
from chainograd.engine.independence import compare_slices, refuse_counted_passes
from chainograd.engine.measure import Kind, measure
from chainograd.engine.microbatch import SlicedSteps, batch_of
from chainograd.engine.run import Run, Transform
from chainograd.engine.step import Steps
from chainograd.errors import ChainError
from chainograd.frozen.conditions import takes_fast_path
from chainograd.frozen.layers import Saving
from chainograd.metering import metered
from chainograd.options import (
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
)
from chainograd.plans.budget import within
from chainograd.plans.plan import Plan, StepCost
from chainograd.plans.planners import PlanName, resolve, without_graphs
from chainograd.preflight.check import check
from chainograd.preflight.cut_off import may_be_cut_off, refuse_cut_off
from chainograd.preflight.findings import Findings
from chainograd.replay.context import StepContext
from chainograd.replay.rng import RNGSources
from chainograd.replay.verify import Verify
from chainograd.report.log import Log
from chainograd.report.steps import Report
from chainograd.state import NO_ARGUMENTS, State, refuse_hidden, wants_gradient
from chainograd.storage.store import Store
from chainograd.tensors.devices import is_accelerator
from chainograd.torch_internals.compiler import eager
from chainograd.torch_internals.transforms import forward_ad_active, transforms_active
from chainograd.trajectory.links import attach_links
from chainograd.truncation.grad_steps import GradSteps, drawn, reached

Frozen = Literal["off", "auto"]
PLANS = 16  # that a chain remembers: random `grad_steps` have one each


class CheckpointedChain:
    """A chain of steps whose gradient needs the memory of its nodes and of one step.

    Called on a state, it returns what ``for i in range(num_steps): x = step(x, i)`` returns, an
    ordinary differentiable value; its gradient is that of the loop, bit for bit on a CPU, for the
    state, for every tensor argument and for every parameter the steps use. Where the gradient of
    something cannot be had it is refused, never left out.

    Under ``no_grad``, in forward-mode AD and inside ``torch.func`` transforms the plain loop runs.
    Second and further derivatives are exact and cost the plain loop's memory.

    Args:
        step: ``step(x, i, *args, **kwargs) -> x`` with ``i`` from 0 to ``num_steps - 1``; a
            function or a module, pure in x, i and its arguments. x is any pytree of tensors.
        num_steps: M, at least 1.
        plan: ``"nodes"`` keeps every node and the last step's graph: 2M-1 step evaluations, the
            memory of M nodes and one graph. ``"graph"`` keeps every graph: M evaluations, M
            graphs. A number of bytes (an integer, or text such as ``"8GiB"``) keeps what fits: the
            first call with tensors of given shapes then measures every step. Or a `Plan`.
        params: Tensors requiring a gradient that the steps use, besides those that are found by
            themselves (parameters of modules, tensors in closures, globals and attributes).
        generators: ``torch.Generator`` objects that the steps draw from. The global random
            streams are replayed without being named.
        store: Where nodes live: ``"device"``, ``"host"``, a folder, or a `Store`, which can also
            keep them in fewer bits.
        micro_batch: Samples in a slice: every step runs over slices of the batch, and the memory
            of a graph is that of one slice, while the loss sees the whole batch. Tensors of the
            state and of the arguments whose first dimension is that of ``x`` are cut. Each step
            is run twice, 2M evaluations of every slice; random noise is drawn slice by slice.
            None is the whole batch at once.
        frozen: ``"auto"`` lets layers whose weights need no gradient keep only what the gradient of
            their input needs: less memory, and results and gradients equal to the bit. Where a call
            saves little by it, later calls like it leave their layers to torch, as do steps that
            torch.compile has a part in. ``"off"`` leaves every layer to torch.
        verify: How each recomputed state is compared with the one kept: ``"exact"``, ``"close"``
            (for kernels that do not repeat their results to the bit) or ``"off"``.
        grad_steps: Steps that the gradient may pass; the others run as under ``no_grad``. The last
            K (an integer), a set of indices, or a function of ``num_steps`` that returns either
            and is asked once a call, for a random truncation. None is all steps. Of a set with
            gaps, a loss on the last state reaches the steps behind the last gap; losses on the
            states of a `trajectory` reach others.
        grad_transform: ``f(i, g) -> g``, applied to the cotangent g of the state that enters step
            i, on its way back: to look at it, clip it, rescale it. g is shaped like the state,
            with None where a leaf has no cotangent.
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
        plan: PlanName | Plan | int | str = "nodes",
        params: Iterable[Tensor] = (),
        generators: Iterable[Generator] = (),
        store: Store | str | os.PathLike[str] = "device",
        micro_batch: int | None = None,
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
        self.plan, self._budget = as_plan(plan, self.num_steps, self.micro_batch)
        self.params = as_params(params)
        self.generators = as_generators(generators)
        self.store = as_store(store)
        self.frozen: Frozen = as_choice("frozen", frozen, get_args(Frozen))
        self.verify: Verify = as_choice("verify", verify, get_args(Verify))
        self.grad_steps = as_grad_steps(grad_steps, self.num_steps)
        self.grad_transform = as_function("grad_transform", grad_transform, "f(i, g)")
        self.progress = as_progress(progress)
        self._measured: dict[Any, tuple[StepCost, ...]] = {}
        self._plans: dict[Any, Plan] = {}
        self._compared: set[Any] = set()  # shapes for which slices were compared with the whole
        self._unused: set[Any] = set()  # shapes for which nothing that needs a gradient is used
        self._saving: dict[Any, Saving] = {}  # whether frozen layers are worth watching, by shapes
        self._saves = False  # whether steps take gradients of their own, as far as is known
        self._log: Log | None = None  # of the last run
        self._costs: tuple[StepCost, ...] | None = None  # as measured last

    @eager
    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the chain.

        Args:
            x: The state that enters step 0: a tensor, or any pytree with tensors.
            args: Handed to every step; tensors among them get gradients.
            kwargs: Likewise.

        Returns:
            The state that leaves the last step, differentiable.

        Raises:
            CapturedTensorError: If a step uses a tensor that requires a gradient and that cannot
                be found. (Some can only be seen to be missing in the backward pass.)
            ChainError: If a step changes its input in place.
        """
        steps = self._drawn_grad_steps()
        if not torch.is_grad_enabled() or _transformed():
            return deque(self._loop(x, args, kwargs, steps), maxlen=1)[0]
        run = self._prepared(x, args, kwargs, reached(steps, self.num_steps))
        M, last = self.num_steps, []

        def visit(i: int, state: State) -> None:
            if i == M:
                last.append(state)

        self._run(run, visit)
        return attach(run, last[0]).tree()

    @eager
    def trajectory(self, x: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Run the chain and return every state, all of them differentiable.

        Losses on several states cost one sweep back. The states share their memory with the nodes.
        Hooks, ``retain_grad()`` and ``torch.autograd.grad`` work on each as in the plain loop.

        Args:
            x: The state that enters step 0.
            args: Handed to every step; tensors among them get gradients.
            kwargs: Likewise.

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
        if not torch.is_grad_enabled() or _transformed():
            return list(self._loop(x, args, kwargs, steps))
        run = self._prepared(x, args, kwargs, steps)
        states: dict[int, State] = {}
        self._run(run, states.__setitem__)
        _, *after = attach_links(run, State.of(x), states)
        return [x, *(state.tree() for state in after)]

    @eager
    def measure(
        self, x: Any, *args: Any, kind: Kind | None = None, **kwargs: Any
    ) -> tuple[StepCost, ...]:
        """Measure what each step costs, running it forward and back once.

        Under ``FakeTensorMode`` nothing is computed: bytes are those of real tensors, seconds are
        all 1.

        Args:
            x: The state that enters step 0.
            args: Handed to every step.
            kind: ``kind(i)`` is equal for steps that are alike, of which one is measured; by
                default every step is.
            kwargs: Handed to every step.

        Returns:
            One cost a step, for `Plan.with_costs` and `within`.
        """
        if kind is not None:
            refuse_shadowed(self.step, "measure", "kind")
        run = self._new_run(x, args, kwargs)
        self._costs = self._measure(run, kind)
        return self._costs

    @eager
    def check(
        self, x: Any, *args: Any, loss: Callable[[Any], Any] | None = None, **kwargs: Any
    ) -> Findings:
        """Look at the steps for what would make gradients missing, wrong or surprising.

        The first three steps and the last one run as the plain loop, and again as in a chain; a
        gradient is sent back through both. Then all steps run once as in the forward pass of a
        call, which refuses what any of them keeps or captures. That is 13 + M step evaluations
        (some more with ``micro_batch``), and four graphs at once: take a small batch where one
        hardly fits.

        It leaves no trace: random streams, statistics of batches, parameters and their ``.grad``
        are as before (but for attributes that a step keeps). ``grad_transform`` is left out, and
        ``grad_steps``, so that all steps are seen alike.

        Args:
            x: The state that enters step 0; a small batch will do.
            args: Handed to every step.
            loss: ``loss(x) -> tensor``, called once on what the steps give: no finished sample.
            kwargs: Handed to every step.

        Returns:
            What was found, each thing with its line and the way out; empty, and so false, if all
            is well. Printed, it says what was looked at.

        Raises:
            Exception: What a step or the loss raises, if it is nothing that can be named.

        Example:
            >>> w = torch.tensor([0.5], requires_grad=True)
            >>> chain = CheckpointedChain(lambda x, i: torch.sin(w.detach() * x), num_steps=50)
            >>> [finding.kind for finding in chain.check(torch.ones(1))]
            ['detached']
        """
        if loss is not None:
            refuse_shadowed(self.step, "check", "loss")

        def first_steps(count: int, x: Any) -> Run:
            few = copy.copy(self)
            few.num_steps, few.plan = count, self._sliced(resolve("nodes", count))
            few.grad_steps, few.grad_transform, few.progress = None, None, False
            return few._new_run(x, args, kwargs)

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
        return self._log.report(self.num_steps, self._costs)

    def _drawn_grad_steps(self) -> frozenset[int] | None:
        # In every call, those without gradients too: what is drawn leaves the random streams where
        # a call with gradients does, and a chain inside a step draws the same when that runs again.
        return drawn(self.grad_steps, self.num_steps)

    def _prepared(
        self, x: Any, args: Any, kwargs: Any, grad_steps: frozenset[int] | None = None
    ) -> Run:
        """Return a run with its plan, after what is measured or tried once for given shapes."""
        run = self._new_run(x, args, kwargs, grad_steps)
        refuse_counted_passes(run, planned=self._budget is None and self.micro_batch is None)
        if isinstance(run.steps, SlicedSteps) and run.mode not in self._compared:
            with run.beforehand():
                compare_slices(run, run.steps)
            self._compared.add(run.mode)
        if self._budget is not None and run.inputs:
            self.plan = run.plan = self._within(self._budget, run)
        self._log = run.log
        return run

    def _within(self, budget: int, run: Run) -> Plan:
        """Return the plan for a budget; measures and plans once for given shapes."""
        if run.mode not in self._measured:
            self._measured[run.mode] = self._measure(run)
        self._costs = self._measured[run.mode]
        key = run.mode, run.grad_steps
        plan = self._plans.pop(key, None) or within(
            budget, self._costs, as_run=lambda plan: run.as_run(self._sliced(plan))
        )
        self._plans[key] = plan  # the last one now
        if len(self._plans) > PLANS:
            del self._plans[next(iter(self._plans))]
        return plan

    def _measure(self, run: Run, kind: Kind | None = None) -> tuple[StepCost, ...]:
        if run.mode in self._saving:
            self._saving[run.mode].measured = True
            run.steps.recording = self._saving[run.mode].recording()
        with run.beforehand(), metered(run.x_T.device, compiled=run.compiled):
            return measure(run, kind)

    def _sliced(self, plan: Plan) -> Plan:
        return plan if self.micro_batch is None else without_graphs(plan)

    def _run(self, run: Run, visit: Callable[[int, State], None]) -> None:
        run.steps.saves = self._saves
        run_forward(run, visit)
        self._saves |= run.steps.saves
        if may_be_cut_off(run) and run.mode not in self._unused:
            refuse_cut_off(run)
            self._unused.add(run.mode)
        run.leave_out_unused()

    def _new_run(
        self, x: Any, args: Any, kwargs: Any, grad_steps: frozenset[int] | None = None
    ) -> Run:
        # Each once: the sums of a tensor that was there twice would be added to each other.
        seen = {id(tensor): tensor for tensor in self.params if tensor.requires_grad}
        named = list(seen.values())
        x_T = State.of(x)
        refuse_hidden(x_T.leaves, wants_gradient, "The state that enters step 0")
        arguments = State.of((args, kwargs)) if args or kwargs else NO_ARGUMENTS
        modules = [leaf for leaf in arguments.leaves if not isinstance(leaf, Tensor)]
        captured = find_captured(self.step, modules)
        found = [tensor for tensor in captured.tensors if id(tensor) not in seen]
        seen_by_steps = (
            self.step,
            self.num_steps,
            arguments,
            named + found,
            captured.buffers,
            current_stand_ins(named + found),
            captured.sharded,
        )
        if self.micro_batch is None:
            steps = Steps(*seen_by_steps)
        else:
            steps = SlicedSteps(*seen_by_steps, batch=batch_of(x_T), size=self.micro_batch)
        leaves = (*x_T.tensors, *arguments.tensors)
        key = tuple((t.shape, t.dtype, t.device, t.requires_grad) for t in leaves)
        mode = (key, len(captured.buffers))  # modules in training may look at the batch
        if self.frozen == "auto" and not captured.compiled and not takes_fast_path(captured.modes):
            steps.recording = self._saving.setdefault(mode, Saving()).recording()
        steps.counted = not captured.scripted
        devices = {t.device for t in (*x_T.tensors, *arguments.tensors, *named)}
        devices |= captured.devices
        if captured.cuda_graphs and any(map(is_accelerator, devices)):
            refuse_cuda_graphs()
        rng = RNGSources(devices, self.generators)
        return Run(
            steps=steps,
            plan=self.plan,
            x_T=x_T,
            rng=rng,
            verify=self.verify,
            unlisted_generators=UnlistedGenerators(
                captured.generators, [*self.generators, *rng.defaults]
            ),
            mode=mode,
            counts_passes=captured.counts_passes,
            compiled=captured.compiled,
            context=StepContext.now({d.type for d in devices}, captured.modes),
            transform=self.grad_transform,
            grad_steps=grad_steps,
            store=self.store,
            progress=self.progress,
        )

    def _loop(
        self, x: Any, args: Any, kwargs: Any, grad_steps: frozenset[int] | None
    ) -> Iterator[Any]:
        """Yield the states of the plain loop, x first."""
        if self.grad_transform is not None and _transformed():
            raise ChainError(
                "`grad_transform` does not reach into torch.func transforms, vmap and forward-mode "
                "AD, where the plain loop runs. Leave it out there, or use `backward()`."
            )
        yield x
        if self.micro_batch is not None and not _transformed():
            steps, state = self._new_run(x, args, kwargs).steps, State.of(x)
            for i in range(self.num_steps):
                state = steps.run(i, state)
                yield state.tree()
            return
        for i in range(self.num_steps):
            x = self.step(x, i, *args, **kwargs)
            if grad_steps is not None and i not in grad_steps:
                x = State.of(x).detached().tree()
            yield x


def _transformed() -> bool:
    """Return whether a torch.func transform or forward-mode AD is at work."""
    return transforms_active() or forward_ad_active()
