"""The Markdown table of docs/results.md, from finished runs.

    python benchmarks/table.py RUN [RUN ...]

One row per run and one for its temperature-scaled ensemble; OOD AUROC by entropy for every OOD set of the newest report.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sve_cli.errors import SveError
from sve_cli.report import MetricValue, Report
from sve_cli.rundir import RunDir, read_json


def percent(metric: MetricValue, digits: int = 2) -> str:
    """A share in percent with its interval."""
    value = f"{100 * metric.value:.{digits}f}"
    if metric.low is None or metric.high is None:
        return value
    return f"{value} ({100 * metric.low:.{digits}f}-{100 * metric.high:.{digits}f})"


def row(report: Report, key: str, name: str, minutes: str) -> list[str]:
    """One row of the table."""
    metrics = report.row(key).metrics
    nll = metrics["nll"]
    interval = "" if nll.low is None or nll.high is None else f" ({nll.low:.3f}-{nll.high:.3f})"
    ece = next(value for metric, value in metrics.items() if metric.startswith("ece_top1_w"))
    ood = [f"{t.name} {100 * t.scores['entropy']['auroc_ood'].value:.2f}" for t in report.ood] if key == "ensemble" else []
    extra = {k: report.parameters.get(k, 0) for k in ("sigma", "bias", "norm", "backbone")}
    trained = f"{sum(extra.values()):,}" if key == "ensemble" else ""
    return [name, percent(metrics["accuracy"]), f"{nll.value:.4f}{interval}", percent(ece), f"{metrics['brier'].value:.4f}",
            ", ".join(ood), trained, minutes]  # fmt: skip


def main(folders: list[str]) -> int:
    """Print the table."""
    if not folders:
        raise SveError("No run is named.", "Write: python benchmarks/table.py RUN [RUN ...]")
    head = ["run", "accuracy %", "NLL", "ECE %", "Brier", "OOD AUROC % (entropy)", "trained besides heads", "training min"]
    lines = [head, ["---"] * len(head)]
    for folder in folders:
        run = RunDir.open(Path(folder))
        report = Report.load(run.evaluations()[0] / "report.json")
        method, members = report.provenance["method"], report.provenance["members"]
        minutes = f"{read_json(run.path / 'training.json')['seconds'] / 60:.1f}"
        for r in report.rows:
            if r.key == "ensemble":
                lines.append(row(report, r.key, f"{method}, M = {members}", minutes))
            elif r.key in ("temperature", "before"):
                lines.append(row(report, r.key, f"{method}, {r.key}", ""))
    sys.stdout.write("\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
