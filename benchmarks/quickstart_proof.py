"""Compare the quickstart with the same run from random weights: the method needs a pretrained basis.

    python benchmarks/quickstart_proof.py RUN_PRETRAINED RUN_RANDOM

Prints a table; exits 1 when random weights are not clearly worse (accuracy intervals that touch), because then the example
would prove nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sve_cli.console import Console
from sve_cli.report import Report
from sve_cli.rundir import RunDir

ADDRESSES = ("accuracy", "nll", "ece_top1_w15", "brier", "ood.digits:ood.entropy.auroc_ood")


def latest_report(folder: str) -> Report:
    """The newest report of a run."""
    return Report.load(RunDir.open(Path(folder)).evaluations()[0] / "report.json")


def main(pretrained: str, random: str) -> int:
    """Print the table; 0 when the pretrained run is clearly ahead."""
    reports = [latest_report(pretrained), latest_report(random)]
    rows = []
    for address in ADDRESSES:
        values = [r.metric(address) for r in reports]
        cells = [f"{v.value:.3f} ({v.low:.3f} to {v.high:.3f})" if v.low is not None else f"{v.value:.3f}" for v in values]
        rows.append([address, *cells])
    console = Console()
    console.table("Same recipe, same data", ["metric", "pretrained", "random weights"], rows)
    accuracy = [r.metric("accuracy") for r in reports]
    ahead = (accuracy[0].low or 0.0) > (accuracy[1].high or 1.0)
    console.say("Random weights are clearly worse: there is no basis worth keeping." if ahead else "The difference is not clear.")
    return 0 if ahead else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
