from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sve_cli.render.markdown import escape, render_markdown
from sve_cli.report import Report


def _tables(text: str) -> list[list[list[str]]]:
    """Every table as rows of cells, split at unescaped pipes."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block] for block in blocks]


def test_tables_have_the_same_number_of_cells_in_every_line(report: Report) -> None:
    found = _tables(render_markdown(report))
    # results, further, reliability, two OOD sets, uncertainty, training, parameters, definitions, provenance
    assert len(found) == 10
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}
        assert all(re.fullmatch(r"-{3,}:?", cell) for cell in table[1])


def test_numbers_are_the_reports(report: Report) -> None:
    table = _tables(render_markdown(report))[0]
    assert table[0] == ["Predictor", "Accuracy % ↑", "NLL ↓", "ECE % ↓", "Brier ↓"]
    assert [cell.strip("*") for cell in table[2]] == [
        "Ensemble of 4",
        "95.3 (94.7-95.9)",
        "0.183 (0.161-0.205)",
        "1.9 (1.7-2.2)",
        "0.072 (0.063-0.081)",
    ]
    assert table[4][0] == "Checkpoint before training" and table[4][3] == "–"
    ood = _tables(render_markdown(report))[3]
    assert ood[2] == [
        "Max probability",
        "94.1 (93.5-94.7)",
        "80.2 (79.6-80.8)",
        "98.6 (98.0-99.2)",
        "28.7 (25.3-32.1)",
        "24.3 (21.4-27.2)",
    ]


def test_names_are_inert(report: Report) -> None:
    text = render_markdown(report)
    assert "<" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "clinc\\|150" in text and "clinc|150" not in text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a|b", "a\\|b"),
        ("two\nlines", "two lines"),
        ("@someone", "&#64;someone"),
        ("[x](y)", "\\[x\\](y)"),
        ("_soft_ snake_case", "\\_soft\\_ snake_case"),
        ("a\\|b", "a\\\\\\|b"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_escape(raw: str, shown: str) -> None:
    assert escape(raw) == shown


def test_missing_pieces_are_left_out(report: Report) -> None:
    ensemble = report.row("ensemble")
    bare = replace(report, rows=[replace(ensemble, metrics={"nll": ensemble.metrics["nll"]}, reliability=[])])
    bare = replace(bare, ood=[], history=[], warnings=[], parameters={}, provenance={}, headline=[])
    text = render_markdown(bare)
    assert re.findall(r"^#+ (.*)$", text, re.M)[1:] == ["Results", "Definitions"]
    assert len(_tables(text)) == 2
