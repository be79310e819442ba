"""Report -> one self-contained HTML file: no network, no script; light and dark, phone and paper."""

from __future__ import annotations

from html import escape

from sve_cli.errors import SveError
from sve_cli.render import decisions, figures, page, parts, tables
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
        page.section("Calibration error by number of bins", parts.bins_table(report), "facts", level=3),
        _slices(report),
        _classes(report),
        _uncertainty(report),
        _ood(report),
        _decisions(report),
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


def _slices(report: Report) -> str:
    """Only where there is a slice at all."""
    content, note = parts.slice_table(report), parts.slice_note(report)
    shown = page.table(content, "Slices", "sticky") if content else ""
    return f'<h2>Slices</h2>\n{shown}\n<p class="soft">{escape(note)}</p>' if content or note else ""


def _classes(report: Report) -> str:
    note = parts.class_note(report)
    shown = page.section("Classes", parts.class_table(report), "sticky")
    return f'{shown}\n<p class="soft">{escape(note)}</p>' if note else shown


def _uncertainty(report: Report) -> str:
    shares, table = tables.split_parts(report), tables.split_table(report)
    if shares is None or table is None:
        return ""
    _, aleatoric, epistemic = shares
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
    blocks = ["<h2>Out-of-distribution detection</h2>"]
    for title, table in decisions.group_tables(report):
        blocks.append(f"<h3>{escape(title)}</h3>\n" + page.table(table, title, "sticky"))
    for ood in report.ood:
        sizes = f"{ood.n_id:,} samples in distribution, {ood.n_ood:,} out"
        blocks.append(f'<h3>{escape(ood.name)}</h3>\n<p class="soft">{sizes}</p>')
        blocks.append(page.table(tables.ood_table(ood), f"Out-of-distribution scores on {ood.name}", "sticky"))
        blocks.append(page.figures([drawn for score in ood.histograms for drawn in (_histogram(ood, score), _roc(ood, score))]))
    return "\n".join(block for block in blocks if block)


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


def _roc(ood: OodSet, score: str) -> str:
    """Nothing for reports made before there were ROC points."""
    points = ood.histograms[score]
    if "roc_id" not in points or "roc_ood" not in points:
        return ""
    name = tables.score_name(score)
    drawing = figures.roc_svg(points["roc_id"], points["roc_ood"], f"ROC curve of {name} on {ood.name}")
    return page.figure(name, "ROC curve", drawing)


def _decisions(report: Report) -> str:
    blocks = ["<h2>Decisions</h2>"] if report.decisions else []
    for decision in report.decisions:
        blocks.append(f"<h3>{escape(decision.title)}</h3>\n" + page.bullets(decisions.decision_words(decision)))
        blocks.append(page.table(decisions.decision_table(decision), decision.title, "facts"))
    return "\n".join(blocks)


def _training(report: Report) -> str:
    drawing = figures.curve_svg(report.history, "Training loss and validation NLL by epoch")
    return "<h2>Training</h2>\n" + page.figures([f"<figure>{drawing}</figure>"]) if drawing else ""
