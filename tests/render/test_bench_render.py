"""Views of a benchmark's table: what is marked, what is missing, and names that would like to be more than names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from sve_cli.benchmark import BenchRow, BenchTable, Spread
from sve_cli.render.bench import (
    cost_table,
    format_spread,
    parameter_table,
    pareto_sentence,
    points,
    quality_table,
    render_html,
    render_markdown,
    sections,
    spreads,
    subtitle,
)
from sve_cli.render.pareto import front, pareto_svg

HOSTILE = "<script>alert(1)</script>|*x*"


def row(name: str, nll: float = 0.3, accuracy: float = 0.9, cost: float | None = None, **changes: Any) -> BenchRow:
    """Three seeds; `cost` is what training and latency cost relative to single."""
    metrics = {"accuracy": Spread(accuracy, 0.01, accuracy - 0.02, 3), "nll": Spread(nll, 0.02, nll + 0.05, 3),
               "ece_top1_w15": Spread(0.02, 0.001, 0.025, 3), "disagreement": Spread(0.1, 0.01, 0.12, 3)}  # fmt: skip
    costs = {"train_seconds": 1234.0, "peak_memory_mb": 512.0} | ({} if cost is None else {"train_time": cost, "latency_32": cost})
    plain = BenchRow(name, name.split(" ")[0], 4, {}, [0, 1, 2], metrics,
                     {"sigma": 1000.0, "head": 200.0, "extra_fraction": 0.0123, "stored_bytes": 5e6}, costs, [])  # fmt: skip
    return replace(plain, **changes)


def table(*rows: BenchRow, **changes: Any) -> BenchTable:
    plain = BenchTable("toy", "tiny", {"test": 1000, "validation": 50}, list(rows), ["far:test"], ["A note."], ["sve bench toy"])
    return replace(plain, **changes)


class Page(HTMLParser):
    """Fails on tags that do not close; collects tags, the text of cells by table, and the text of preformatted blocks."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.tables: list[list[list[str]]] = []
        self.code: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "pre":
            self.code.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        elif "pre" in self.open:
            self.code[-1] += data


def test_the_best_mean_of_each_column_is_marked() -> None:
    found = quality_table(
        table(row("single", nll=0.3), row("sve", nll=0.2), row("lora", nll=0.4, accuracy=0.95)), ("accuracy", "nll")
    )
    assert found is not None and found.columns == ["Row", "M", "Seeds", "Accuracy % ↑", "NLL ↓"]
    assert [r[3:] for r in found.rows] == [
        ["90.0 ± 1.0 (88.0)", "0.300 ± 0.020 (0.350)"],
        ["90.0 ± 1.0 (88.0)", "0.200* ± 0.020 (0.250)"],
        ["95.0* ± 1.0 (93.0)", "0.400 ± 0.020 (0.450)"],
    ]


def test_rows_that_share_the_best_mean_are_all_marked_and_one_row_is_not() -> None:
    pair = quality_table(table(row("a"), row("b")), ("nll",))
    assert pair is not None and all("*" in r[3] for r in pair.rows)
    alone = quality_table(table(row("a")), ("nll",))
    assert alone is not None and "*" not in alone.rows[0][3]
    described = quality_table(table(row("a"), row("b")), ("disagreement",))  # no direction: nothing is best
    assert described is not None and described.columns[3] == "Disagreement %" and "*" not in described.rows[0][3]


def test_missing_metrics_are_dashes_and_no_columns() -> None:
    poor = row("poor", metrics={"nll": Spread(0.5, None, 0.5, 1)}, seeds=[0])
    found = quality_table(table(row("rich"), poor), ("accuracy", "nll", "ece_top1_w", "brier"))
    assert found is not None and found.columns[3:] == ["Accuracy % ↑", "NLL ↓", "ECE % ↓"]  # nobody has a Brier score
    assert found.rows[1][3:] == ["–", "0.500", "–"]
    assert quality_table(table(row("rich")), ("kl_soft",)) is None


def test_a_spread_in_words() -> None:
    assert format_spread("ece_top1_w15", Spread(0.0123, 0.004, 0.02, 3)) == "1.2 ± 0.4 (2.0)"
    assert format_spread("ood_auroc_entropy", Spread(0.975, None, 0.975, 1), "*") == "97.5*"
    assert format_spread("temperature.nll", Spread(0.1234, 0.0, 0.2, 2)) == "0.123 ± 0.000 (0.200)"


def test_costs_and_parameters_that_are_not_there() -> None:
    found = cost_table(table(row("single", cost=1.0), row("sve")))
    assert found is not None
    assert found.rows == [["single", "1.00", "1.00", "1,234", "512"], ["sve", "–", "–", "1,234", "512"]]
    bare = cost_table(table(row("sve")))
    assert bare is not None and len(bare.columns) == 3
    parameters = parameter_table(
        table(row("sve"), row("x", parameters={"backbone": 2e6, "stored_bytes": 2e7}, notes=["rates × 3"]))
    )
    assert parameters is not None and parameters.columns[:4] == ["Row", "Σ", "Heads", "Backbone"]
    assert parameters.rows == [
        ["sve", "1,000", "200", "0", "1.23", "5.000", "–"],
        ["x", "0", "0", "2,000,000", "–", "20.0", "rates × 3"],
    ]
    unnoted = parameter_table(table(row("sve")))
    assert unnoted is not None and "Notes" not in unnoted.columns


def difference(value: float, low: float, high: float, verdict: str) -> dict[str, Any]:
    return {"difference": value, "low": low, "high": high, "verdict": verdict, "n": 9, "reference": 0.1, "other": 0.2}


def test_paired_differences_metric_by_metric_with_the_rows_verdict() -> None:
    apart = difference(-0.02, -0.03, -0.01, "B better")
    rows = {
        "lora": {"differences": {"nll": difference(0.02, 0.01, 0.03, "A better"),
                                 "ood.a.b:c.entropy.auroc_ood": difference(0.05, 0.01, 0.09, "B better")}},
        "single": {"differences": {"nll": difference(-0.01, -0.03, 0.01, "tie (inside the interval)"),
                                   "temperature.ece_top1_w15": difference(-0.011, -0.02, -0.005, "B better"),
                                   "both_scaled.nll": {**apart, "by_seed": [-0.03, -0.04, 0.01]},
                                   "both_scaled.brier": {**apart, "by_seed": [-0.03, -0.02, -0.01]}}},
    }  # fmt: skip
    page = table(row("single"), row("lora"), row("sve"), paired={"reference": "sve", "rows": rows})
    shown = dict(sections(page))["Paired differences"]
    assert shown is not None and shown.columns == ["Metric", "Row", "Row minus sve", "Verdict"]
    assert shown.rows == [
        ["NLL ↓", "single", "−0.010 (−0.030 to +0.010)", "tie"],
        ["NLL ↓", "lora", "+0.020 (+0.010 to +0.030)", "worse"],
        ["ECE % ↓, row temperature-scaled, reference not", "single", "−1.1 (−2.0 to −0.5)", "better"],
        ["NLL ↓, both temperature-scaled", "single", "−0.020 (−0.030 to −0.010)", "tie (seeds disagree)"],
        ["Brier ↓, both temperature-scaled", "single", "−0.020 (−0.030 to −0.010)", "better"],
        ["AUROC % ↑, entropy, a.b:c", "lora", "+5.0 (+1.0 to +9.0)", "better"],
    ]
    assert shown.strong == {1, 2, 4, 5}
    assert dict(sections(table(row("sve"), paired={"reference": "sve", "rows": {}})))["Paired differences"] is None


def test_vector_scaling_has_a_section_where_it_was_fitted() -> None:
    fitted = {f"{way}.{key}": Spread(value, None, value, 1) for way, value in (("temperature", 0.3), ("vector", 0.2))
              for key in ("accuracy", "nll", "ece_top1_w15", "brier")}  # fmt: skip
    page = table(row("sve", metrics=fitted, seeds=[0]), row("single"))
    shown = dict(sections(page))["After vector scaling"]
    assert shown is not None and shown.columns == ["Row", "M", "Seeds", "Accuracy % ↑", "NLL ↓", "ECE % ↓", "Brier ↓"]
    assert shown.rows == [["sve", "4", "1", "20.0", "0.200", "20.0", "0.200"], ["single", "4", "3", "–", "–", "–", "–"]]
    assert "## After vector scaling" in render_markdown(page) and "After vector scaling" in render_html(page)
    assert dict(sections(table(row("sve"))))["After vector scaling"] is None


def test_the_front_by_hand() -> None:
    cheap, middle, best = (1.0, 0.5, "cheap"), (2.0, 0.4, "middle"), (8.0, 0.1, "best")
    beaten = [(3.0, 0.4, "as good as middle, dearer"), (1.0, 0.6, "as cheap, worse"), (9.0, 0.2, "worse and dearer")]
    assert front([best, *beaten, middle, cheap]) == [cheap, middle, best]
    assert front([cheap]) == [cheap] and front([]) == []


def test_the_plot_shows_every_row_once_and_the_front_as_dots() -> None:
    rows = [row("single", 0.30, cost=1.0), row("heads_only", 0.5, cost=0.3), row("sve", 0.2, cost=2.0), row("lora", 0.35, cost=2.5)]
    drawing = pareto_svg(points(table(*rows), "train_time"), "Training time")
    assert drawing.count("dot-id") == 3 and drawing.count("dot-ood") == 1
    for each in rows:
        assert drawing.count(f">{each.name}</text>") == 1
    assert pareto_sentence(table(*rows), "train_time").find("(heads_only, single, sve). Whiskers") > 0
    assert ">× 1</text>" in drawing and ">NLL</text>" in drawing and ">Training time</text>" in drawing


def test_whiskers_show_the_seeds_spread() -> None:
    rows = [row("single", 0.30, cost=1.0), row("sve", 0.31, cost=2.0)]
    stds = spreads(table(*rows))
    assert stds == {each.name: each.metrics["nll"].std for each in rows}
    drawn = pareto_svg(points(table(*rows), "train_time"), "x", {"single": 0.1})
    (whisker,) = re.findall(r'class="whisker" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', drawn)
    marker = re.search(r'class="dot-id" cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert marker is not None and whisker[0] == whisker[2] == marker.group(1)
    low, high = float(whisker[1]), float(whisker[3])
    assert (low + high) / 2 == pytest.approx(float(marker.group(2)), abs=0.1)
    # the axis reaches 0.1 of the whole spread, 0.2 to 0.4, beyond the whisker: it takes 1 / 1.2 of the plot's height
    assert (low - high) * 1.2 == pytest.approx(228 - 28, abs=0.2)
    assert "± one standard deviation" in pareto_sentence(table(*rows), "train_time")
    lone = table(*(replace(each, metrics={"nll": replace(each.metrics["nll"], std=None)}) for each in rows))
    assert spreads(lone) == {} and "standard deviation" not in pareto_sentence(lone, "train_time")


def boxes(drawing: str) -> list[tuple[float, float, float, float]]:
    """Where each row's name is drawn."""
    found = []
    for x, y, anchor, name in re.findall(
        r'<text class="value halo" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]*)<', drawing
    ):
        left = float(x) - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * 6.0 * len(name)
        found.append((left, float(y) - 9, left + 6.0 * len(name), float(y)))
    return found


@pytest.mark.parametrize("step", [0.0, 0.0001, 0.02])
def test_names_of_rows_that_lie_together_do_not_cover_each_other(step: float) -> None:
    names = ["single", "batch_ensemble", "deep_ensemble", "heads_only", "lora_ensemble", "sve (rank=8)", "sve (members=16)"]
    crowd = [(4.0 + step * i, 0.2 + step * (i % 3), name) for i, name in enumerate(names)]
    found = boxes(pareto_svg([(1.0, 0.3, "x"), *crowd], "Cost"))
    assert len(found) == len(names) + 1
    for i, a in enumerate(found):
        assert a[0] >= 0 and a[2] <= 360, a
        assert not any(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for b in found[:i]), (a, names)


def test_one_row_has_no_plot() -> None:
    alone = table(row("sve", cost=1.0))
    assert pareto_svg(points(alone, "train_time"), "x") == "" and pareto_sentence(alone, "train_time") == ""
    assert "<figure>" not in render_html(alone) and "asterisk" not in subtitle(alone)
    assert "<figure>" not in render_html(table(row("a", cost=1.0), row("b")))  # only one of them was measured
    assert "<figure>" in render_html(table(row("a", cost=1.0), row("b", nll=0.1, cost=2.0)))


def test_equal_points_and_extreme_costs_are_drawn() -> None:
    for costs in ((1.0, 1.0), (1e-6, 1e6), (1.01, 1.02)):
        drawing = pareto_svg([(costs[0], 0.3, "a"), (costs[1], 0.3, "b")], "x")
        assert "nan" not in drawing and "inf" not in drawing and drawing.count("× ") >= 1


def test_the_page_is_whole_and_names_stay_text(strict_page: Callable[[str], None]) -> None:
    rows = [row(HOSTILE, nll=0.2, cost=1.0), row("sve", cost=2.0)]
    paired = {
        "reference": HOSTILE,
        "rows": {"sve": {"differences": {f"ood.{HOSTILE}.entropy.auroc_ood": difference(1, 1, 1, "B better")}}},
    }
    hostile = table(
        *rows, task=HOSTILE, model=HOSTILE, ood=[HOSTILE], notes=[HOSTILE], commands=[f"sve {HOSTILE}", "b"], paired=paired
    )
    text = render_html(hostile)
    strict_page(text)
    page = Page(text)
    assert "script" not in page.tags and not {"link", "img", "iframe"} & page.tags
    assert "http" not in text and "src=" not in text
    assert page.code == [f"sve {HOSTILE}", "b"]
    assert page.tables[0][1][0] == HOSTILE
    assert len(page.tables) == sum(content is not None for _, content in sections(hostile))


def test_markdown_has_headings_tables_and_commands() -> None:
    rows = [row(HOSTILE, nll=0.2), row("sve")]
    text = render_markdown(table(*rows, task=HOSTILE, commands=["sve bench toy --out '*x*'"]))
    assert "<script>" not in text and "\\|\\*x\\*" in text
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Quality", "## Members", "## Costs", "## Parameters", "## Notes", "## Commands",
    ]  # fmt: skip
    assert "```\nsve bench toy --out '*x*'\n```" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_the_subtitle_says_how_to_read_the_table() -> None:
    several = subtitle(table(row("a"), row("b", seeds=[0])))
    assert "tiny; samples: 1,000 test, 50 validation; OOD: far:test; 1 to 3 seeds a row." in several
    assert "worst seed in parentheses" in several and "asterisk" in several
    once = subtitle(table(row("a", seeds=[0]), ood=[]))
    assert once == "tiny; samples: 1,000 test, 50 validation; 1 seed a row."
    assert dict(sections(table(row("a"), ood=["x", "y"]))).keys() >= {"Out-of-distribution detection: AUROC %, mean of 2 sets"}


def test_rows_of_different_test_samples_are_not_ranked() -> None:
    rows = [row("a", 0.2, cost=1.0), row("b", 0.3, cost=2.0)]
    apart = replace(table(*rows), one_test=False)
    assert "samples: each row its own;" in subtitle(apart) and "asterisk" not in subtitle(apart)
    found = quality_table(apart, ("accuracy", "nll"))
    assert found is not None and not any("*" in text for line in found.rows for text in line)
    assert "<figure>" in render_html(table(*rows)) and "<figure>" not in render_html(apart)


def test_cached_factors_are_shown_where_all_rows_with_factors_say_them() -> None:
    known = {"sigma": 10.0, "stored_bytes": 1e6, "factor_bytes": 2.5e7}
    both = parameter_table(table(row("single", parameters={"backbone": 9.0}), row("sve", parameters=known)))
    assert both is not None and both.columns[-1] == "Factors in the cache, MB"
    assert [cells[-1] for cells in both.rows] == ["–", "25.0"]
    older = {k: v for k, v in known.items() if k != "factor_bytes"}
    some = parameter_table(table(row("sve", parameters=known), row("svfit", parameters=older)))
    assert some is not None and not any("Factors" in head for head in some.columns)
