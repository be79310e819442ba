"""Report -> one self-contained HTML file: no network, no script; light and dark, phone and paper."""

from __future__ import annotations

from dataclasses import replace
from html import escape

from sve_cli.errors import SveError
from sve_cli.render import curves, decisions, diagnosis, figures, page, parts, report_figures, spectrum, tables
from sve_cli.render.tables import Table
from sve_cli.report import OodSet, Report

MOST_SCORES = 2  # OOD scores whose figures are not folded


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
        _bins(report),
        _risk(report),
        _ood(report),
        _uncertainty(report),
        _decisions(report),
        _classes(report),
        _slices(report),
        _diagnosis(report),
        _members(report),
        _training(report),
        _spectrum(report),
        page.section("Parameters", tables.parameter_table(report), "facts"),
        _definitions(report),
        page.section("Provenance", tables.provenance_table(report), "facts words"),
    ]
    return page.page(report.title, blocks)


def _definitions(report: Report) -> str:
    content = tables.definition_table(report)
    table = page.table(content, "Definitions", "words")
    return "<h2>Definitions</h2>\n" + page.folded(f"What each of the {len(content.rows)} numbers is", table)


def _diagnosis(report: Report) -> str:
    if not report.diagnosis:
        return ""
    shown = page.section("Looked for", diagnosis.diagnosis_table(report), "sticky", level=3)
    return "<h2>Diagnosis</h2>\n" + page.bullets(diagnosis.found_sentences(report)) + shown


def _intervals_note(report: Report) -> str:
    has_interval = any(metric.low is not None for row in report.rows for metric in row.metrics.values())
    return page.note("In parentheses: the interval." if has_interval else "", "↑ higher is better, ↓ lower is better.")


def _reliability(report: Report) -> str:
    key = tables.find_key(report.rows, "ece_top1_w")
    drawn = []
    for row in tables.ordered_rows(report):
        if row.key in ("ensemble", "temperature", "vector", "before") and any(b.count for b in row.reliability):
            detail = f"ECE {tables.format_metric(key, row.metrics.get(key))} %" if key else ""
            drawn.append(page.figure(row.title, detail, figures.reliability_svg(row.reliability, f"Reliability of {row.title}")))
    if not drawn:
        return ""
    return (
        "<h2>Reliability</h2>\n<p>On the dashed diagonal, confidence equals accuracy; below it the predictor is overconfident. "
        "Points: mean confidence and accuracy of a bin. Shaded: Wilson interval of the accuracy.</p>\n" + page.figures(drawn)
    )


def _bins(report: Report) -> str:
    content = parts.bins_table(report)
    if content is None:
        return ""
    drawing = curves.bins_svg(report.bin_choices, report_figures.bins_used(report), "Calibration error by number of bins")
    return (
        "<h3>Calibration error by number of bins</h3>\n"
        + page.figures([page.figure("", "The dashed line marks the number of bins used everywhere else.", drawing)])
        + page.folded("The same as a table", page.table(content, "Calibration error by number of bins", "facts"))
    )


def _risk(report: Report) -> str:
    curve = report.risk_curve
    if curve is None:
        return ""
    drawing = curves.risk_svg(
        curve, report_figures.marks(report), report_figures.abstention(report), "Errors by the share answered"
    )
    table = page.table(report_figures.coverage_table(report), "Risk and coverage", "facts")
    return (
        "<h2>Risk and coverage</h2>\n<p>When only the most confident inputs are answered, how many answers are wrong? "
        "Shaded: Wilson interval.</p>\n" + page.figures([page.figure("", report_figures.risk_caption(report), drawing)]) + table
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
        first = sorted(ood.histograms, key=lambda score: score not in ("entropy", "mutual_information"))[:MOST_SCORES]
        drawn = {score: [_histogram(ood, score), _roc(ood, score)] for score in ood.histograms}
        blocks.append(page.figures([figure for score in first for figure in drawn[score]]))
        rest = [figure for score in drawn if score not in first for figure in drawn[score]]
        blocks.append(page.folded(f"Figures of the other {len(drawn) - len(first)} scores", page.figures(rest)))
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


def _uncertainty(report: Report) -> str:
    table = tables.split_table(report)
    if table is None:
        return ""
    drawn = [
        page.figure(
            "", "Mean of all answers, of the right and of the wrong ones", curves.bars_svg(report_figures.bars(report), "Split")
        )
    ]
    shown = [part for part in report.answers if part.n]
    if len(shown) == 2:
        right, wrong = shown
        names = (f"right answers ({right.n:,})", f"wrong answers ({wrong.n:,})")
        axis = "Total uncertainty (entropy of the mean)"
        label = "Uncertainty of right and wrong answers"
        drawing = figures.histogram_svg(right.edges, right.counts, wrong.counts, label, names, axis)
        drawn.append(page.figure("", "How unsure it is where it is right, and where it is wrong", drawing))
    answers = tables.answer_table(report)
    return (
        "<h2>Uncertainty</h2>\n"
        "<p>Total = aleatoric (what every member is unsure about) + epistemic (where the members disagree).</p>\n"
        + page.figures(drawn)
        + page.table(table, "Uncertainty", "facts")
        + (page.table(answers, "Uncertainty of right and wrong answers", "sticky") if answers else "")
    )


def _decisions(report: Report) -> str:
    blocks = ["<h2>Decisions</h2>"] if report.decisions else []
    for decision in report.decisions:
        blocks.append(f"<h3>{escape(decision.title)}</h3>\n" + page.bullets(decisions.decision_words(decision)))
        blocks.append(page.table(decisions.decision_table(decision), decision.title, "facts"))
    return "\n".join(blocks)


def _classes(report: Report) -> str:
    """The worst classes; the others folded."""
    content = parts.class_table(report)
    if content is None:
        return ""
    return "<h2>Classes</h2>\n" + _long(content, "classes", "The lowest F1 first.") + "\n" + page.note(parts.class_note(report))


def _slices(report: Report) -> str:
    """Only where there is a slice at all."""
    content, note = parts.slice_table(report), parts.slice_note(report)
    shown = _long(content, "slices", "The largest doubt first.") if content else ""
    return f"<h2>Slices</h2>\n{shown}\n{page.note(note)}" if content or note else ""


def _long(content: Table, what: str, order: str) -> str:
    """A table of which the first lines are shown and the others folded."""
    shown, most = len(content.rows), parts.SHOWN
    if shown <= most + 5:
        return page.note(order) + page.table(content, what.capitalize(), "sticky")
    first = replace(content, rows=content.rows[:most])
    rest = replace(content, rows=content.rows[most:], strong=frozenset(i - most for i in content.strong if i >= most))
    tail = page.folded(f"The other {shown - most} {what}", page.table(rest, f"The other {what}", "sticky"))
    return page.note(order) + page.table(first, what.capitalize(), "sticky") + tail


def _members(report: Report) -> str:
    strips = report_figures.strips(report)
    if not strips:
        return ""
    drawing = curves.strips_svg(strips, "Members and ensemble")
    table = tables.member_table(report)
    return (
        "<h2>Members</h2>\n"
        + page.bullets(report_figures.member_sentences(report))
        + page.figures([page.figure("", "Every member on its own, and the ensemble; each line has its own scale.", drawing)])
        + page.folded(f"All {len(tables.member_rows(report))} members", page.table(table, "Members", "sticky") if table else "")
    )


def _training(report: Report) -> str:
    drawing = figures.curve_svg(report.history, "Training loss and validation NLL by epoch")
    if not drawing:
        return ""
    table = tables.history_table(report)
    folded = page.folded("The same as a table", page.table(table, "Training", "facts")) if table else ""
    return "<h2>Training</h2>\n" + page.figures([f"<figure>{drawing}</figure>"]) + folded


def _spectrum(report: Report) -> str:
    found = report.spectrum
    if found is None or not found.layers:
        return ""
    drawn = [page.figure(name, detail, curves.heat_svg(heat, name)) for name, detail, heat in spectrum.heat_maps(found)]
    layers = page.table(spectrum.layer_table(found), "Layers", "sticky")
    ranks = spectrum.rank_table(found)
    return (
        "<h2>Singular values</h2>\n"
        + page.bullets(spectrum.sentences(found))
        + page.figures(drawn)
        + page.table(spectrum.kind_table(found), "Singular values by kind of layer", "facts")
        + page.folded("By rank", page.table(ranks, "Singular values by rank", "facts") if ranks else "")
        + page.folded(f"All {len(found.layers)} layers", layers)
    )
