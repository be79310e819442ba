from __future__ import annotations

import re
from itertools import pairwise

import pytest

from sve_cli.render.curves import Heat, Strip, bars_svg, bins_svg, heat_svg, risk_svg, strips_svg
from sve_cli.report import BinChoice, RiskCurve


def test_the_risk_curve_is_drawn_where_its_numbers_are() -> None:
    curve = RiskCurve([0.25, 1.0], [0.1, 0.2], [0.05, 0.15], [0.9, 0.25], [0.0, 0.2], 0.2)
    drawing = risk_svg(curve, [(1.0, 0.2)], [], "x")
    # x 42 … 348; y 228 (no errors) … 44 (1.25 times 20 %); the band is cut at the top.
    assert '<path class="stroke-id" d="M118.5 154.4L348.0 80.8"/>' in drawing
    assert '<path class="stroke-ood" d="M118.5 228.0L348.0 80.8"/>' in drawing
    assert '<path class="diagonal" d="M42.0 80.8L348.0 80.8"/>' in drawing, "at random: flat"
    assert 'class="band" d="M118.5 44.0L' in drawing and '<circle class="dot-id" cx="348.0" cy="80.8"' in drawing


def test_the_band_of_half_the_answers_is_inside_the_figure() -> None:
    curve = RiskCurve([0.5, 1.0], [0.0, 0.004], [0.0, 0.001], [0.016, 0.015], [0.0, 0.004], 0.004)
    assert 'class="band" d="M195.0 44.0L348.0 55.5L348.0 216.5L195.0 228.0' in risk_svg(curve, [], [], "x")


def test_the_number_of_bins_in_use_is_marked() -> None:
    choices = [BinChoice(5, 0.1, 0.2), BinChoice(15, 0.2, 0.1)]
    assert bins_svg(choices, 15, "x").count('class="diagonal"') == 1 and bins_svg(choices, 7, "x").count('class="diagonal"') == 0
    # y 178 (no error) … 44 (1.25 times 20 %)
    assert re.findall(r'cy="([\d.]+)" r="3.2"', bins_svg(choices, 7, "x")) == ["124.4", "70.8"]


def test_members_stand_on_the_scale_of_their_line() -> None:
    drawing = strips_svg([Strip("NLL", [0.2, 0.3], 0.1, "0.100", "0.300")], "x")
    assert re.findall(r'<circle class="dot-id" cx="([\d.]+)" cy="52.0"', drawing) == ["180.0", "340.0"]
    assert '<rect class="dot-ood" x="17.0"' in drawing and strips_svg([], "x") == ""
    assert "nan" not in strips_svg([Strip("NLL", [0.1, 0.1], 0.1, "0.1", "0.1")], "x")


def test_bars_share_one_scale() -> None:
    drawing = bars_svg([("a", 0.3, 0.1), ("b", 0.1, 0.1)], "x")
    widths = [
        float(w)
        for w in re.findall(r'<rect class="solid-(?:id|ood)" x="[\d.]+" y="[\d.]+" width="([\d.]+)" height="18.0"', drawing)
    ]
    assert widths == [222.0, 74.0, 74.0, 74.0] and bars_svg([("a", 0.0, 0.0)], "x") == ""


def test_a_heat_map_is_darker_where_more_moved() -> None:
    heat = Heat(["a", "b"], ["0", "1"], [[0.0, 1.0], [None, -0.505]], [["w", "<x>"], ["y", "z"]], "Block", 0.0, 1.0, ("0", "1"))
    drawing = heat_svg(heat, "x")
    cells = re.findall(r'<rect class="(solid-\w+)" fill-opacity="([\d.]+)"[^>]*><title>([^<]*)</title>', drawing)
    assert cells == [("solid-id", "0.05", "w"), ("solid-id", "1.00", "&lt;x&gt;"), ("solid-ood", "0.53", "z")]


@pytest.mark.parametrize("blocks", [2, 12, 80])
def test_names_of_many_blocks_do_not_run_into_each_other(blocks: int) -> None:
    names = [str(i) for i in range(blocks)]
    heat = Heat(["query"], names, [[0.5] * blocks], [["t"] * blocks], "Block", 0.0, 1.0, ("0", "1"))
    found = re.findall(r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="middle">(\d+)</text>', heat_svg(heat, "x"))
    places = [float(x) for x, _ in found]
    assert found[0][1] == "0" and all(b - a >= 5.9 * len(names[-1]) for a, b in pairwise(places))
