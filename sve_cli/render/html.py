"""Report -> one self-contained HTML file: no network, no script; light and dark, phone and paper."""

from __future__ import annotations

from html import escape

from sve_cli.errors import SveError
from sve_cli.render import figures, page, tables
from sve_cli.report import OodSet, Report


def render_html(report: Report) -> str:
    """The report as one HTML document.

    Raises:
        SveError: an OOD histogram lacks its edges or a side.
    """
    blocks = [
        page.head(report.title, tables.subtitle(report), report.headline, report.warnings),
        "<h2>Results</h2>",
        page.table(tables.score_table(report), "Results", "sticky"),
        _intervals_note(report),
        page.section("Further metrics", tables.further_table(report), "sticky", level=3),
        _reliability(report),
        _uncertainty(report),
        _ood(report),
        _training(report),
        page.section("Parameters", tables.parameter_table(report), "facts"),
        page.section("Definitions", tables.definition_table(report), "words"),
        page.section("Provenance", tables.provenance_table(report), "facts words"),
    ]
    return page.page(report.title, blocks)


def _intervals_note(report: Report) -> str:
    has_interval = any(metric.low is not None for row in report.rows for metric in row.metrics.values())
    note = "In parentheses: bootstrap interval. " if has_interval else ""
    return f'<p class="soft">{note}↑ higher is better, ↓ lower is better.</p>'


def _reliability(report: Report) -> str:
    key = tables.find_key(report.rows, "ece_top1_w")
    drawn = []
    for row in tables.ordered_rows(report):
        if row.key in ("ensemble", "temperature", "vector") and any(b.count for b in row.reliability):
            detail = f"ECE {tables.format_metric(key, row.metrics.get(key))} %" if key else ""
            drawn.append(page.figure(row.title, detail, figures.reliability_svg(row.reliability, f"Reliability of {row.title}")))
    if not drawn:
        return ""
    return (
        "<h2>Reliability</h2>\n<p>On the dashed diagonal, confidence equals accuracy; below it the predictor is overconfident. "
        "Points: mean confidence and accuracy of a bin. Shaded: Wilson interval of the accuracy.</p>\n" + page.figures(drawn)
    )


def _uncertainty(report: Report) -> str:
    parts, table = tables.split_parts(report), tables.split_table(report)
    if parts is None or table is None:
        return ""
    _, aleatoric, epistemic = parts
    drawing = figures.split_svg(aleatoric.value, epistemic.value, "Aleatoric and epistemic share of the uncertainty")
    return (
        "<h2>Uncertainty</h2>\n"
        "<p>Total = aleatoric (what every member is unsure about) + epistemic (where the members disagree).</p>\n"
        + page.figures([f"<figure>{drawing}</figure>" if drawing else ""])
        + page.table(table, "Uncertainty", "facts")
    )


def _ood(report: Report) -> str:
    if not report.ood:
        return ""
    parts = ["<h2>Out-of-distribution detection</h2>"]
    for ood in report.ood:
        sizes = f"{ood.n_id:,} samples in distribution, {ood.n_ood:,} out"
        parts.append(f'<h3>{escape(ood.name)}</h3>\n<p class="soft">{sizes}</p>')
        parts.append(page.table(tables.ood_table(ood), f"Out-of-distribution scores on {ood.name}", "sticky"))
        parts.append(page.figures([_histogram(ood, score) for score in ood.histograms]))
    return "\n".join(part for part in parts if part)


def _histogram(ood: OodSet, score: str) -> str:
    histogram = ood.histograms[score]
    missing = [key for key in ("edges", "id", "ood") if key not in histogram]
    if missing:
        raise SveError(f"The histogram of '{score}' on '{ood.name}' has no '{missing[0]}'.", "It needs edges, id and ood.")
    name = tables.score_name(score)
    auroc = ood.scores.get(score, {}).get("auroc_ood")
    detail = f"AUROC {tables.format_metric('auroc_ood', auroc)} %" if auroc else ""
    drawing = figures.histogram_svg(histogram["edges"], histogram["id"], histogram["ood"], f"{name}: in and out of distribution")
    return page.figure(name, detail, drawing)


def _training(report: Report) -> str:
    drawing = figures.curve_svg(report.history, "Training loss and validation NLL by epoch")
    return "<h2>Training</h2>\n" + page.figures([f"<figure>{drawing}</figure>"]) if drawing else ""
