"""What fits on a card, and what it costs: plans for diffusion models of today.

Run ``python benchmarks/what_fits.py``. One step of each model is measured under ``FakeTensorMode``:
shapes are real, numbers are not, and nothing is downloaded. Then a budget of the card's bytes
beside the weights finds a plan, for each number of steps. Work is counted in floating-point
operations against the plain loop's, and host bytes are those of a chain with ``store="host"``.
Optimizers, losses and decoders come on top; `RESERVE` is left for what the driver and the
allocator take.

Any class of diffusers can be asked about before renting a machine:
``python benchmarks/what_fits.py --model diffusers:SanaTransformer2DModel --config config.json
--state 1,32,32,32 --text-tokens 300 --out sana.json``.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from measured import environment, note, results, save
from model_options import add_model_options, chosen
from models_of_today import build, weight_bytes
from published_models import MODELS, Model, Training
from torch._subclasses.fake_tensor import FakeTensorMode

from chainograd import CheckpointedChain, StepCost, within
from chainograd.plans.planners import PlanName, resolve

GIB = 2**30
CARDS = (24, 48, 80, 141)  # GB as sold
RESERVE = GIB  # for the driver's context and the allocator's gaps
STEPS = (20, 50)
NAMED: tuple[PlanName, ...] = (
    "graph", "nodes", "blocks", "skeleton", "nodes+attention", "blocks+attention",
    "skeleton+attention",
)  # fmt: skip
AWAY = "./host"  # stands for the host's memory: fakes are on the CPU, which is the host itself


def costs_of(model: Model, training: Training) -> tuple[StepCost, int]:
    """Return what one step costs, and the bytes of the weights."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        built = build(model, training)
        x = built.x.requires_grad_()  # as the states of all steps but the first
        chain = CheckpointedChain(built.step, 1, store=AWAY)
        cost, *_ = chain.measure(x, *built.conditions)
        return cost, weight_bytes(built.net)


def named_plans(cost: StepCost, M: int) -> list[dict[str, Any]]:
    """Return what each named plan takes, as rows."""
    costs = (cost,) * M
    base, plain = (resolve(name, M).with_costs(costs) for name in ("nodes", "graph"))
    rows = []
    for name in NAMED:
        plan = resolve(name, M).with_costs(costs)
        rows.append(
            {
                "plan": name,
                "M": M,
                "device_bytes": plan.peak_bytes,
                "host_bytes": plan.stored_bytes,
                "flops": plan.flops,
                "of_nodes_bytes": plan.peak_bytes / base.peak_bytes,
                "of_nodes_flops": plan.flops / base.flops,
                "of_plain_flops": plan.flops / plain.flops,
            }
        )
    return rows


def on_card(cost: StepCost, M: int, card: int, weights: int) -> dict[str, Any]:
    """Return the plan for a card, as a row; without a plan if the model does not fit."""
    costs = (cost,) * M
    budget = card * 10**9 - weights - RESERVE
    row: dict[str, Any] = {"M": M, "card": card, "budget": budget, "levels": None}
    if budget <= 0:
        return row
    try:
        plan = within(budget, costs)
    except ValueError:
        return row
    plain = resolve("graph", M).with_costs(costs)
    return {
        **row,
        "levels": dict(Counter(plan.levels)),
        "device_bytes": plan.peak_bytes,
        "host_bytes": plan.stored_bytes,
        "evaluations": plan.evaluations,
        "of_plain_flops": plan.flops / plain.flops,
        "of_plain_bytes": plan.peak_bytes / plain.peak_bytes,
    }


def answers(model: Model, training: Training) -> dict[str, Any]:
    """Return everything about one model."""
    cost, weights = costs_of(model, training)
    return {
        "model": model.name,
        "resolution": model.resolution,
        "training": training,
        "weight_bytes": weights,
        "forward_flops": cost.forward_flops,
        "backward_flops": cost.backward_flops,
        "graph_bytes": cost.graph_bytes,
        "node_bytes": cost.node_bytes,
        "blocks": len(cost.blocks),
        "named": [row for M in STEPS for row in named_plans(cost, M)],
        "cards": [on_card(cost, M, card, weights) for M in STEPS for card in CARDS],
    }


def known(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the answers that are in a file already; new ones replace them."""
    if not out.exists():
        return {}
    content = json.loads(out.read_text())
    return {
        (row["model"], row["training"]): {"environment": content["environment"], **row}
        for row in content["models"]
    }


def in_order(content: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return answers in the order of `MODELS`."""
    names = [*MODELS]
    place = {key: names.index(key[0]) if key[0] in names else len(names) for key in content}
    return [content[key] for key in sorted(content, key=lambda key: (place[key], key[1]))]


def table(content: dict[str, Any]) -> str:
    """Return Markdown tables: plans for cards, and named plans against the default one."""
    rows = content["models"]
    heading = f"At M = {STEPS[0]}, each named plan against the default one:"
    return f"{cards_table(rows)}\n\n{heading}\n\n{named_table(rows, STEPS[0])}"


def cards_table(content: list[dict[str, Any]]) -> str:
    """Return a Markdown table: a row for each model, training and number of steps."""
    heads = ["model", "training", "M", "weights, GiB", *(f"{card} GB" for card in CARDS)]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for answer in content:
        for M in STEPS:
            cells = [answer["model"], answer["training"], str(M)]
            cells.append(f"{answer['weight_bytes'] / GIB:.1f}")
            cells += [_cell(row) for row in answer["cards"] if row["M"] == M]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    if row["levels"] is None:
        return "no"
    levels = ", ".join(f"{count} {name}" for name, count in row["levels"].items())
    return f"{row['of_plain_flops']:.2f}x, host {row['host_bytes'] / GIB:.0f} GiB: {levels}"


def named_table(content: list[dict[str, Any]], M: int) -> str:
    """Return a Markdown table: named plans against the chain's default, in bytes and work."""
    lines = ["| model | training | plan | GiB | of `nodes` | work, of `nodes` | host, GiB |"]
    lines.append("|---|---|---|" + "---:|" * 4)
    for answer in content:
        for row in answer["named"]:
            if row["M"] == M:
                lines.append(
                    f"| {answer['model']} | {answer['training']} | {row['plan']} "
                    f"| {row['device_bytes'] / GIB:.2f} | {row['of_nodes_bytes']:.3f} "
                    f"| {row['of_nodes_flops']:.3f} | {row['host_bytes'] / GIB:.1f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_options(parser)
    options = parser.parse_args()
    out = options.out or results("what_fits", "fake")
    content = known(out)
    for model in chosen(options):
        answer = answers(model, options.training)
        content[model.name, options.training] = {**answer, "environment": environment("fake")}
        note(f"{model.name}, {options.training}")
        save(out, "fake", {"models": in_order(content)})
    print(table({"models": in_order(content)}))
    print(f"\nwrote {out}")


if __name__ == "__main__":
    main()
