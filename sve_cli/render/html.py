"""Report -> one self-contained HTML file: no network, no script; light and dark, phone and paper."""

from __future__ import annotations

import re
from html import escape

from sve_cli.errors import SveError
from sve_cli.render import figures, tables
from sve_cli.render.html_style import STYLE
from sve_cli.render.tables import Table
from sve_cli.report import OodSet, Report


def render_html(report: Report) -> str:
    """The report as one HTML document.

    Raises:
        SveError: an OOD histogram lacks its edges or a side.
    """
    blocks = [
        _head(report),
        "<h2>Results</h2>",
        _table(tables.score_table(report), "Results", "sticky"),
        _intervals_note(report),
        _section("Further metrics", tables.further_table(report), "sticky", level=3),
        _reliability(report),
        _uncertainty(report),
        _ood(report),
        _training(report),
        _section("Parameters", tables.parameter_table(report), "facts"),
        _section("Definitions", tables.definition_table(report), "words"),
        _section("Provenance", tables.provenance_table(report), "facts words"),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(block for block in blocks if block)
        + "\n</main>\n</body>\n</html>\n"
    )


def _head(report: Report) -> str:
    parts = [f'<header>\n<h1>{escape(report.title)}</h1>\n<p class="soft">{escape(tables.subtitle(report))}</p>\n</header>']
    if report.headline:
        parts.append(f'<p class="lead">{escape(report.headline[0])}</p>')
        parts.append(_bullets(report.headline[1:]))
    if report.warnings:
        parts.append(f'<div class="warnings" role="note"><strong>Warnings</strong>\n{_bullets(report.warnings)}</div>')
    return "\n".join(part for part in parts if part)


def _bullets(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _intervals_note(report: Report) -> str:
    has_interval = any(metric.low is not None for row in report.rows for metric in row.metrics.values())
    note = "In parentheses: bootstrap interval. " if has_interval else ""
    return f'<p class="soft">{note}↑ higher is better, ↓ lower is better.</p>'


def _section(title: str, table: Table | None, style: str, level: int = 2) -> str:
    return f"<h{level}>{escape(title)}</h{level}>\n{_table(table, title, style)}" if table else ""


def _table(table: Table, label: str, style: str = "") -> str:
    """A table in its own scrolling box, so that a phone scrolls the table and not the page."""

    def heading(i: int, text: str) -> str:
        shown = escape(re.sub(" (?=[%↑↓])", "\N{NO-BREAK SPACE}", text))
        return f'<th scope="col" class="num">{shown}</th>' if i in table.numeric else f'<th scope="col">{shown}</th>'

    def cell(i: int, text: str) -> str:
        if i == 0:
            return heading(0, text).replace('scope="col"', 'scope="row"')
        if i not in table.numeric:
            shown = escape(text)
            return f"<td><code>{shown}</code></td>" if table.columns[i] == "Report key" else f'<td class="text">{shown}</td>'
        value, bracket, interval = text.partition(" (")
        tail = f' <span class="ci">({escape(interval)}</span>' if bracket else ""
        return f'<td class="num">{escape(value)}{tail}</td>'

    head = "".join(heading(i, text) for i, text in enumerate(table.columns))
    body = "\n".join(
        ('<tr class="strong">' if r in table.strong else "<tr>") + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>"
        for r, row in enumerate(table.rows)
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">\n<table class="{style}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _figure(caption: str, detail: str, drawing: str) -> str:
    return f"<figure><figcaption><b>{escape(caption)}</b>{escape(detail)}</figcaption>{drawing}</figure>" if drawing else ""


def _figures(drawn: list[str]) -> str:
    shown = [figure for figure in drawn if figure]
    return '<div class="figures">' + "\n".join(shown) + "</div>" if shown else ""


def _reliability(report: Report) -> str:
    key = tables.find_key(report.rows, "ece_top1_w")
    drawn = []
    for row in tables.ordered_rows(report):
        if row.key in ("ensemble", "temperature") and any(b.count for b in row.reliability):
            detail = f"ECE {tables.format_metric(key, row.metrics.get(key))} %" if key else ""
            drawn.append(_figure(row.title, detail, figures.reliability_svg(row.reliability, f"Reliability of {row.title}")))
    if not drawn:
        return ""
    return (
        "<h2>Reliability</h2>\n<p>On the dashed diagonal, confidence equals accuracy; below it the predictor is overconfident. "
        "Points: mean confidence and accuracy of a bin. Shaded: Wilson interval of the accuracy.</p>\n" + _figures(drawn)
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
        + _figures([f"<figure>{drawing}</figure>" if drawing else ""])
        + _table(table, "Uncertainty", "facts")
    )


def _ood(report: Report) -> str:
    if not report.ood:
        return ""
    parts = ["<h2>Out-of-distribution detection</h2>"]
    for ood in report.ood:
        sizes = f"{ood.n_id:,} samples in distribution, {ood.n_ood:,} out"
        parts.append(f'<h3>{escape(ood.name)}</h3>\n<p class="soft">{sizes}</p>')
        parts.append(_table(tables.ood_table(ood), f"Out-of-distribution scores on {ood.name}", "sticky"))
        parts.append(_figures([_histogram(ood, score) for score in ood.histograms]))
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
    return _figure(name, detail, drawing)


def _training(report: Report) -> str:
    drawing = figures.curve_svg(report.history, "Training loss and validation NLL by epoch")
    return "<h2>Training</h2>\n" + _figures([f"<figure>{drawing}</figure>"]) if drawing else ""
