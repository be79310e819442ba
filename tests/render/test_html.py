from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sve_cli.errors import SveError
from sve_cli.render import page
from sve_cli.render.html import render_html
from sve_cli.render.html_style import STYLE
from sve_cli.render.tables import Table
from sve_cli.report import Report

VOID = {"meta", "br", "hr", "link", "img", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects tags, attributes, headings and table rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings[-1] += data


def test_tags_are_balanced_and_nothing_is_fetched_or_run(report: Report) -> None:
    text = render_html(report)
    page = Page(text)
    assert page.open == [] and page.tags.count("html") == 1
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "http" not in text and "src=" not in text and "url(" not in text and "@import" not in text
    assert not [name for name, value in page.attributes if name.startswith("on") or name == "src"]


def test_hostile_names_stay_text_wherever_they_stand(report: Report) -> None:
    hostile = "\"><script>alert(1)</script>'&"
    ood = [replace(report.ood[0], name=hostile, scores={hostile: report.ood[0].scores["entropy"]})]
    ood = [replace(ood[0], histograms={hostile: report.ood[0].histograms["entropy"]})]
    rows = [replace(row, title=hostile) for row in report.rows]
    bad = replace(report, title=hostile, headline=[hostile] * 2, warnings=[hostile], rows=rows, dataset=hostile, ood=ood)
    bad = replace(bad, parameters={hostile: hostile}, provenance={hostile: {hostile: [hostile]}})
    page = Page(render_html(bad))
    assert page.open == [] and "script" not in page.tags
    assert any(row[0] == hostile for row in page.rows)


def test_numbers_and_order(report: Report) -> None:
    page = Page(render_html(report))
    assert page.rows[1] == ["Ensemble of 4", "95.3 (94.7-95.9)", "0.183 (0.161-0.205)", "1.9 (1.7-2.2)", "0.072 (0.063-0.081)"]
    assert [row[0] for row in page.rows[1:8]] == [
        "Ensemble of 4",
        "Ensemble, temperature 0.87",
        "Checkpoint before training",
        *(f"Member {m}" for m in range(4)),
    ]
    assert page.headings == [
        "Results",
        "Further metrics",
        "Reliability",
        "Out-of-distribution detection",
        "clinc|150:oos_test",
        "banking77:test",
        "Uncertainty",
        "Members",
        "Training",
        "Parameters",
        "Definitions",
        "Provenance",
    ]
    # two reliability diagrams, one split bar, four histograms for each of two sets, one line of members, one training curve
    assert page.tags.count("svg") == 2 + 1 + 8 + 1 + 1
    assert ["Singular values (Σ), all members", "55,296"] in page.rows and ["Stored", "1.48 MB"] in page.rows


def test_every_metric_shown_is_defined(report: Report) -> None:
    rows = Page(render_html(report)).rows
    defined = {row[2]: row[1] for row in rows if len(row) == 3}
    for address, metric in report.addresses().items():
        assert defined[address.split(".")[-1]] == metric.definition


def test_missing_pieces_are_left_out(report: Report) -> None:
    ensemble = replace(report.row("ensemble"), metrics={"nll": report.row("ensemble").metrics["nll"]}, reliability=[])
    bare = replace(report, rows=[ensemble], ood=[], history=[], warnings=[], parameters={}, provenance={}, headline=[])
    page = Page(render_html(bare))
    assert page.headings == ["Results", "Definitions"] and "svg" not in page.tags


def test_a_report_read_back_from_json_is_drawn_the_same(report: Report, tmp_path: Path) -> None:
    # Empty bins and metrics that are not numbers become null in JSON.
    bins = [replace(b, confidence=math.nan, accuracy=math.nan) if b.count == 0 else b for b in report.row("ensemble").reliability]
    metrics = {**report.row("ensemble").metrics, "aurc": replace(report.row("ensemble").metrics["aurc"], value=math.nan, low=None)}
    report.rows[0] = replace(report.rows[0], reliability=bins, metrics=metrics)
    report.history.append({"round": 0, "epoch": 4, "train_loss": math.nan, "validation_nll": None})
    (tmp_path / "report.json").write_text(report.to_json(), encoding="utf-8")
    again = Report.load(tmp_path / "report.json")
    assert render_html(again) == render_html(report)
    assert not re.search(r"\b(nan|None|null)\b", render_html(again).partition("</style>")[2])


def test_a_histogram_without_a_side_is_refused(report: Report) -> None:
    del report.ood[0].histograms["entropy"]["ood"]
    with pytest.raises(SveError, match="histogram of 'entropy' .* has no 'ood'"):
        render_html(report)


def test_a_wide_table_becomes_cards_on_a_phone() -> None:
    """Every cell carries its head there; tables of two columns and those of words stay as they are."""
    wide = Table(["Share %", "A % ↑", 'B "x"'], [["50", "1.0 (0.5-2.0)", "<b>"]], frozenset({0, 1}))
    shown = page.table(wide, "L", "sticky")
    assert '<table class="sticky cards">' in shown and '<th scope="row" data-head="Share %" class="num">50</th>' in shown
    assert 'data-head="A % ↑">1.0 <span' in shown and 'data-head="B &quot;x&quot;">&lt;b&gt;</td>' in shown
    assert "cards" in page.table(wide, "L", "facts") and "cards" not in page.table(wide, "L", "words")
    assert "cards" not in page.table(Table(["A", "B"], [["1", "2"]]), "L", "facts")
    for rule in (".cards td::before{content:attr(data-head)", ".cards thead{display:none}"):
        assert rule in STYLE.partition("@media screen and (max-width:40rem)")[2].partition("@media print")[0]
