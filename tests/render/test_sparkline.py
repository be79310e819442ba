from __future__ import annotations

from dataclasses import replace

from sve_cli.render.sparkline import spark_lines, sparkline
from sve_cli.report import ReliabilityBin, Report


def test_blocks() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█" and sparkline([1.0, None, 3.0], 0.0) == "▃·█"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([None, float("nan")]) == "··" and sparkline([]) == ""


def test_the_bin_that_weighs_most_is_named(report: Report) -> None:
    bins = [
        ReliabilityBin(0.2, 0.4, 2, 0.3, 1.0, 0.2, 1.0),
        ReliabilityBin(0.4, 0.6, 20, 0.5, 0.55, 0.2, 0.8),
        ReliabilityBin(0.8, 1.0, 900, 0.95, 0.85, 0.83, 0.87),
    ]
    made = replace(report, rows=[replace(report.row("ensemble"), reliability=bins)])
    gap, nll = spark_lines(made)
    assert gap == "Gap by confidence  ··▅·█  over-confident by 10.0 points at 80-100 %"
    assert nll == "Validation NLL by epoch  █▁▁  0.610 to 0.231"
    assert spark_lines(replace(made, rows=[replace(made.rows[0], reliability=[])], history=report.history[:1])) == []


def test_long_series_are_thinned(report: Report) -> None:
    history = [{"validation_nll": 1.0 / (i + 1)} for i in range(1000)]
    (line,) = spark_lines(replace(report, rows=[replace(report.row("ensemble"), reliability=[])], history=history))
    assert len(line) < 110 and line.endswith("1.000 to 0.001")
