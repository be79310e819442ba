"""The known failures that were looked for, as plain text."""

from __future__ import annotations

from sve_cli.render.tables import Table
from sve_cli.report import MetricValue, Report


def found_sentences(report: Report) -> list[str]:
    """What was found, with the setting to try; one sentence that says so when nothing was."""
    found = [f"{s.title}: {s.sentence} Try {s.setting}. {s.advice}" for s in report.diagnosis if s.found]
    if found or not report.diagnosis:
        return found
    titles = [f"{s.title[:1].lower()}{s.title[1:]}" for s in report.diagnosis]
    return [f"None of the known failures that were looked for is here: {', '.join(titles)}."]


def diagnosis_table(report: Report) -> Table | None:
    """Every failure that was looked for, with what was measured; None where nothing could be."""
    rows = [[s.title, "found" if s.found else "no", _value(s.value), s.sentence, s.setting] for s in report.diagnosis]
    strong = frozenset(i for i, s in enumerate(report.diagnosis) if s.found)
    return Table(["Failure", "Found", "Measured", "In words", "Setting to try"], rows, frozenset({2}), strong) if rows else None


def _value(metric: MetricValue) -> str:
    if metric.low is None or metric.high is None:
        return f"{metric.value:.3f}"
    return f"{metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})"
