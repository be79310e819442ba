"""The whole report: valid HTML that cannot be injected into, a view of the JSON and of nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sve_cli.render.html import render_html
from sve_cli.render.markdown import render_markdown
from sve_cli.report import Report

NAMES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title></style><script>alert(1)</script>",
    "a&lt;b&amp;c <!-- x --> ]]>",
    "![x](https://evil.example/x.png) | `x` @all",
    "<h2>not a heading</h2>",
]


def hostile(report: Report, name: str) -> Report:
    """Every name that comes from outside replaced."""
    first = report.ood[0]
    ood = replace(first, name=name, scores={name: first.scores["entropy"]}, histograms={name: first.histograms["entropy"]})
    spectrum = report.spectrum
    assert spectrum is not None
    decision = replace(report.decisions[0], title=name, rule=name, guarantee=name, assumption=name)
    return replace(
        report,
        title=name,
        headline=[name, name],
        warnings=[name],
        rows=[replace(row, title=name) for row in report.rows],
        dataset=name,
        split=name,
        classes=[name, name],
        ood=[ood, replace(ood, group="near")],
        per_class=[replace(row, name=name) for row in report.per_class[:20]],
        slices=[replace(part, column=name, value=name) for part in report.slices[:3]]
        + [replace(report.slices[0], value=name, metrics={})],
        decisions=[decision],
        spectrum=replace(
            spectrum, layers=[replace(layer, name=f"{name}.{i}.{name}") for i, layer in enumerate(spectrum.layers[:3])]
        ),
        parameters={name: name},
        provenance={name: {name: [name]}, "command": name, "file": name},
    )


def test_the_page_is_valid_and_folds_what_is_long(full_report: Report, strict_page: Callable[[str], None]) -> None:
    text = render_html(full_report)
    strict_page(text)
    headings = re.findall(r'<h2 id="([^"]+)">', text)
    assert headings == [
        "results", "reliability", "risk-and-coverage", "out-of-distribution-detection", "uncertainty", "decisions", "classes",
        "slices", "members", "training", "singular-values", "parameters", "definitions", "provenance",
    ]  # fmt: skip
    assert re.findall(r'<a href="#([^"]+)">', text) == headings, "every section is in the list of contents"
    assert "<summary>The other 140 classes</summary>" in text and "<summary>All 24 layers</summary>" in text
    before_the_fold = text.partition("<summary>The other 140 classes")[0]
    assert "intent_8<" in before_the_fold and "intent_9<" not in before_the_fold, "the ten worst classes are seen at once"


@pytest.mark.parametrize("name", [" ".join(NAMES), " ".join(reversed(NAMES))])
def test_names_are_shown_and_never_obeyed(full_report: Report, name: str, strict_page: Callable[[str], None]) -> None:
    bad = hostile(full_report, name)
    text = render_html(bad)
    strict_page(text)
    assert len(re.findall("<h2", text)) == 14
    markdown = render_markdown(bad)
    assert "<" not in markdown and not re.search(r"(?<!\\)\]\(", markdown) and " @all" not in markdown


def _set(document: Any, path: str, value: Any) -> None:
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    for part in parents:
        document = document[part]
    assert document[last] != value
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("n", 7777, "7,777"),
        ("rows/0/metrics/accuracy/value", 0.4321, "43.2"),
        ("rows/0/metrics/nll/high", 7.654, "7.654"),
        ("rows/4/metrics/brier/value", 1.234, "1.234"),
        ("rows/0/reliability/14/accuracy", 0.1234, None),
        ("bin_choices/0/width", 0.4321, "43.2"),
        ("risk_curve/risk/49", 0.4321, "43.2"),
        ("ood/0/scores/entropy/auroc_ood/value", 0.4321, "43.2"),
        ("answers/1/metrics/entropy_mean/value", 7.6543, "7.6543"),
        ("decisions/0/measured/answered/value", 0.4321, "43.2"),
        ("per_class/3/f1", 0.4321, "43.2"),
        ("slices/3/metrics/accuracy/value", 0.4321, "43.2"),
        ("history/1/validation_nll", 7.654, "7.654"),
        ("spectrum/layers/5/moved", 0.4321, "43.21"),
        ("parameters/sigma", 987654, "987,654"),
        ("provenance/seeds/0", 424242, "424242"),
    ],
)
def test_a_number_changed_in_the_json_changes_both_views(
    full_report: Report, path: str, value: Any, shown: str | None, tmp_path: Path
) -> None:
    document = json.loads(full_report.to_json())
    assert document["schema"] == "sve-report/1" and document["spectrum"]["version"] == 1
    file = tmp_path / "report.json"
    views: list[list[str]] = []
    for change in (False, True):
        if change:
            _set(document, path, value)
        file.write_text(json.dumps(document), encoding="utf-8")
        loaded = Report.load(file)
        views.append([render_html(loaded), render_markdown(loaded)])
    for before, after in zip(*views, strict=True):
        assert before != after
        assert shown is None or (shown in after and shown not in before)


def test_an_unknown_version_of_the_spectrum_is_left_out(full_report: Report, tmp_path: Path) -> None:
    document = json.loads(full_report.to_json())
    document["spectrum"] = {"version": 99, "other": 1}
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    loaded = Report.load(tmp_path / "report.json")
    assert loaded.spectrum is None and "Singular values</h2>" not in render_html(loaded)


def test_a_report_of_before_is_still_drawn(report: Report, tmp_path: Path, strict_page: Callable[[str], None]) -> None:
    document = json.loads(report.to_json())
    for key in ("spectrum", "answers", "risk_curve", "bin_choices", "per_class", "slices", "decisions"):
        del document[key]
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    text = render_html(Report.load(tmp_path / "report.json"))
    strict_page(text)
    assert "Reliability</h2>" in text and "Risk and coverage" not in text
