"""The decisions of a report, and the means of groups of OOD sets, as tables of plain text."""

from __future__ import annotations

from sve_cli.render import tables
from sve_cli.render.tables import Table
from sve_cli.report import Decision, MetricValue, OodSet, Report

_NAMES = {
    "coverage": "Sets that hold the right class",
    "mean_set_size": "Mean size of a set",
    "one_class": "Sets of one class",
    "empty": "Empty sets",
    "answered": "Inputs answered",
    "risk": "Wrong among the answered",
    "id_kept": "In-distribution inputs kept",
}


def decision_table(decision: Decision) -> Table:
    """What a rule did on the test set: shares in percent, with their intervals."""
    rows = [[_name(key), _value(key, metric), f"{metric.n:,}"] for key, metric in decision.measured.items()]
    where = "On test and OOD sets" if decision.key == "ood" else "On the test set"
    return Table([where, "Value", "Samples"], rows, frozenset({1, 2}))


def decision_words(decision: Decision) -> list[str]:
    """Rule, guarantee and assumption as sentences."""
    fitted = f"Fitted on {decision.n:,} calibration samples, which nothing else uses."
    return [decision.rule, f"{fitted} Guarantee: {decision.guarantee}", f"Assumption: {decision.assumption}"]


def group_tables(report: Report) -> list[tuple[str, Table]]:
    """(title, table) of the means over near and over far OOD sets."""
    found = []
    for group, scores in report.ood_groups().items():
        sets = [ood for ood in report.ood if ood.group == group]
        names = ", ".join(ood.name for ood in sets)
        mean = OodSet(group, sets[0].n_id, sum(ood.n_ood for ood in sets), scores)
        found.append((f"Mean of the {group} sets ({names})", tables.ood_table(mean)))
    return found


def _name(key: str) -> str:
    if key.startswith("flagged."):
        return f"Flagged of {key.removeprefix('flagged.')}"
    return _NAMES.get(key, key.replace("_", " "))


def _value(key: str, metric: MetricValue) -> str:
    scale, unit = (1.0, "") if key == "mean_set_size" else (100.0, " %")
    digits = 2 if key == "mean_set_size" else 1
    value = f"{scale * metric.value:.{digits}f}"
    if metric.low is None or metric.high is None:
        return value + unit
    return f"{value}{unit} ({scale * metric.low:.{digits}f}-{scale * metric.high:.{digits}f})"
