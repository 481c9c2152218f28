"""Tables that compare the shipped run with baselines, other kinds of directions, an ablation."""

from __future__ import annotations

from typing import Any


def baselines(run: dict[str, Any]) -> str:
    """Return the measures of the run's directions and of directions that were not learnt."""
    from hdiscovery.evaluation.report import table

    report = {name: of for name, of in run["evaluation"].items() if name != "losses"}
    return f"```text\n{table(report)}\n```"


def kinds(run: dict[str, Any]) -> str:
    """Return how similar direct, mean and global directions are: the paper's Fig. 9 in words."""
    from hdiscovery.editing.report import sentences

    if "properties" not in run:
        return "not measured"
    return "\n".join(f"- {sentence}" for sentence in sentences(run["properties"]))


def ablation(run: dict[str, Any]) -> str:
    """Return the paper's Fig. 3 as a table: the whole recipe, and l1 in place of D."""
    from hdiscovery.ablation import study

    return study.table(run["ablation"]["reports"]) if "ablation" in run else "not measured"


TABLES = (baselines, kinds, ablation)
