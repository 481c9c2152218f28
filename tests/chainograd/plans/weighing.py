"""Plans weighed one action at a time and searched one by one: slow, and easy to trust."""

from chainograd import Plan, StepCost, binomial, keep_last
from chainograd.plans.plan import Advance, Backprop, Drop, Keep, Load, Record
from chainograd.plans.planners import keep_graphs

FREE = StepCost(0, 0, 0, 0, 0, 0, 0, 0.0, 0.0)


def moments(plan: Plan):
    """Yield what is held during each action: the action, nodes, graphs, bytes."""
    costs = plan.costs or (FREE,) * plan.num_steps
    kept: set[int] = set()
    first: set[int] = set()  # steps that the forward pass recorded
    recorded: set[int] = set()  # steps whose graph is there
    state = node_bytes = graphs = graph_bytes = gradient_bytes = result_bytes = given = 0
    for position, action in enumerate((*plan.forward, *plan.backward)):
        i = action.index
        backward = position >= len(plan.forward)
        # The state between two actions is alive too, unless it is a node or the result.
        loose = 0 if state == plan.num_steps else beside(costs[state], state in kept)
        extra = 0
        match action:
            case Keep():
                kept.add(i)
                node_bytes, loose = node_bytes + costs[i].kept_bytes, beside(costs[i], True)
            case Drop():
                kept.remove(i)
                node_bytes, loose = node_bytes - costs[i].kept_bytes, 0
            case Load():
                state, loose = i, beside(costs[i], True)
            case Advance():
                extra, state = costs[i].advance_bytes, i + 1
            case Record():
                extra, state = costs[i].record_bytes, i + 1
            case Backprop() if i in recorded:  # else no gradient passes it
                first_bytes = None if gradient_bytes else costs[i].first_backprop_bytes
                extra = costs[i].backprop_bytes if first_bytes is None else first_bytes
                extra -= costs[i].graph_bytes
                loose = 0 if i in first else beside(costs[i], i in kept)
                if i < plan.num_steps - 1:  # the state it gave, which is no node any more
                    loose += costs[i].result_bytes
        # Once the result is there it stays, and on the way back there is its cotangent.
        cotangent = costs[i].result_bytes if backward else 0
        cotangent += given
        if backward and costs[i].stored_bytes is not None:
            loose += costs[i].node_bytes  # the next node is on its way back already
        held = node_bytes + graph_bytes + loose + gradient_bytes + result_bytes + cotangent
        yield action, len(kept), graphs + isinstance(action, Record), held + extra
        if isinstance(action, Record):
            recorded.add(i)
            graphs, graph_bytes = graphs + 1, graph_bytes + costs[i].graph_bytes
            if not backward:  # the state that enters a graph is on the device as long as that
                first.add(i)
                graph_bytes += beside(costs[i], True)
        elif isinstance(action, Backprop) and i in recorded:
            recorded.remove(i)
            graphs, graph_bytes = graphs - 1, graph_bytes - costs[i].graph_bytes
            graph_bytes -= beside(costs[i], True) if i in first else 0
            gradient_bytes = costs[i].gradient_bytes
            given = costs[-1].result_bytes  # the caller's cotangent stays to the end
        if state == plan.num_steps:
            result_bytes = costs[-1].result_bytes


def beside(cost, kept):
    """Return what the current state takes besides the kept nodes, which may hold it."""
    return 0 if kept and cost.stored_bytes is None else cost.node_bytes


def peak(plan):
    """Return the most bytes that are held at once."""
    return max(held for *_, held in moments(plan))


def fastest(limit, costs, as_run=lambda plan: plan):
    """Return the fastest of all plans with every node and some graphs, and of all binomial ones."""
    M = len(costs)

    def saved(i):
        return costs[i].forward_seconds / max(costs[i].graph_bytes, 1), i

    dear = [*sorted(range(M - 1), key=saved), M - 1]
    families = [
        *[largest(limit, costs, as_run, [make(k) for k in range(1, M + 1)]) for make in (
            lambda k: keep_last(M, k), lambda k: keep_graphs(M, dear[M - k :])
        )],
        *[weighed(costs, as_run, binomial(M, slots=s)) for s in range(1, M + 1)],
    ]  # fmt: skip
    fitting = [plan for plan in families if plan is not None and peak(plan) <= limit]
    return min(fitting, key=lambda plan: (plan.seconds, peak(plan)), default=None)


def weighed(costs, as_run, plan):
    """Return the plan as a chain carries it out, with costs."""
    return as_run(plan).with_costs(costs)


def largest(limit, costs, as_run, plans):
    """Return the last of growing plans that a search by halves finds to fit, or None."""
    best, low, high = None, 0, len(plans) - 1
    while low <= high:
        middle = (low + high) // 2
        plan = weighed(costs, as_run, plans[middle])
        if peak(plan) <= limit:
            best, low = plan, middle + 1
        else:
            high = middle - 1
    return best
