from __future__ import annotations

import re

import pytest

from sve_cli.render.figures import curve_svg, histogram_svg, nice_ticks, reliability_svg, split_svg
from sve_cli.report import ReliabilityBin


def _rects(drawing: str, style: str) -> list[tuple[float, float, float, float]]:
    pattern = rf'<rect class="{style}" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"'
    return [(float(x), float(y), float(w), float(h)) for x, y, w, h in re.findall(pattern, drawing)]


def test_a_bin_is_drawn_where_its_numbers_are() -> None:
    bins = [ReliabilityBin(0.0, 0.5, 0, 0.0, 0.0, 0.0, 1.0), ReliabilityBin(0.5, 1.0, 40, 0.75, 0.5, 0.4, 0.6)]
    drawing = reliability_svg(bins, "x")
    # The plot spans x 42 … 348 and y 28 (accuracy 1) … 258 (accuracy 0).
    assert _rects(drawing, "band") == [(195.0, 120.0, 153.0, 46.0)]
    assert '<circle class="dot-id" cx="271.5" cy="143.0"' in drawing
    assert drawing.count("<circle") == 1 and len(_rects(drawing, "bar-id")) == 1
    assert 'class="diagonal" d="M42.0 258.0L348.0 28.0"' in drawing and ">40</text>" in drawing


def test_histograms_are_shares_of_their_own_side() -> None:
    few, many = (histogram_svg([0, 1, 2], [3, 1], [scale * 1, scale * 3], "x") for scale in (1, 1000))
    assert few == many
    assert few != histogram_svg([0, 1, 2], [1, 3], [1, 3], "x")


def test_split_bar_is_proportional() -> None:
    drawing = split_svg(0.3, 0.1, "x")
    (_, _, aleatoric, _), (_, _, epistemic, _) = _rects(drawing, "solid-id") + _rects(drawing, "solid-ood")
    assert aleatoric == pytest.approx(3 * epistemic) and "aleatoric 75 %" in drawing
    assert split_svg(0.0, 0.0, "x") == ""


def test_rounds_are_separate_lines_and_nothing_is_drawn_of_nothing() -> None:
    history = [{"round": r, "epoch": e, "train_loss": 1.0 / e, "validation_nll": 0.5} for r in (0, 1) for e in (1, 2)]
    drawing = curve_svg(history, "x")
    # two rounds and the legend
    assert drawing.count('class="stroke-ood"') == 3 and "2 rounds" in drawing
    assert curve_svg([], "x") == "" and curve_svg([{"epoch": 1, "seconds": 3.0}], "x") == ""


def test_ticks_are_round() -> None:
    assert nice_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert nice_ticks(-3.2, 4.1, 5) == [-2, 0, 2, 4]
    assert nice_ticks(1, 30, 6) == [5, 10, 15, 20, 25, 30]
    assert nice_ticks(2, 2) == [2]


def test_labels_are_escaped() -> None:
    assert "<b>" not in reliability_svg([], '"<b>') and "&lt;b&gt;" in reliability_svg([], '"<b>')
