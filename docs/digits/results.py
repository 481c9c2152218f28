"""The paper's figures beside the shipped runs' figures, from the files that the commands wrote.

``python docs/digits/results.py FOLDER`` prints the tables of a published run. The documentation
makes them, and the pictures, from the runs that are shipped.
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
from hdiscovery.directions.groups import from_tables

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHIPPED = ROOT / "applications" / "hdiscovery" / "found" / "digits"
SHIPPED_20 = SHIPPED.with_name("digits-20")
WINDOW = 25  # steps that a drawn mean is over
LN_2 = math.log(2)
CLAIMS = (
    "sampling steps M",
    "RCA",
    "RCA, of shifts of S/10 or more",
    "RCA by a fresh reconstructor",
    "L_G, mean over the last half of the steps",
    "FID of raw samples",
    "FID of shifted samples",
    "share of directions that meet the three conditions of the MOS",
)


def read(folder: Path) -> dict[str, Any]:
    """Return the JSON files of a published run by name, and its records."""
    names = ("config", "evaluation", "ranking", "labels")
    lines = (folder / "records.jsonl").read_text().splitlines()
    found = _present(folder, names)
    found["config"] = from_tables(found["config"], str(folder / "config.json"))
    return {**found, "records": [json.loads(line) for line in lines]}


def read_beside(folder: Path = SHIPPED) -> dict[str, Any]:
    """Return what was measured of a shipped run and is not in its folder."""
    of_both = json.loads((HERE / "commands.json").read_text())
    ran = {"commands": of_both[folder.name]} if folder.name in of_both else {}
    names = ("judgement", "properties", "ablation") if folder.name == SHIPPED.name else ()
    return ran | _present(HERE, names)


def paper_and_here(*runs: dict[str, Any]) -> str:
    """Return the paper's figures for MNIST beside the measured ones, as a Markdown table."""
    columns = [("20", "0.77", "", "", "near ln 2 = 0.693", "", "", "0.52, by 16 people")]
    columns += [tuple(cell or "not measured" for cell in claims(run)) for run in runs]
    lines = ["| | paper |" + " here |" * len(runs), "|---|---|" + "---|" * len(runs)]
    lines += [f"| {' | '.join(row)} |" for row in zip(CLAIMS, *columns, strict=True)]
    return "\n".join(lines)


def claims(run: dict[str, Any]) -> tuple[str | None, ...]:
    """Return the measured value of each of the CLAIMS; None if it was not measured."""
    learnt = run["evaluation"]["subjects"]["learnt"]
    rca, fresh, fid = (learnt.get(name) for name in ("rca", "fresh", "fid"))
    judged = run.get("judgement")
    return (
        str(run["config"]["M"]),
        rca and f"{_share(rca)} of {rca['pairs']:,} pairs",
        rca and f"{rca['rca_large_shifts']:.2f}",
        fresh and _share(fresh["test"]),
        _second_half(run),
        fid and _raw(fid),
        fid and _shifted(fid),
        judged and f"{fmean(judged['marks'].values()):.2f}, by one person",
    )


def named(run: dict[str, Any]) -> str:
    """Return the named directions, best first, with their measures."""
    learnt, S = run["evaluation"]["subjects"]["learnt"], run["config"]["S"]
    if "probes" not in learnt or "labels" not in run:
        return "not measured"
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
    """Return the fields in which the run's config differs from the paper's preset."""
    from hdiscovery.directions.recipe import from_preset

    paper = from_preset("MNIST32-400-20-32-5").leaves()
    lines = ["| field | paper | here |", "|---|---:|---:|"]
    for name, value in run["config"].items():
        if value != paper[name]:
            lines.append(f"| `{name}` | {paper[name]} | {value} |")
    return "\n".join(lines)


def commands(run: dict[str, Any]) -> str:
    """Return the commands and the minutes that each took."""
    if "commands" not in run:
        return "not measured"
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
    from hdiscovery.evaluation import accuracy_curves

    accuracy_curves.draw_accuracy(run["evaluation"], path)


def write(folder: Path, out: Path) -> None:
    """Write the tables and pictures that the page includes."""
    run, run_20 = (read(shipped) | read_beside(shipped) for shipped in (folder, SHIPPED_20))
    tables = {make.__name__: make(run) for make in TABLES}
    tables |= {f"{make.__name__}_20": make(run_20) for make in TABLES_20}
    tables["paper_and_here"] = paper_and_here(run_20, run)
    for name, text in tables.items():
        (out / f"digits_{name}.md").write_text(text + "\n")
    for each, end in ((run, ""), (run_20, "_20")):
        draw_losses(each["records"], out / f"digits_losses{end}.png")
        draw_accuracy(each, out / f"digits_rca{end}.png")


def _present(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    files = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}


def _share(accuracy: dict[str, Any]) -> str:
    return f"{accuracy['rca']:.3f} ± {accuracy['standard_error']:.3f}"


def _second_half(run: dict[str, Any]) -> str:
    values = [r["L_G"] for r in run["records"]]
    mean = fmean(values[len(values) // 2 :])
    return f"{mean:.3f} ({mean - LN_2:+.3f})"


def _raw(fid: dict[str, Any]) -> str:
    return f"{fid['raw']:.3g}, {fid['images']:,} against {fid['real_images']:,} ({fid['real']})"


def _shifted(fid: dict[str, Any]) -> str:
    return f"{fid['shifted']:.3g}, {fid['shifted'] / fid['raw']:.2f} times the FID of raw samples"


TABLES = (paper_and_here, named, settings, commands, *compared.TABLES)
TABLES_20 = (commands, named)

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED
    ours = folder.resolve() in (SHIPPED, SHIPPED_20)
    content = read(folder) | (read_beside(folder.resolve()) if ours else {})
    print("\n\n".join(make(content) for make in TABLES))
