from __future__ import annotations

from dataclasses import replace

from sve_cli.gate.rule import amounts
from sve_cli.render.html import render_html
from sve_cli.render.markdown import render_markdown
from sve_cli.render.parts import bins_table, class_note, class_table, slice_note, slice_table
from sve_cli.render.tables import format_number
from sve_cli.report import BinChoice, ClassRow, MetricValue, Report, Slice


def with_parts(report: Report) -> Report:
    def metrics(accuracy: float) -> dict[str, MetricValue]:
        return {
            "accuracy": MetricValue(accuracy, 40, "higher", "d", accuracy - 0.05, accuracy + 0.04),
            "ece_top1_w15": MetricValue(0.03, 40, "lower", "d", 0.0, 0.06),
        }

    return replace(
        report,
        bin_choices=[BinChoice(10, 0.018, 0.017), BinChoice(15, 0.0192, 0.0187)],
        per_class=[
            ClassRow("fine", 30, 31, 0.9, 0.95, 0.92, 0.001),
            ClassRow("<script>alert(1)</script>", 30, 0, None, 0.0, 0.0, 0.002),
            ClassRow("never", 0, 0, None, None, None, 0.0),
        ],
        slices=[
            Slice("source", "<b>", 40, metrics(0.7), {"accuracy": 0.0001, "ece_top1_w15": 0.4}),
            Slice("source", "web", 400, metrics(0.95), {"accuracy": 1.0, "ece_top1_w15": 1.0}),
            Slice("source", "fax", 7),
        ],
    )


def test_tables(report: Report) -> None:
    made = with_parts(report)
    bins, classes, slices = bins_table(made), class_table(made), slice_table(made)
    assert bins is not None and classes is not None and slices is not None
    assert bins.rows == [["10", "1.8", "1.7"], ["15", "1.9", "1.9"]] and bins.strong == {1}, "the number of bins in use"
    assert [row[0] for row in classes.rows] == ["<script>alert(1)</script>", "fine", "never"], "lowest F1 first"
    assert classes.rows[1] == ["fine", "30", "90.0", "95.0", "92.0", "0.10"] and classes.rows[2][2:5] == ["–"] * 3
    assert slices.rows[0] == ["source = <b>", "40", "70.0 (65.0-74.0)", "3.0 (0.0-6.0)", "< 0.001"] and slices.strong == {0}
    assert slices.rows[1][-1] == "1.000" and len(slices.rows) == 2
    assert "fewer than 30 samples): source = fax (7)." in slice_note(made) and class_note(made) == ""


def test_long_tables_are_cut_and_say_so(report: Report) -> None:
    made = with_parts(report)
    many = replace(made, per_class=made.per_class[:1] * 1000, slices=made.slices[:1] * 90)
    classes, slices = class_table(many), slice_table(many)
    assert classes is not None and slices is not None and (len(classes.rows), len(slices.rows)) == (200, 25)
    assert "800 more" in class_note(many) and "65 more slices" in slice_note(many)


def test_views(report: Report) -> None:
    made = with_parts(report)
    html, markdown = render_html(made), render_markdown(made)
    for text in (html, markdown):
        assert "Calibration error by number of bins" in text and "Slices" in text and "Classes" in text
        assert "<script>" not in text and "source = <b>" not in text and "&lt;b&gt;" in text
    for text in (render_html(report), render_markdown(report)):
        assert "Slices" not in text and "Classes" not in text, "older reports have none"


def test_no_number_is_a_negative_zero() -> None:
    assert [format_number(key, -1e-9) for key in ("accuracy", "nll", "brier")] == ["0.0", "0.000", "0.000"]
    assert [format_number(key, -0.5) for key in ("accuracy", "nll")] == ["-50.0", "-0.500"]
    assert amounts("accuracy")(-1e-9) == "0.00 %" and amounts("nll")(-1e-9) == "0.0000"
