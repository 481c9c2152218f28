"""Tables of what the shipped run is compared with: baselines, an ablation, kinds of directions."""

from __future__ import annotations

from typing import Any


def baselines(run: dict[str, Any]) -> str:
    """Return the run's directions and others that nobody learnt, by the same measures."""
    from hdiscovery.ablation import study

    subjects = run["evaluation"]["subjects"]
    return study.table({name: {"subjects": {"learnt": of}} for name, of in subjects.items()})


def ablation(run: dict[str, Any]) -> str:
    """Return the paper's Fig. 3 as a table: the whole recipe, and l1 in place of D."""
    from hdiscovery.ablation import study

    return study.table(run["ablation"]["reports"]) if "ablation" in run else "not measured"


def kinds(run: dict[str, Any]) -> str:
    """Return how alike direct, mean and global directions are: the paper's Fig. 9 in words."""
    from hdiscovery.editing.report import sentences

    if "properties" not in run:
        return "not measured"
    return "\n".join(f"- {sentence}" for sentence in sentences(run["properties"]))


TABLES = (baselines, ablation, kinds)
