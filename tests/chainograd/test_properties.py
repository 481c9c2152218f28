"""Chains drawn at random against the plain loop, bit for bit.

The examples are the same in every run. To try others, and more of them:

    CHAINOGRAD_EXAMPLES=20000 python -m pytest tests/chainograd/test_properties.py

Steps of layers of every kind are drawn by `tests.drawing_steps`; `make net DRAWS=10000` draws more.
"""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import event, given, settings
from hypothesis import strategies as st

from chainograd import (
    ChainError,
    CheckpointedChain,
    ScaledInput,
    StoppedOutput,
    binomial,
    keep_last,
    random_suffix,
)
from chainograd.plans.levels import LEVELS, Level
from chainograd.plans.planners import keep_graphs
from tests.drawing_steps.draw import draw
from tests.drawing_steps.layers import KINDS, unexplained
from tests.drawing_steps.outcome import UNREPEATED, grouped, outcome

EXAMPLES = int(os.environ.get("CHAINOGRAD_EXAMPLES", "0"))


class Pair(NamedTuple):
    """A state of two tensors."""

    x: Any
    y: Any


def make_state(kind, x, y):
    """Return a state of one kind, with two floating tensors in it at the most."""
    ids = torch.arange(3)
    return {
        "tensor": x,
        "named tuple": Pair(x, y),
        "dict": {"x": x, "history": [y, None], "count": 0, "ids": ids},
        "constant": (x, {"y": y.detach()}, "a name"),
    }[kind]


@dataclass
class Problem:
    """A step, what goes into it, and how its chain is to run.

    Attributes:
        noise: What the step draws.
        drawn_from: A generator, or None for the global stream.
        path: Which way the gradient goes through the step's network.
        used_from: The first step that uses the parameters.
        named: Whether the argument is handed over by its name.
        wanted: Whether x_T, the argument and the parameters need gradients.
        losses: States that a loss sees.
    """

    M: int
    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    noise: str
    drawn_from: torch.Generator | None
    path: str
    used_from: int
    named: bool
    wanted: tuple[bool, bool, bool]
    losses: frozenset[int]

    def __post_init__(self):
        torch.manual_seed(len(self.shape) + self.M)
        x_wanted, c_wanted, w_wanted = self.wanted
        self.x = self.random(*self.shape).requires_grad_(x_wanted)
        self.y = self.random(*self.shape).requires_grad_(x_wanted)
        self.c = self.random(1).requires_grad_(c_wanted)
        self.w = self.random(1).requires_grad_(w_wanted)
        self.b = self.random(*self.shape[-1:]).requires_grad_(w_wanted)
        whole = {"whole": lambda net: net, "scaled": lambda net: ScaledInput(net, scale=0.5),
                 "stopped": StoppedOutput}  # fmt: skip
        self.network = whole[self.path](self.net)
        self.parts = [Part(self.of_x), Part(self.of_y), Part(self.noise_on)]  # which may be blocks

    def random(self, *shape):
        return torch.randn(shape, dtype=self.dtype)

    def net(self, x, y, i):
        # The weight is used twice, so that the order of sums shows in the last bit.
        of_x, of_y, _ = self.parts
        return of_x(x, i) + of_y(y)

    def of_x(self, x, i):
        return torch.tanh(self.w * x + self.b + i / 8)

    def of_y(self, y):
        return torch.sin(self.w * y)

    def step(self, state, i, c, *, sign=1):
        leaves, spec = pytree.tree_flatten(state)
        places = [p for p, leaf in enumerate(leaves) if is_float(leaf)]
        x, y = leaves[places[0]], leaves[places[-1]]
        drift = self.network(x, y, i) if i >= self.used_from else torch.cos(x)
        leaves[places[0]] = self.noised(x + 0.3 * sign * drift * c)
        if self.kind != "constant":
            leaves[places[-1]] = self.handed_on(x) if len(places) > 1 else leaves[places[0]]
        leaves = [leaf + 1 if isinstance(leaf, int) else leaf for leaf in leaves]
        return pytree.tree_unflatten(leaves, spec)

    def handed_on(self, x):
        # The same tensor in two states is summed up by the loop in one place, losses first, and by
        # a chain state by state: equal to rounding where several losses see it.
        return x if self.losses == {self.M} else x.clone()

    def noised(self, x):
        return self.parts[-1](x)

    def noise_on(self, x):
        def draw():
            return torch.randn(x.shape, dtype=x.dtype, generator=self.drawn_from)

        match self.noise:
            case "additive":
                return x + 0.1 * draw()
            case "multiplicative":
                return x * (1 + 0.1 * draw())
            case "dropout":
                return torch.nn.functional.dropout(x, 0.3)
        return x

    def loop(self, steps):
        """Run the plain loop with the results of all steps but ``steps`` detached."""
        states = [make_state(self.kind, self.x, self.y)]
        for i in range(self.M):
            state = self.step(states[-1], i, self.c, sign=-1)
            states.append(state if i in steps else pytree.tree_map(detached, state))
        return states

    def called(self, chain):
        """Run a chain; call it where its last state is all that a loss sees."""
        x_T = make_state(self.kind, self.x, self.y)
        args, kwargs = ((), {"c": self.c}) if self.named else ((self.c,), {})
        if self.losses == {self.M}:
            return [None] * self.M + [chain(x_T, *args, sign=-1, **kwargs)]
        return chain.trajectory(x_T, *args, sign=-1, **kwargs)

    def results(self, run, passes):
        """Return values, gradients of so many backward passes, and where the streams end."""
        torch.manual_seed(7)
        if self.drawn_from is not None:
            self.drawn_from.manual_seed(8)
        states = run()
        seen = [leaf for i in sorted(self.losses) for leaf in pytree.tree_leaves(states[i])]
        floats = [leaf for leaf in seen if is_float(leaf)]
        inputs = [t for t in (self.x, self.y, self.c, self.w, self.b) if t.requires_grad]
        parts = [leaf.square().sum() for leaf in floats if leaf.requires_grad]
        self.reached = bool(parts)
        results = [leaf.detach() if is_float(leaf) else leaf for leaf in seen]
        for more in reversed(range(passes)):
            if not parts or not inputs:
                # A chain may not know that its truncation cuts everything off; None comes back.
                results += [None] * len(inputs)
                continue
            results += torch.autograd.grad(
                sum(parts), inputs, retain_graph=more > 0, allow_unused=True
            )
        generator = self.drawn_from or torch.default_generator
        return [*results, torch.rand(2), torch.rand(2, generator=generator)]


class Part(torch.nn.Module):
    """A part of a step, as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def is_float(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


def detached(leaf):
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


def same(a, b):
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


@st.composite
def problems(draw):
    """Draw a problem."""
    M = draw(st.integers(1, 8))
    noise = draw(st.sampled_from(["none", "additive", "multiplicative", "dropout"]))
    named = noise in ("additive", "multiplicative") and draw(st.booleans())
    return Problem(
        M=M,
        kind=draw(st.sampled_from(["tensor", "named tuple", "dict", "constant"])),
        shape=tuple(draw(st.lists(st.integers(0, 3), max_size=3))),
        dtype=draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16])),
        noise=noise,
        drawn_from=torch.Generator() if named else None,
        path=draw(st.sampled_from(["whole", "whole", "scaled", "stopped"])),
        used_from=draw(st.sampled_from([0, 0, M // 2])),
        named=draw(st.booleans()),
        wanted=draw(st.tuples(st.booleans(), st.booleans(), st.booleans())),
        losses=draw(st.sets(st.integers(1, M), max_size=3)) | {M} if draw(st.booleans())
        else frozenset({M}),
    )  # fmt: skip


@st.composite
def plans(draw, problem):
    """Draw a plan of any family, or a budget."""
    M = problem.M
    family = draw(st.sampled_from(["nodes", "graph", "last", "some", "binomial", "bytes"]))
    event(f"plan: {family}")
    match family:
        case "last":
            plan = keep_last(M, draw(st.integers(1, M)))
        case "some":
            plan = keep_graphs(M, frozenset(draw(st.sets(st.integers(0, M - 1)))) | {M - 1})
        case "binomial":
            plan = binomial(M, slots=draw(st.integers(1, M)))
        case _:
            return family
    each = st.lists(st.sampled_from(LEVELS), min_size=M, max_size=M)
    return plan.with_levels(draw(st.just([Level.WHOLE] * M) | each))


def a_budget(problem, part, **options):
    """Return bytes between the least that is needed and what all graphs need."""
    chain = CheckpointedChain(problem.step, problem.M, **options)
    costs = chain.measure(make_state(problem.kind, problem.x, problem.y), problem.c, sign=-1)
    least = binomial(problem.M, slots=1).with_costs(costs).peak_bytes
    most = (
        CheckpointedChain(problem.step, problem.M, plan="graph").plan.with_costs(costs).peak_bytes
    )
    return max(1, least + int(part * max(most - least, 0)))


@st.composite
def truncations(draw, M):
    """Draw a ``grad_steps``, and a function that returns the steps it means, drawn alike."""
    kind = draw(st.sampled_from(["all", "all", "last", "set", "drawn", "suffix"]))
    event(f"truncation: {kind}")
    K = draw(st.integers(1, M))
    last = set(range(M - K, M))
    match kind:
        case "last":
            return K, lambda: last
        case "set":
            some = draw(st.sets(st.integers(0, M - 1))) | {M - 1}
            return some, lambda: some
        case "drawn":
            return lambda M: last, lambda: last
        case "suffix":
            return random_suffix(1, K), lambda: range(M - int(torch.randint(1, K + 1, ())), M)
    return None, lambda: range(M)


@settings(deadline=None, max_examples=EXAMPLES or 500, derandomize=not EXAMPLES)
@given(data=st.data(), problem=problems(), passes=st.integers(1, 2))
def test_a_chain_drawn_at_random_equals_the_plain_loop(data, problem, passes):
    grad_steps, steps = data.draw(truncations(problem.M), "truncation")
    plan = data.draw(plans(problem), "plan")
    verify = data.draw(st.sampled_from(["exact", "exact", "close", "off"]), "verify")
    drawn_from = [problem.drawn_from] if problem.drawn_from else []
    options = {"generators": drawn_from, "blocks": problem.parts}
    if plan == "bytes":
        options["blocks"] = None  # of these few numbers, whole graphs may be the smallest
        plan = a_budget(problem, data.draw(st.floats(0, 1), "budget"), **options)
    chain = CheckpointedChain(
        problem.step, problem.M, plan=plan, grad_steps=grad_steps, verify=verify, **options
    )

    expected = problem.results(lambda: problem.loop(steps()), passes)
    try:
        got = problem.results(lambda: problem.called(chain), passes)
    except ChainError as error:
        # Where steps cut off all that they use, the loop's result has no gradient; a chain says so.
        if "cuts every gradient off" not in str(error) or problem.reached:
            raise
        return

    assert len(got) == len(expected)
    assert all(map(same, got, expected))


def test_every_module_of_torch_nn_is_drawn_or_left_out_for_a_reason():
    assert not unexplained()


@pytest.mark.parametrize("first", KINDS)
def test_a_step_of_any_layer_equals_the_plain_loop(first):
    assert_draws_are_right(range(2), first)


# A few draws a test, so that they are shared out among processes and each failure has a name.
@pytest.mark.parametrize("seeds", [range(at, at + 20) for at in range(0, 300, 20)], ids=str)
def test_a_step_drawn_at_random_equals_the_plain_loop(seeds):
    assert_draws_are_right(seeds)


def assert_draws_are_right(seeds, first=None):
    draws = {seed: draw(seed, first) for seed in seeds}
    found = {seed: outcome(drawn) for seed, drawn in draws.items()}

    failures = {seed: (draws[seed], came) for seed, came in found.items() if came.failed}
    assert not failures, grouped(failures)
    # In the plain loop too, torch refuses some steps that change their state in place.
    assert not [
        (draws[seed], came)
        for seed, came in found.items()
        if came.kind == "void" and came.text != UNREPEATED and draws[seed].fault != "in place"
    ]
