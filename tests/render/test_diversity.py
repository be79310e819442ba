from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from sve_cli.diversity import DistanceRow, Diversity, PairMeasure, RankCorrelation
from sve_cli.render.diversity import distance_table, measure_table, pair_table, render_html, render_markdown
from sve_cli.render.figures import pairs_svg

HOSTILE = "<script>alert(1)</script>|x"


@pytest.fixture
def found() -> Diversity:
    some = RankCorrelation(0.448, -0.01, 0.52, 0.088)
    nothing = RankCorrelation(math.nan, None, None, math.nan)
    return Diversity(
        title=f"Diversity on {HOSTILE}",
        dataset=HOSTILE,
        split="test",
        members=3,
        n=1234,
        headline=["First.", "Second."],
        pairs={
            "disagreement": PairMeasure(
                "Disagreement", "Share.", "higher", [[0, 0.0411, 0.05], [0.0411, 0, 0.06], [0.05, 0.06, 0]]
            ),
            "kl": PairMeasure("KL divergence", "KL.", "higher", [[0, 0.1, 0.2], [0.3, 0, 0.2], [0.2, 0.2, 0]]),
            "sigma_cosine": PairMeasure(
                "Cosine in Σ", "Cosine.", "lower", [[1, -0.5, 0.5], [-0.5, 1, math.nan], [0.5, math.nan, 1]]
            ),
        },
        distance=[DistanceRow("test", 1234, 0.8471, {"mutual_information": some, "expected_entropy": nothing})],
        notes=[HOSTILE],
        provenance={"seed": 0},
    )


def test_tables_hold_the_numbers(found: Diversity) -> None:
    rows = {row[0]: row[1:] for row in measure_table(found).rows}
    assert rows["Disagreement %"] == ["5.04", "4.11", "6.00", "higher"]
    assert rows["Cosine in Σ"] == ["0.000", "-0.500", "0.500", "lower"]
    pairs = {row[0]: row[1:] for row in pair_table(found).rows}
    assert list(pairs) == ["0 and 1", "0 and 2", "1 and 2"]
    assert pairs["0 and 1"] == ["4.11", "0.2000", "-0.500"]  # the divergence: mean of 0.1 and 0.3
    assert pairs["1 and 2"][2] == "–"
    table = distance_table(found)
    assert table is not None
    assert table.rows == [["test", "1,234", "0.847", "0.448 (-0.010 to 0.520)", "–", "0.088"]]


def test_views_are_safe_and_whole(found: Diversity, strict_page: Callable[[str], None]) -> None:
    html, text = render_html(found), render_markdown(found)
    strict_page(html)
    assert "<script" not in html and "&lt;script&gt;" in html and "http" not in html
    assert html.count("<svg") == 3 and html.count("<h1") == 1
    assert "<script" not in text and "\\|x" in text
    for value in ("5.04", "0.448 (-0.010 to 0.520)", "Second."):
        assert value in text
    assert "0.448" in html and "(-0.010 to 0.520)" in html


def test_squares_are_as_strong_as_their_values() -> None:
    drawing = pairs_svg([[1.0, -0.5], [0.25, 1.0]], [["x", "a"], ["b", "x"]], 1.0, "y")
    found = re.findall(r'<rect class="(solid-\w+)" fill-opacity="([\d.]+)"', drawing)
    assert [(style, float(opacity)) for style, opacity in found] == [
        ("solid-id", 0.0),
        ("solid-ood", pytest.approx(0.225, abs=0.01)),
        ("solid-id", pytest.approx(0.11, abs=0.01)),
        ("solid-id", 0.0),
    ]
    assert ">a</text>" in drawing and ">b</text>" in drawing and ">x</text>" not in drawing
    many = pairs_svg([[0.5] * 16 for _ in range(16)], [["t"] * 16 for _ in range(16)], 1.0, "y")
    assert ">t</text>" not in many and many.count('class="cell"') == 256
