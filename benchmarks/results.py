"""The tables of docs/results.md, from the JSON files below benchmarks/results: no number there is written by hand.

    python benchmarks/results.py write            renew every marked region of docs/results.md
    python benchmarks/results.py check            exit code 1 when a region does not say what the files say
    python benchmarks/results.py keep RUN NAME    store a run's report, or the diversity.json of a folder, as
                                                  benchmarks/results/kept/NAME.json
    python benchmarks/results.py pair FOLDER …    measure the paired differences of benchmarks' folders anew, from the samples
                                                  that are kept there

A region begins with `<!-- runs: NAME … -->`, `<!-- ood: NAME -->`, `<!-- bench: FOLDER -->`, `<!-- overview: FOLDER … -->`,
`<!-- diversity: NAME … -->`, `<!-- uncertainty: NAME … -->`, `<!-- tuning: NAME -->` or `<!-- decomposition -->` and ends with
`<!-- end -->`.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from sve_cli.benchmark import BenchRow, BenchTable, build_table, higher_is_better, load_cells, load_grids
from sve_cli.diversity import RankCorrelation
from sve_cli.errors import SveError
from sve_cli.render import markdown
from sve_cli.render.bench import sections, verdict
from sve_cli.render.diversity import UNCERTAINTIES, format_correlation, format_pair
from sve_cli.render.pareto import front
from sve_cli.render.tables import MISSING, Table
from sve_cli.report import Report
from sve_cli.rundir import RunDir, read_json, write_json, write_text
from sve_cli.workflows.bench_cells import Study, shown_command
from sve_cli.workflows.bench_costs import read_costs
from sve_cli.workflows.bench_paired import paired_differences, read_paired

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
PAGE = ROOT.parent / "docs" / "results.md"
REGION = re.compile(
    r"(<!-- (runs|ood|bench|overview|diversity|uncertainty|tuning|decomposition)(?:: ([^>]*))? -->\n).*?(<!-- end -->)", re.DOTALL
)
OVERVIEW = ("accuracy", "nll", "ece_top1_w15", "brier", "ood_auroc_entropy", "temperature.nll", "temperature.ece_top1_w15")
OOD = "ood"
HEADS = ("accuracy %", "NLL", "ECE %", "Brier", "OOD AUROC % (entropy)", "NLL, temperature", "ECE %, temperature")
COSTS = {"train_time": "Training time", "latency_1": "Latency, batch 1", "latency_32": "Latency, batch 32"}
VERDICTS = {
    **dict(zip((*OVERVIEW[:4], OOD), HEADS[:5], strict=True)),
    "temperature.nll": "NLL, row scaled", "temperature.ece_top1_w15": "ECE %, row scaled",
    "both_scaled.nll": "NLL, both scaled", "both_scaled.ece_top1_w15": "ECE %, both scaled",
}  # fmt: skip


def keep(folder: str, name: str) -> Path:
    """Store what a run's newest report says, or what `sve diversity` found, without folders of this machine."""
    path = RESULTS / "kept" / f"{name}.json"
    if (found := Path(folder) / "diversity.json").is_file():
        document = read_json(found)
        source = document["provenance"]
        source |= {"command": shown_command(source["command"].split()), "run": Path(source["run"]).name}
        write_json(path, document)
        return path
    run = RunDir.open(Path(folder))
    report = Report.load(run.evaluations()[0] / "report.json")
    command = shown_command(str(read_json(run.path / "recipe.lock.json")["command"]).split())
    document = {
        "schema": "sve-kept-run/1", "command": command, "method": report.provenance["method"],
        "members": report.provenance["members"], "seed": report.provenance["seed"], "n": report.n,
        "values": {k: {"value": v.value, "low": v.low, "high": v.high} for k, v in report.addresses().items()},
        "parameters": report.parameters, "training": report.provenance["training"],
        "environment": report.provenance["environment"], "notes": report.provenance["notes"],
    }  # fmt: skip
    write_json(path, document)
    return path


def number(values: dict[str, Any], key: str, scale: float, digits: int) -> str:
    """A value with its interval."""
    found = values.get(key)
    if found is None:
        return ""
    text = f"{scale * found['value']:.{digits}f}"
    return text if found["low"] is None else f"{text} ({scale * found['low']:.{digits}f}-{scale * found['high']:.{digits}f})"


def runs_region(names: str) -> str:
    """One row per kept run and one for its temperature-scaled ensemble, and the commands."""
    rows, commands = [], []
    for name in names.split():
        kept = json.loads((RESULTS / "kept" / f"{name}.json").read_text(encoding="utf-8"))
        values = kept["values"]
        ece = next(k for k in values if k.startswith("ece_top1_w"))
        ood = [k for k in values if k.startswith("ood.") and k.endswith(".entropy.auroc_ood")]
        minutes = f"{kept['training']['seconds'] / 60:.1f}"
        for prefix, title in (("", f"M = {kept['members']}"), ("temperature.", "temperature"), ("before.", "before training")):
            if f"{prefix}nll" not in values:
                continue
            sets = "; ".join(f"{k.split('.')[1]} {number(values, k, 100, 2)}" for k in ood) if not prefix else ""
            rows.append([f"{kept['method']}, {title}", number(values, f"{prefix}accuracy", 100, 2),
                         number(values, f"{prefix}nll", 1, 4), number(values, prefix + ece, 100, 2),
                         number(values, f"{prefix}brier", 1, 4), sets, "" if prefix else minutes])  # fmt: skip
        commands.append(kept["command"])
    heads = ["run", "accuracy %", "NLL", "ECE %", "Brier", "OOD AUROC % (entropy)", "training min"]
    files = ", ".join(f"`benchmarks/results/kept/{name}.json`" for name in names.split())
    return f"{markdown.table(Table(heads, rows))}\n\nFrom {files}:\n\n```\n" + "\n".join(commands) + "\n```\n"


def pair(folder: str) -> Path:
    """Measure the paired differences of a benchmark's folder anew, with its reference, from what is kept of its samples.

    Raises:
        SveError: no two rows have samples there, or some of them cannot be read.
    """
    out = RESULTS / folder
    reference = (read_paired(out) or {}).get("reference")
    study = Study("", (), (), 0, {}, (), out, runs=out / "none", reference=reference)
    found = paired_differences(study, load_cells(out))
    if found is None:
        raise SveError(f"'{out}' has no samples of two rows.", "Run sve bench where the runs are.")
    if unread := found.pop("unread"):
        raise SveError(" ".join(unread), "Run sve bench where the runs are.")
    path = out / "paired.json"
    write_json(path, found)
    return path


def ood_region(name: str) -> str:
    """AUROC of every OOD set and score of one kept run."""
    values = json.loads((RESULTS / "kept" / f"{name}.json").read_text(encoding="utf-8"))["values"]
    found = [k.split(".") for k in values if k.startswith("ood.") and k.endswith(".auroc_ood")]
    scores = list(dict.fromkeys(parts[2] for parts in found))
    rows = [[s, *(number(values, f"ood.{s}.{k}.auroc_ood", 100, 1) for k in scores)] for s in dict.fromkeys(p[1] for p in found)]
    heads = ["OOD AUROC %", *(k.replace("_", " ") for k in scores)]
    return f"{markdown.table(Table(heads, rows))}\n"


def diversity_region(names: str) -> str:
    """How unlike the members of kept runs are, and what the rank correlations of uncertainty with distance are."""
    kept = {name: read_json(RESULTS / "kept" / f"{name}.json") for name in names.split()}
    keys = list(dict.fromkeys(key for found in kept.values() for key in found["pairs"]))
    titles = {key: found["pairs"][key]["title"] for found in kept.values() for key in found["pairs"]}
    heads = ["method", *(f"{titles[k]} %" if k == "disagreement" else titles[k] for k in keys)]
    rows, distances = [], []
    for found in kept.values():
        method = found["title"].removeprefix("Diversity of ").partition(",")[0]
        means = {key: measure["mean"] for key, measure in found["pairs"].items()}
        rows.append([method, *(MISSING if means.get(k) is None else format_pair(k, means[k]) for k in keys)])
        for line in found["distance"]:
            plain = {k: c | {"value": math.nan if c["value"] is None else c["value"]} for k, c in line["correlations"].items()}
            shown = {k: format_correlation(RankCorrelation(**c)) for k, c in plain.items()}
            distances.append([method, line["name"], f"{line['n']:,}", *(shown[k] for k in UNCERTAINTIES)])
    correlations = markdown.table(Table(["method", "samples", "number", *UNCERTAINTIES.values()], distances))
    commands = "\n".join(found["provenance"]["command"] for found in kept.values())
    files = ", ".join(f"`benchmarks/results/kept/{name}.json`" for name in kept)
    text = (
        "Means over pairs of members, and rank correlations of a sample's uncertainty with its distance to the training features:"
    )
    return f"{text}\n\n{markdown.table(Table(heads, rows))}\n\n{correlations}\n\nFrom {files}:\n\n```\n{commands}\n```\n"


def uncertainty_region(names: str) -> str:
    """Mean uncertainties of kept runs on the test set, total and by kind, for runs that differ in their training rows."""
    kept = [read_json(RESULTS / "kept" / f"{name}.json") for name in names.split()]
    shown = {"accuracy": (100.0, 1), "nll": (1.0, 3), "entropy_mean": (1.0, 3), "expected_entropy_mean": (1.0, 3),
             "mutual_information_mean": (1.0, 4), "disagreement": (100.0, 1)}  # fmt: skip
    heads = ["method", "training rows", "steps", "accuracy %", "NLL", "entropy, nats", "expected entropy", "mutual information",
             "disagreement %"]  # fmt: skip
    rows = []
    for found in kept:
        limit = next((note.split()[1] for note in found["notes"] if note.startswith("data.limit:")), "all")
        numbers = [number(found["values"], key, *how) for key, how in shown.items()]
        rows.append([found["method"], limit, str(found["training"]["steps"]), *numbers])
    commands = "\n".join(found["command"] for found in kept)
    files = ", ".join(f"`benchmarks/results/kept/{name}.json`" for name in names.split())
    return f"{markdown.table(Table(heads, rows))}\n\nFrom {files}:\n\n```\n{commands}\n```\n"


def tuning_region(name: str) -> str:
    """Validation NLL of every variant of one tuning file, best first."""
    kept = json.loads((RESULTS / "tuning" / f"{name}.json").read_text(encoding="utf-8"))
    found = sorted(kept["variants"], key=lambda v: v["validation_nll"])
    rows = [[v["overrides"], f"{v['validation_nll']:.4f}"] for v in found]
    file = f"benchmarks/results/tuning/{name}.json"
    return f"{markdown.table(Table(['variant', 'validation NLL'], rows))}\n\nFrom `{file}`:\n\n```\n{kept['command']}\n```\n"


def decomposition_region(nothing: str) -> str:
    """Ratios to torch's float32 SVD from decomposition.json."""
    kept = json.loads((RESULTS / "decomposition.json").read_text(encoding="utf-8"))
    kinds = ("decompose_weight", "verify")
    rows = [[" x ".join(map(str, r["shape"])), *(f"{r['ratio'][k]:.2f}" for k in kinds)] for r in kept["rows"]]
    settings = f"{kept['threads']} threads, {kept['repeats']} alternating repeats, torch {kept['torch']}."
    return f"{markdown.table(Table(['shape', 'decompose', 'verify'], rows))}\n\n{settings}\n"


def bench_table(folder: str) -> BenchTable:
    """The table of one benchmark's folder."""
    path = RESULTS / folder
    return build_table(load_cells(path), load_grids(path), read_costs(path), read_paired(path))


def bench_region(folder: str) -> str:
    """Every table of one benchmark, its notes and commands."""
    table = bench_table(folder)
    blocks = []
    for heading, content in sections(table):
        if content is not None:
            blocks.append(f"**{heading}**\n\n{markdown.table(content)}")
    blocks += [markdown.bullets(table.notes)] if table.notes else []
    commands = "\n".join(table.commands)
    blocks.append(f"From `benchmarks/results/{folder}/`, one file a run:\n\n```\n{commands}\n```")
    return "\n\n".join(blocks) + "\n"


def overview_region(folders: str) -> str:
    """The mean over tasks of every method that has a result on all of them."""
    tables = {name: bench_table(name) for name in folders.split()}
    rows: dict[str, list[BenchRow]] = {}
    for table in tables.values():
        for row in table.rows:
            rows.setdefault(row.name, []).append(row)
    lines = []
    for name, found in rows.items():
        if len(found) < len(tables):
            continue
        shared = [key for key in OVERVIEW if all(key in r.metrics for r in found)]  # a mean over fewer tasks would not compare
        means = {key: statistics.fmean(r.metrics[key].mean for r in found) for key in shared}
        extra = statistics.fmean(r.parameters["extra_fraction"] for r in found)
        seeds = f"{min(len(r.seeds) for r in found)}"
        shown = [_mean(key, means[key]) if key in means else MISSING for key in OVERVIEW]
        lines.append([name, seeds, *shown, f"{100 * extra:.2f}"])
    arrows = ["↑" if higher_is_better(k) else "↓" for k in OVERVIEW]
    heads = ["method", "seeds", *(f"{h} {a}" for h, a in zip(HEADS, arrows, strict=True)), "extra parameters %"]
    means_table = markdown.table(Table(heads, lines))
    paired = [table.paired for table in tables.values() if table.paired]
    everywhere = {name for name, found in rows.items() if len(found) == len(tables)}
    costs = _costs({name: found for name, found in rows.items() if name in everywhere})
    return f"Mean over {', '.join(tables)}.\n\n{means_table}\n\n{costs}{_verdicts(paired, everywhere)}"


def _costs(rows: dict[str, list[BenchRow]]) -> str:
    """Mean costs over the tasks, relative to `single`, and the rows that no other one beats in cost and NLL."""
    measured = {name: found for name, found in rows.items() if all(key in r.costs for r in found for key in COSTS)}
    means = {name: [statistics.fmean(r.costs[key] for r in found) for key in COSTS] for name, found in measured.items()}
    if len(means) < 2:
        return ""
    lines = [[name, *(f"{value:.2f}" for value in found)] for name, found in means.items()]
    table = markdown.table(Table(["method", *(f"{title}, × single" for title in COSTS.values())], lines))
    nll = {name: statistics.fmean(r.metrics["nll"].mean for r in found) for name, found in measured.items()}
    compared = {title: {name: values[i] for name, values in means.items()} for i, title in enumerate(COSTS.values())}
    compared["Extra parameters"] = {n: statistics.fmean(r.parameters["extra_fraction"] for r in f) for n, f in measured.items()}
    fronts = [
        f"- {title}: {', '.join(f'`{name}`' for _, _, name in front([(cost, nll[n], n) for n, cost in costs.items()]))}"
        for title, costs in compared.items()
    ]
    said = "Methods that no other one beats in both NLL and\n\n" + "\n".join(fronts)
    return f"Costs, mean over the same tasks:\n\n{table}\n\n{said}\n\n"


def _mean(key: str, mean: float) -> str:
    return f"{100 * mean:.2f}" if any(part in key for part in ("accuracy", "ece", "auroc")) else f"{mean:.4f}"


def _verdicts(paired: list[dict[str, Any]], methods: set[str]) -> str:
    """On how many tasks each of the methods is better, level and worse than the reference, by the paired intervals."""
    references = {p["reference"] for p in paired}
    if len(references) != 1:
        raise SveError(f"The tables of the overview have the references {sorted(references)}.", "Renew them with one --reference.")
    counts: dict[str, dict[str, list[int]]] = {}
    for name, row in (item for p in paired for item in p["rows"].items()):
        for key, d in row["differences"].items():
            what = OOD if key.startswith("ood.") else key
            counts.setdefault(name, {}).setdefault(what, [0, 0, 0])[("better", "tie", "worse").index(verdict(d))] += 1
    lines = [
        [name, *(" / ".join(map(str, found.get(key, []))) for key in VERDICTS)] for name, found in counts.items() if name in methods
    ]
    [reference] = references
    text = (
        f"Tasks (for OOD: sets) on which a method is better / level / worse than `{reference}`: beyond the paired 95 % interval, "
        "with the same sign in every seed. Scaled: with its own temperature; where only the row is scaled, the reference has none:"
    )
    return f"{text}\n\n{markdown.table(Table(['method', *VERDICTS.values()], lines))}\n"


def renewed(text: str) -> str:
    """The page with every region made anew.

    Raises:
        SveError: a file that a region names is missing or damaged.
    """
    made = {"runs": runs_region, "ood": ood_region, "bench": bench_region, "overview": overview_region}
    made |= {
        "diversity": diversity_region,
        "uncertainty": uncertainty_region,
        "tuning": tuning_region,
        "decomposition": decomposition_region,
    }
    return REGION.sub(lambda m: f"{m.group(1)}\n{made[m.group(2)]((m.group(3) or '').strip())}\n{m.group(4)}", text)


def main(words: list[str]) -> int:
    """See the module's docstring."""
    text = PAGE.read_text(encoding="utf-8")
    if words[:1] == ["keep"] and len(words) == 3:
        sys.stdout.write(f"{keep(words[1], words[2])}\n")
        return 0
    if words[:1] == ["pair"] and len(words) > 1:
        for folder in words[1:]:
            sys.stdout.write(f"{pair(folder)}\n")
        return 0
    if words == ["write"]:
        write_text(PAGE, renewed(text))
        return 0
    if words == ["check"]:
        return 0 if renewed(text) == text else 1
    raise SveError("This is not understood.", "Write: python benchmarks/results.py write, check, keep RUN NAME, or pair FOLDER")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
