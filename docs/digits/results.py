"""The paper's figures beside those of the shipped run, from the files that its commands wrote.

``python docs/digits/results.py FOLDER`` prints the tables of a published run. The documentation
makes them, and the pictures, from the run that is shipped.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import compared

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHIPPED = ROOT / "applications" / "hdiscovery" / "found" / "digits"
WINDOW = 25  # steps that a drawn mean is over
LN_2 = math.log(2)


def read(folder: Path) -> dict[str, Any]:
    """Return the JSON files of a published run by name, and its records."""
    files = {name: folder / f"{name}.json"
             for name in ("config", "evaluation", "ranking", "labels")}  # fmt: skip
    beside = ("judgement", "commands", "properties", "ablation")
    files |= {name: HERE / f"{name}.json" for name in beside}
    found = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    lines = (folder / "records.jsonl").read_text().splitlines()
    return {**found, "records": [json.loads(line) for line in lines]}


def paper_and_here(run: dict[str, Any]) -> str:
    """Return the paper's claims for MNIST beside what was measured, as a Markdown table."""
    learnt = run["evaluation"]["subjects"]["learnt"]
    rca, fresh, fid = (learnt.get(name) for name in ("rca", "fresh", "fid"))
    judged = run.get("judgement")
    rows = [
        ("sampling steps M", "20", str(run["config"]["M"])),
        ("RCA", "0.77", rca and f"{_share(rca)} of {rca['pairs']:,} pairs"),
        ("RCA, of shifts of S/10 or more", "", rca and f"{rca['rca_large_shifts']:.2f}"),
        ("RCA by a fresh reconstructor", "", fresh and _share(fresh["test"])),
        ("L_G, mean over the last half of the steps", "near ln 2 = 0.693", _second_half(run)),
        ("FID of raw samples", "", fid and _raw(fid)),
        ("FID of shifted samples", "", fid and _shifted(fid)),
        ("share of directions that meet the three conditions of the MOS", "0.52, of 16 people",
         judged and f"{fmean(judged['marks'].values()):.2f}, of one reader"),
    ]  # fmt: skip
    lines = ["| | paper | here |", "|---|---|---|"]
    return "\n".join(
        [
            *lines,
            *(f"| {what} | {paper} | {here or 'not measured'} |" for what, paper, here in rows),
        ]
    )


def named(run: dict[str, Any]) -> str:
    """Return the directions that have a name, best first, with what backs it."""
    learnt, S = run["evaluation"]["subjects"]["learnt"], run["config"]["S"]
    probes, labels = learnt["probes"], run["labels"]
    names = probes["probes"]
    lines = [
        f"| k | name | score | accuracy | {' | '.join(names)} | other digit |",
        "|---:|---|" + "---:|" * (len(names) + 3),
    ]
    for row in run["ranking"]["directions"]:
        k = row["k"]
        if str(k) not in labels:
            continue
        changes = " | ".join(f"{2 * S * c:+.1f}" for c in probes["matrix"][k])
        other = probes["class_changes"]
        lines.append(
            f"| {k} | {labels[str(k)]} | {row['score']:.2f} | {row['accuracy']:.2f} | {changes} "
            f"| {f'{other[k]:.0%}' if other else ''} |"
        )
    return "\n".join(lines)


def settings(run: dict[str, Any]) -> str:
    """Return the fields of the run's config that are not the paper's preset's."""
    from hdiscovery.config import from_preset

    paper = from_preset("MNIST32-400-20-32-5")
    lines = ["| field | paper | here |", "|---|---:|---:|"]
    for name, value in run["config"].items():
        if value != getattr(paper, name):
            lines.append(f"| `{name}` | {getattr(paper, name)} | {value} |")
    return "\n".join(lines)


def commands(run: dict[str, Any]) -> str:
    """Return what was run, and what each took."""
    ran = run["commands"]
    facts = ", ".join(f"{name} {value}" for name, value in ran["environment"].items())
    lines = [f"| on {facts} | minutes |", "|---|---:|"]
    lines += [f"| `hdiscovery {words}` | {s / 60:.0f} |" for words, s in ran["seconds"].items()]
    return "\n".join(lines)


def draw_losses(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw Fig. 10: L_G over the steps, and D's accuracy below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    for axes, name, level, words in (
        (above, "L_G", LN_2, "ln 2"), (below, "accuracy_D", 0.5, "1/2"),
    ):  # fmt: skip
        seen = [(r["step"], r[name]) for r in records if name in r]
        steps, values = zip(*seen, strict=True) if seen else ((), ())
        means = [fmean(values[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(values))]
        axes.plot(steps, values, color="C0", alpha=0.25, lw=0.6)
        axes.plot(steps, means, color="C0", lw=1.4)
        axes.axhline(level, color="0.5", lw=0.8, ls="--")
        axes.annotate(words, (1, level), xycoords=("axes fraction", "data"), fontsize=8,
                      xytext=(4, 0), textcoords="offset points", va="center")  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
    above.axhspan(LN_2 - 0.05, LN_2 + 0.05, color="0.5", alpha=0.12, lw=0)
    above.set(ylabel="L_G", ylim=(0.55, 0.95))
    below.set(ylabel="accuracy of D", xlabel="training step", ylim=(0, 1))
    figure.savefig(path, dpi=130)


def draw_accuracy(run: dict[str, Any], path: Path) -> None:
    """Draw RCA against the size of the shift."""
    from hdiscovery.evaluate import accuracy_curves

    accuracy_curves.draw_accuracy(run["evaluation"], path)


def write(folder: Path, out: Path) -> None:
    """Write what the page includes."""
    run = read(folder)
    for make in TABLES:
        (out / f"digits_{make.__name__}.md").write_text(make(run) + "\n")
    draw_losses(run["records"], out / "digits_losses.png")
    draw_accuracy(run, out / "digits_rca.png")


def _share(accuracy: dict[str, Any]) -> str:
    return f"{accuracy['rca']:.3f} ± {accuracy['standard_error']:.3f}"


def _second_half(run: dict[str, Any]) -> str:
    values = [r["L_G"] for r in run["records"]]
    mean = fmean(values[len(values) // 2 :])
    return f"{mean:.3f} ({mean - LN_2:+.3f})"


def _raw(fid: dict[str, Any]) -> str:
    return f"{fid['raw']:.2f}, {fid['images']:,} against {fid['real_images']:,} ({fid['real']})"


def _shifted(fid: dict[str, Any]) -> str:
    return f"{fid['shifted']:.2f}, {fid['shifted'] / fid['raw']:.2f} times that of raw ones"


TABLES = (paper_and_here, named, settings, commands, *compared.TABLES)

if __name__ == "__main__":
    content = read(Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED)
    print("\n\n".join(make(content) for make in TABLES))
