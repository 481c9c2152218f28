"""Carries a plan out on integers."""

from chainograd.plans import plan as plans


def run_on_paper(plan):
    state, kept, graphs, reversed_, evaluations = 0, set(), set(), [], 0
    for action in (*plan.forward, *plan.backward):
        match action:
            case plans.Keep(index):
                assert index == state
                kept.add(index)
            case plans.Load(index):
                assert index in kept
                state = index
            case plans.Drop(index):
                kept.remove(index)
            case plans.Advance(index) | plans.Record(index):
                assert index == state
                state, evaluations = index + 1, evaluations + 1
                if isinstance(action, plans.Record):
                    graphs.add(index)
            case plans.Backprop(index):
                graphs.remove(index)
                reversed_.append(index)
    assert not graphs
    assert not kept
    return reversed_, evaluations
