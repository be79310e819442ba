from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sve_cli.findings import Comparison, Curve, CurvePoint, Difference, MemberCurves, Pair
from sve_cli.render import comparison as views
from sve_cli.render import members as member_views

HOSTILE = "\"><script>alert(1)</script>'&|"


class Balanced(HTMLParser):
    """Every tag is closed; what was opened is kept."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def row(key: str, label: str, direction: str, numbers: tuple[float, ...], p: float | None, holm: float | None) -> Difference:
    """Numbers: A, B, low, high, samples needed."""
    a, b, low, high, needed = numbers
    metric, group = key.rpartition(".")[2], "far" if key.startswith("ood.") else ""
    error = (high - low) / 4
    return Difference(
        key, metric, group, label, direction, "What it is.", 400, a, b, b - a, low, high, error, p, holm, int(needed) or None  # type: ignore[arg-type]
    )  # fmt: skip


def rows() -> list[Difference]:
    """B better on accuracy, A better on NLL, ties on ECE and AUROC, more entropy, nothing at all after scaling."""
    return [
        row("accuracy", "Accuracy", "higher", (0.95, 0.96, 0.004, 0.016, 283), 0.004, 0.02),
        row("nll", "NLL", "lower", (0.2, 0.22, 0.01, 0.03, 196), 0.0005, 0.0025),
        row("ece_top1_w15", "ECE", "lower", (0.01, 0.008, -0.006, 0.002, 3140), 0.4, 0.8),
        row("entropy_mean", "Total uncertainty", "none", (0.1, 0.2, 0.05, 0.15, 126), None, None),
        row("temperature.nll", "NLL", "lower", (0.2, 0.2, 0.0, 0.0, 0), 1.0, 1.0),
        row("ood.far.entropy.auroc_ood", "AUROC by entropy", "higher", (0.9, 0.91, -0.01, 0.03, 3925), 0.4, 0.8),
    ]


def made(name: str = "new", others: int = 1) -> Comparison:
    pair = Pair(name, 4, 400, 3, 0, ["It is so.", "And so."], rows(), ["Only 400 samples."])
    return Comparison("old", 1, "toy:test", [replace(pair, name=f"{name}{i or ''}") for i in range(others)], {"bootstrap": 2000})


def test_the_table_in_points_with_verdicts() -> None:
    table = views.difference_table(rows()[:4])
    assert [cells[:4] for cells in table.rows] == [
        ["Accuracy % ↑", "95.00", "96.00", "+1.00"],
        ["NLL ↓", "0.2000", "0.2200", "+0.0200"],
        ["ECE % ↓", "1.00", "0.80", "−0.20"],
        ["Total uncertainty", "0.10000", "0.20000", "+0.10000"],
    ]
    assert [cells[4:7] for cells in table.rows][:3] == [
        ["+0.40 to +1.60", "0.0040 (0.020)", "280"],
        ["+0.0100 to +0.0300", "0.0005 (0.0025)", "200"],
        ["−0.60 to +0.20", "0.40 (0.80)", "3,100"],
    ]
    assert [cells[7].replace("\N{NO-BREAK SPACE}", " ") for cells in table.rows] == ["B better", "A better", "tie", "B higher"]
    assert table.strong == {0, 1}, "ties and descriptions are not stressed"
    assert views.difference_table(rows()[3:4]).rows[0][5] == "–" and views.difference_table(rows()[4:5]).rows[0][6] == "–"
    narrow = views.narrow_tables(rows()[:1])
    assert narrow[0].rows[0][3] == "+1.00 (+0.40 to +1.60)" and narrow[1].rows == [["Accuracy % ↑", "0.0040 (0.020)", "280"]]


def test_signs_and_small_numbers() -> None:
    assert views.number("nll", 0.0, True) == "0.0000" and views.number("nll", -0.00001, True) == "−0.0000"
    assert views.number("aurc", 0.00123, True) == "+0.00123" and views.number("ece_class_w15", 0.00012) == "0.012"
    assert views.number("nll", float("nan")) == "–"
    assert [views.p_text(p) for p in (1.0, 0.0499, 0.0005)] == ["1.00", "0.050", "0.0005"]


def test_better_for_b_is_drawn_on_the_right() -> None:
    drawing = views.forest_svg(rows()[:3], "x")
    # The plot spans x 158 … 348, no difference at 253; each row reaches the edge with its longer end.
    accuracy, ece = (float(x) for x in re.findall(r'<circle class="dot-(?:id|tie)" cx="([\d.]+)"', drawing))
    (nll,) = (float(x) + 3 for x in re.findall(r'<rect class="dot-ood" x="([\d.]+)"', drawing))
    assert accuracy == pytest.approx(253 + 95 * 0.01 / 0.016, abs=0.1) and nll == pytest.approx(253 - 95 * 0.02 / 0.03, abs=0.1)
    assert ece == pytest.approx(253 + 95 * 0.002 / 0.006, abs=0.1), "a smaller error is better: to the right"
    (bar,) = re.findall(r'class="stroke-id" d="M([\d.]+) [\d.]+L([\d.]+) ', drawing)
    assert [float(x) for x in bar] == pytest.approx([253 + 95 * 0.004 / 0.016, 348], abs=0.1)
    assert views.forest_svg(rows()[4:5], "x").count("253.0") >= 3, "nothing at all is drawn in the middle"


def test_pages_show_every_group_and_nothing_is_run() -> None:
    page = views.render_html(made())
    assert Balanced(page).tags.count("svg") == 3
    for text in ("new against old", "400 paired samples", "After temperature scaling of both", "Telling far from", "Only 400"):
        assert text in page
    assert "http" not in page and "script" not in Balanced(page).tags
    markdown = views.render_markdown(made())
    assert "| **Accuracy % ↑** | **95.00** |" in markdown and "- Note: Only 400 samples." in markdown
    several = views.render_html(made(others=2))
    assert "2 systems against old" in several and Balanced(several).tags.count("svg") == 6 and "new1: Only 400" in several


def test_hostile_names_stay_text(strict_page: Callable[[str], None]) -> None:
    bad = [replace(found, group=HOSTILE if found.group else "", label=HOSTILE) for found in rows()]
    pair = Pair(HOSTILE, 4, 400, 0, 0, [HOSTILE], bad, [HOSTILE])
    found = Comparison(HOSTILE, 1, HOSTILE, [pair, pair], {HOSTILE: HOSTILE})
    strict_page(views.render_html(found))
    assert "script" not in Balanced(views.render_html(found)).tags
    assert "<script" not in views.render_markdown(found)
    curves = MemberCurves(HOSTILE, 2, HOSTILE, 9, 1, [HOSTILE], [replace(curve(), label=HOSTILE, group=HOSTILE)], {}, [HOSTILE])
    strict_page(member_views.render_html(curves))
    assert "script" not in Balanced(member_views.render_html(curves)).tags
    assert "<script" not in member_views.render_markdown(curves)


def test_json_has_the_verdicts() -> None:
    document = json.loads(made().to_json())
    assert [shown["verdict"] for shown in document["pairs"][0]["differences"]] == [
        "B better", "A better", "tie (inside the interval)", "B higher", "tie (inside the interval)", "tie (inside the interval)"
    ]  # fmt: skip
    assert document["schema"] == "sve-comparison/1" and document["pairs"][0]["only_reference"] == 3
    broken = replace(made(), settings={"x": float("nan")})
    assert json.loads(broken.to_json())["settings"] == {"x": None}


def curve(metric: str = "nll", group: str = "") -> Curve:
    points = [
        CurvePoint(1, 2, True, 0.3, 0.25, 0.35, 0.2, 0.4, 0.1, 0.05, 0.15),
        CurvePoint(2, 1, True, 0.2, 0.2, 0.2, 0.1, 0.3, 0.0, 0.0, 0.0),
    ]
    return Curve(metric, metric, group, "AUROC by entropy" if group else "NLL", "lower", "Loss.", 9, points)


def test_member_pages() -> None:
    late = replace(curve("auroc_ood", "far"), points=curve().points[1:])
    curves = [curve(), curve("disagreement"), late]
    found = MemberCurves("new", 2, "toy:test", 9, 2, ["All 2 are."], curves, {"seed": 0}, ["Small."])
    (main, ood) = member_views.size_tables(found)
    assert main[1].columns == ["Members", "NLL ↓"] and main[1].strong == {1}
    assert main[1].rows == [["1", "0.3000 (0.2000-0.4000)"], ["2", "0.2000 (0.1000-0.3000)"]]
    assert ood[0] == "Telling far from the test set" and ood[1].rows[0] == ["1", "–"]
    every = member_views.curve_table(found.curves)
    assert every.rows[0] == ["NLL ↓", "1", "0.3000 (0.2000-0.4000)", "0.2500 to 0.3500", "+0.1000 (+0.0500 to +0.1500)"]
    assert every.rows[1][3:] == ["–", "–"]
    page = member_views.render_html(found)
    assert Balanced(page).tags.count("svg") == 3 and "How many members does new need?" in page and "2 of 1, 1 of 2" in page
    assert "- All 2 are." in member_views.render_markdown(found)


def test_a_curve_is_drawn_where_its_numbers_are() -> None:
    drawing = member_views.curve_svg(curve())
    # x: 0.7 … 2.3 over 46 … 348; y: 0.1 - 0.018 … 0.4 + 0.018 over 148 … 8
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle class="dot-id" cx="([\d.]+)" cy="([\d.]+)"', drawing)]
    expected = [(46 + 302 * (m - 0.7) / 1.6, 148 - 140 * (v - 0.082) / 0.336) for m, v in ((1, 0.3), (2, 0.2))]
    assert dots == [pytest.approx(at, abs=0.1) for at in expected]
    assert len(re.findall(r'class="whisker"', drawing)) == 2
