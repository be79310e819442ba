"""Report -> GitHub Markdown: the same order as the HTML view, without figures."""

from __future__ import annotations

import re

from sve_cli.render import decisions, diagnosis, parts, report_figures, spectrum, tables
from sve_cli.render.tables import Table
from sve_cli.report import Report


def render_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    blocks = [f"# {escape(report.title)}", escape(tables.subtitle(report))]
    if report.headline:
        blocks.append(f"**{escape(report.headline[0])}**")
        blocks.append(bullets(report.headline[1:]))
    if report.warnings:
        blocks += ["## Warnings", bullets(report.warnings)]
    if report.diagnosis:
        blocks += ["## Diagnosis", bullets(diagnosis.found_sentences(report))]
        blocks.append(section("### Looked for", diagnosis.diagnosis_table(report)))
    blocks += ["## Results", table(tables.score_table(report)), section("### Further metrics", tables.further_table(report))]
    blocks.append(section("## Reliability", tables.reliability_table(report)))
    blocks.append(section("### Calibration error by number of bins", parts.bins_table(report)))
    if report.risk_curve is not None:
        blocks.append(section("## Risk and coverage", report_figures.coverage_table(report)))
    blocks += _ood(report)
    blocks.append(section("## Uncertainty: total = aleatoric + epistemic", tables.split_table(report)))
    blocks.append(section("### Right and wrong answers", tables.answer_table(report)))
    blocks += ["## Decisions"] if report.decisions else []
    for decision in report.decisions:
        words = bullets(decisions.decision_words(decision))
        blocks += [f"### {escape(decision.title)}", words, table(decisions.decision_table(decision))]
    blocks += [section("## Classes", parts.class_table(report)), escape(parts.class_note(report))]
    blocks += [section("## Slices", parts.slice_table(report)), escape(parts.slice_note(report))]
    if report_figures.strips(report):
        blocks += ["## Members", bullets(report_figures.member_sentences(report)), section("### All", tables.member_table(report))]
    blocks.append(section("## Training", tables.history_table(report)))
    blocks += _spectrum(report)
    blocks.append(section("## Parameters", tables.parameter_table(report)))
    blocks.append(section("## Definitions", tables.definition_table(report)))
    blocks.append(section("## Provenance", tables.provenance_table(report)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _ood(report: Report) -> list[str]:
    blocks = ["## Out-of-distribution detection"] if report.ood else []
    blocks += [section(f"### {escape(title)}", content) for title, content in decisions.group_tables(report)]
    for ood in report.ood:
        sizes = f"{ood.n_id:,} samples in distribution, {ood.n_ood:,} out."
        blocks += [f"### {escape(ood.name)}", sizes, table(tables.ood_table(ood))]
    return blocks


def _spectrum(report: Report) -> list[str]:
    found = report.spectrum
    if found is None or not found.layers:
        return []
    blocks = ["## Singular values", bullets(spectrum.sentences(found)), table(spectrum.kind_table(found))]
    blocks.append(section("### By rank", spectrum.rank_table(found)))
    return [*blocks, section("### Layers that moved most", spectrum.layer_table(found, spectrum.MOST_LAYERS))]


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no tags, emphasis, links, mentions or cell borders, on one line."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"([\\`*\[\]|~#$])", r"\\\1", text)
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    # A report is often posted as a comment: a class called @someone must not notify anybody.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")


def bullets(lines: list[str]) -> str:
    """A list; nothing for no lines."""
    return "\n".join(f"- {escape(line)}" for line in lines)


def section(heading: str, content: Table | None) -> str:
    """A heading with its table; nothing without one."""
    return f"{heading}\n\n{table(content)}" if content else ""


def table(content: Table) -> str:
    """A table, its numbers set right."""
    rule = ["---:" if i in content.numeric else "---" for i in range(len(content.columns))]
    lines = [[escape(cell) for cell in content.columns], rule]
    for i, row in enumerate(content.rows):
        lines.append([f"**{escape(cell)}**" if i in content.strong else escape(cell) for cell in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
