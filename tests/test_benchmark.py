"""The arithmetic of the benchmark's table by hand, which results belong together, and files that are none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sve_cli.benchmark import (
    DIVERGED,
    Cell,
    CellResult,
    Diverged,
    Grid,
    GridPoint,
    Spread,
    build_table,
    different_task,
    differing_keys,
    higher_is_better,
    load_cells,
    load_diverged,
    load_grids,
    row_name,
    searched,
    without_folders,
)
from sve_cli.errors import SveError

RECIPE = {"data.name": "digits", "method.name": "sve", "method.members": 4, "train.epochs": 3, "train.lr": None, "seed": 0}


def cell(method: str = "sve", seed: int = 0, metrics: dict[str, Any] | None = None, **changes: Any) -> CellResult:
    """A finished cell; `recipe` adds to the plain one."""
    own = {"method.name": method, "seed": seed, **changes.pop("recipe", {})}
    training = {"seconds": 10.0 + seed, "steps": 60, "peak_memory_mb": 500 + seed, **changes.pop("training", {})}
    plain = CellResult(
        task="toy", recipe={**RECIPE, **own}, limit=None, method=method, members=4, seed=seed, sweep={},
        rates={"factor": 1.0, "lr": 1e-2, "bias_lr": None, "head_lr": 5e-3},
        metrics={"accuracy": 0.9, "nll": 0.3} if metrics is None else metrics,
        parameters={"sigma": 100, "extra_fraction": 0.01, "stored_bytes": 400, "note": "text"}, training=training,
        rows={"test": 9, "validation": 5}, model="tiny", command=f"sve bench toy {seed}", warnings=[], environment={}, run="x",
    )  # fmt: skip
    return replace(plain, **changes)


def grid(method: str, *losses: float | None) -> Grid:
    """A grid with factors 1/3, 1, 3, …"""
    points = [GridPoint(3.0 ** (i - 1), loss, 10.0) for i, loss in enumerate(losses)]
    return Grid(method, 1, RECIPE, points)


def test_content_that_was_changed_between_two_cells_is_found() -> None:
    old, new = {"checkpoint": "a", "test": "b"}, {"checkpoint": "a", "test": "c"}
    with pytest.raises(SveError, match="do not belong in one table: they differ in the test rows"):
        build_table([cell(sources=old), cell("single", sources=new)], {}, None)
    with pytest.raises(SveError, match="'sve, seed 0' and 'sve, seed 1' do not belong in one table: they differ in the test rows"):
        build_table([cell(sources=old), cell(seed=1, sources=new)], {}, None)
    drawn = [cell(seed=s, sources=rows, limit=24) for s, rows in enumerate((old, new))]  # as before data.seed was set with --limit
    build_table(drawn, {}, None)
    with pytest.raises(SveError, match="the test rows"):
        build_table([replace(c, recipe={**c.recipe, "data.seed": 0}) for c in drawn], {}, None)
    hold_outs = [cell(seed=s, sources={**old, "train": str(s), "validation": str(s)}) for s in (0, 1)]
    build_table([*hold_outs, cell("single")], {}, None)  # an older result
    for split in ("train", "validation"):
        with pytest.raises(SveError, match=f"they differ in the {split} rows"):
            build_table([cell(sources={**old, split: "d"}), cell("single", sources={**old, split: "e"})], {}, None)
    build_table([cell(sources={**old, "train": "d"}), cell("single", sources=old)], {}, None)
    with pytest.raises(SveError, match="the checkpoint's content"):
        build_table([cell(sources=old), cell(seed=1, sources={**old, "checkpoint": "z"})], {}, None)
    swept = [cell(sources=old, sweep={"data.name": "x"}), cell(sources=new, sweep={"data.name": "y"})]
    apart = build_table(swept, {}, None)
    note = "Rows have test samples of their own (--sweep data.name): their numbers do not compare, and no best one is marked."
    assert len(apart.rows) == 2 and not apart.one_test and apart.notes == [note]
    together = build_table([replace(c, sources=old) for c in swept], {}, None)
    assert together.one_test and together.notes == []


def test_what_the_numbers_rest_on_is_noted() -> None:
    few = [cell(seed=s, recipe={"data.limit": 2000}, metrics={"accuracy": 0.9, "nll": n}) for s, n in ((0, 0.3), (1, None))]
    table = build_table(few, {}, {"methods": {}, "noisy": ["sve", "single"]})
    assert table.notes == [
        "Trained on at most 2,000 rows (data.limit).",
        "nll is not finite, so that its row shows none: sve, seed 1.",
        "The machine was busy when the times of sve, single were measured: they are rough.",
    ]
    assert "nll" not in table.rows[0].metrics and "accuracy" in table.rows[0].metrics
    swept = [cell(recipe={"data.limit": n}, sweep={"data.limit": str(n)}) for n in (100, 200)]
    assert build_table(swept, {}, None).notes == []
    for value, said in ((None, "null"), (50, "50")):
        beside = [cell(method, recipe={"data.limit": value}) for method in ("single", "heads_only")]
        notes = build_table([*swept, *beside], {}, None).notes
        assert notes[-1] == f"data.limit is {said} in what does not sweep it: single, heads_only."
    members = [cell(recipe={"method.members": 2}, sweep={"method.members": "2"}), cell("single", recipe={"method.members": 1})]
    assert build_table(members, {}, None).notes == []  # every method's own


def test_a_seed_that_is_there_twice_is_refused() -> None:
    with pytest.raises(SveError, match="'sve, seed 0' has two results, 'x' and 'y'"):
        build_table([cell(), cell(seed=1), cell(run="y")], {}, None)


def test_what_diverged_is_a_note_and_a_file(tmp_path: Path) -> None:
    none = Diverged("sve", 2, {"method.members": "16"}, RECIPE, None, "The loss of member 3 is not finite at step 7.")
    [note] = build_table([cell()], {}, None, None, [none]).notes
    assert note == "sve (members=16), seed 2, has no result: The loss of member 3 is not finite at step 7."
    assert load_diverged(tmp_path) == []
    (tmp_path / DIVERGED).mkdir()
    (tmp_path / DIVERGED / "sve-seed2.json").write_text(none.to_json(), encoding="utf-8")
    assert load_diverged(tmp_path) == [none] and load_cells(tmp_path) == []
    (tmp_path / DIVERGED / "sve-seed3.json").write_text(cell().to_json(), encoding="utf-8")
    with pytest.raises(SveError, match="is not of schema"):
        load_diverged(tmp_path)


def test_mean_standard_deviation_and_worst_by_hand() -> None:
    seeds = [cell(seed=s, metrics={"accuracy": a, "nll": n, "disagreement": d})
             for s, a, n, d in [(2, 0.9, 0.5, 0.1), (0, 0.8, 0.2, 0.3), (1, 0.7, 0.2, 0.2)]]  # fmt: skip
    table = build_table(seeds, {}, None)
    [row] = table.rows
    assert row.seeds == [0, 1, 2]
    assert row.metrics["accuracy"].mean == pytest.approx(0.8) and row.metrics["accuracy"].std == pytest.approx(0.1)
    assert row.metrics["nll"].mean == pytest.approx(0.3) and row.metrics["nll"].std == pytest.approx(0.03**0.5)
    worst = {key: spread.worst for key, spread in row.metrics.items()}
    assert worst == {"accuracy": 0.7, "nll": 0.5, "disagreement": None}  # without a direction there is no worst
    assert {s.n for s in row.metrics.values()} == {3}
    assert row.costs["train_seconds"] == pytest.approx(11.0) and row.costs["peak_memory_mb"] == 502
    assert row.parameters == {"sigma": 100.0, "extra_fraction": 0.01, "stored_bytes": 400.0}
    assert table.commands == [f"sve bench toy {s}" for s in (2, 0, 1)]


def test_one_seed_has_no_standard_deviation() -> None:
    [row] = build_table([cell(metrics={"nll": 0.25})], {}, None).rows
    assert row.metrics["nll"] == Spread(0.25, None, 0.25, 1)


@pytest.mark.parametrize(
    ("key", "worst"),
    [
        ("accuracy", 0.1), ("temperature.accuracy", 0.1), ("ood.a.b:test.entropy.auroc_ood", 0.1), ("ood_auroc_entropy", 0.1),
        ("nll", 0.9), ("ood.a.entropy.fpr95_ood_positive", 0.9), ("ece_top1_w15", 0.9), ("entropy_mean", None),
        ("ece_top1_m30", 0.9), ("brier_resolution_w15", 0.1), ("brier_resolution_w7", 0.1), ("brier_uncertainty", None),
        ("risk_at_80", 0.9), ("variation_ratio_mean", None), ("decisions.ood.id_kept", None), ("ood.a.b.aupr_id", 0.1),
    ],
)  # fmt: skip
def test_the_worst_seed_follows_the_metrics_direction(key: str, worst: float | None) -> None:
    assert Spread.of([0.5, 0.1, 0.9], key).worst == worst
    assert (higher_is_better(key) is True) == (worst == 0.1)


def test_means_over_ood_sets_whose_names_hold_dots_and_colons() -> None:
    values = {"ood.far.csv:test.entropy.auroc_ood": 0.9, "ood.near:oos.entropy.auroc_ood": 0.7,
              "ood.far.csv:test.energy.auroc_ood": 0.6, "ood.near:oos.energy.auroc_ood": None,
              "ood.near:oos.entropy.aupr_ood": 0.1}  # fmt: skip
    table = build_table([cell(metrics=values)], {}, None)
    assert table.ood == ["far.csv:test", "near:oos"]
    assert table.rows[0].metrics["ood_auroc_entropy"].mean == pytest.approx(0.8)
    assert "ood_auroc_energy" not in table.rows[0].metrics  # one set has no number: a mean of the others would mislead


def test_groups_of_ood_sets_do_not_count_as_sets() -> None:
    values = {"ood.a.entropy.auroc_ood": 0.9, "ood.b.entropy.auroc_ood": 0.8, "ood.c.entropy.auroc_ood": 0.4,
              "ood.near.entropy.auroc_ood": 0.85}  # fmt: skip
    table = build_table([cell(metrics=values, recipe={"data.ood_near": ["a", "b"], "data.ood_far": []})], {}, None)
    assert table.ood == ["a", "b", "c"] and table.rows[0].metrics["ood_auroc_entropy"].mean == pytest.approx(0.7)
    assert build_table([cell(metrics=values)], {}, None).ood == ["a", "b", "c", "near"]  # without groups it is a set's name


def test_a_metric_that_one_seed_lacks_or_that_is_not_finite_is_left_out() -> None:
    first, second = cell(seed=0, metrics={"nll": 0.3, "brier": None, "aurc": 0.1}), cell(seed=1, metrics={"nll": 0.4, "brier": 0.2})
    [row] = build_table([first, second], {}, None).rows
    assert list(row.metrics) == ["nll"]


def test_rows_are_one_a_sweep_point_and_sorted_by_size() -> None:
    cells = [cell("sve", sweep={"method.members": m}, recipe={"method.members": int(m)}) for m in ("16", "2", "4")]
    table = build_table([*cells, cell("deep_ensemble"), cell("single")], {}, None)
    assert [row.name for row in table.rows] == ["single", "deep_ensemble", "sve (members=2)", "sve (members=4)", "sve (members=16)"]
    assert row_name("sve", {"data.name": "/a/b.csv", "model.name": "c"}) == "sve (data.name=b.csv, model.name=c)"
    assert Cell("sve", 3, {"method.members": "2"}).label == "sve (members=2), seed 3" == replace(cells[1], seed=3).label


def test_grid_best_and_edges() -> None:
    assert grid("sve", 0.5, 0.3, 0.4).best.factor == 1.0 and not grid("sve", 0.5, 0.3, 0.4).at_edge
    assert grid("sve", 0.5, 0.3, 0.2).best.factor == 3.0 and grid("sve", 0.5, 0.3, 0.2).at_edge
    assert grid("sve", 0.2, 0.3, None).at_edge and grid("sve", None, 0.3, None).best.factor == 1.0
    assert grid("sve", 0.3, 0.3, 0.4).best.factor == pytest.approx(1 / 3)  # a tie: the smaller step
    assert not grid("sve", 0.3).at_edge and grid("sve", 0.1, 0.2).seconds == 20.0
    with pytest.raises(SveError, match="sve diverged at every point") as caught:
        _ = grid("sve", None, None).best
    assert "sve:train.lr" in caught.value.hint


def test_the_grid_that_a_cells_rates_come_from() -> None:
    older = grid("sve", 0.5, 0.3, 0.4)  # of one member
    grids = {"single": grid("single", 0.5, 0.4, 0.3), "sve": older, "lora_ensemble": grid("x", None, None)}
    tripled = {"factor": 3.0, "lr": 3e-4, "bias_lr": None, "head_lr": 1e-2}
    deep = cell("deep_ensemble", rates=tripled)
    assert searched(deep, grids) is grids["single"]  # a member of it is trained as `single` is
    assert searched(cell("deep_ensemble"), grids) is None  # trained with other rates than that search chose
    assert searched(replace(deep, method="heads_only"), grids) is None
    assert searched(cell("lora_ensemble"), grids) is None
    table = build_table([deep, cell("sve"), cell("heads_only")], grids, None)
    notes = {row.method: row.notes for row in table.rows}
    assert notes == {"deep_ensemble": ["learning rates × 3 (edge of the grid)"], "sve": ["learning rates × 1"], "heads_only": []}
    assert "3 points a method" in table.notes[0] and "1.0 minutes" in table.notes[0]
    assert "NLL of one member" in table.notes[0] and table.notes[1] == "Learning rates not searched: heads_only."

    now = {"single": grids["single"], "sve": replace(older, members=4), "svfit": grid("svfit", 0.5), "svf": grid("svf", 0.5)}
    assert searched(deep, now) is None  # a search of `single` is its own
    said = build_table([cell("single", rates=tripled, members=1), deep, cell("sve")], now, None).notes
    assert "NLL of all members" in said[0] and said[0].endswith("with the first seed's runs at the chosen rates.")
    assert said[1] == "Learning rates not searched: deep_ensemble."


def test_the_points_of_a_sweep_say_that_their_rates_were_found_without_it() -> None:
    found = {"sve": replace(grid("sve", 0.5, 0.3, 0.4), members=4)}
    swept = [replace(cell(recipe={"method.members": m}, sweep={"method.members": str(m)}), members=m) for m in (2, 16)]
    [searches, shared] = build_table(swept, found, None).notes
    assert "NLL of all members; the search took 0.5 minutes in all, beside the runs." in searches
    assert shared == "The points of a sweep share the learning rates that their method's search found without it."
    [searches] = build_table([cell()], found, None).notes
    assert searches.endswith("with the first seed's runs at the chosen rates.")


def test_notes_claim_equal_steps_only_where_they_are() -> None:
    several = [cell("single"), cell("deep_ensemble", training={"steps": 240})]
    assert any("same number of optimiser steps" in note for note in build_table(several, {}, None).notes)
    swept = [cell(sweep={"train.epochs": e}, recipe={"train.epochs": int(e)}, training={"steps": 20 * int(e)}) for e in ("1", "2")]
    assert not build_table(swept, {}, None).notes
    [note] = build_table([*several, cell("snapshot")], {}, None).notes
    assert "cycles of snapshot" in note and "every other member" in note


def test_a_table_of_limited_rows_says_so() -> None:
    limited = [cell("single", limit=24), cell("sve", limit=24)]
    assert build_table(limited, {}, None).notes == ["Limited to 24 rows a split: not comparable with full runs."]


def test_notes_say_what_scaled_differences_are_against_and_which_rows_have_none() -> None:
    difference = {"difference": 0.1, "low": 0.0, "high": 0.2, "verdict": "B better"}
    paired = {"reference": "sve", "rows": {"single": {"differences": {"nll": difference}}}, "left_out": ["lora has other rows."]}
    left, sampled = build_table([cell()], {}, None, paired).notes
    assert left == "lora has other rows." and "not of other training seeds" in sampled and "a tie (seeds disagree)" in sampled
    rows = [*(cell(seed=s) for s in (0, 1, 2)), cell("single", 1)]
    assert "Paired differences are of fewer seeds than sve has in: single (seed 1)." in build_table(rows, {}, None, paired).notes
    scaled = {"reference": "sve", "rows": {"single": {"differences": {"temperature.nll": difference}}}}
    _, note = build_table([cell()], {}, None, scaled).notes
    assert "'row temperature-scaled, reference not'" in note and "with sve as it is, before temperature scaling" in note


def test_costs_belong_to_the_row_of_their_name() -> None:
    costs = {"methods": {"sve (members=2)": {"train_time": 2.0}, "sve": {"train_time": 9.0}}}
    [row] = build_table([cell(sweep={"method.members": "2"})], {}, costs).rows
    assert row.costs["train_time"] == 2.0


def test_keys_that_only_one_version_knows_do_not_differ() -> None:
    assert differing_keys({"a": 1, "b": 2, "old": 3}, {"a": 1, "b": 5, "new": 4}) == ["b"]


def test_a_precision_of_auto_is_what_it_meant() -> None:
    took = {name: replace(cell(recipe={"train.precision": "auto"}), training={**cell().training, "precision": name})
            for name in ("float32", "bfloat16")}  # fmt: skip
    said = cell(recipe={"train.precision": "float32"})
    assert differing_keys(said.recipe, took["float32"].recipe) == []
    assert differing_keys(said.recipe, {"train.precision": "bfloat16"}) == ["train.precision"]
    assert different_task(said, took["bfloat16"]) == ["train.precision"] and different_task(said, took["float32"]) == []
    assert different_task(cell(recipe={"train.precision": "auto"}), took["bfloat16"]) == []  # not known, or heads alone
    assert different_task(*took.values()) == ["train.precision"]
    swept = replace(took["float32"], sweep={"train.precision": "auto"})
    assert different_task(swept, took["bfloat16"]) == []


def test_different_tasks_are_found_and_swept_keys_are_free() -> None:
    plain = cell()
    assert different_task(plain, cell("single", 3, recipe={"train.lr": 1e-4, "method.members": 1, "new.key": 1})) == []
    longer = cell(recipe={"train.epochs": 9})
    assert different_task(plain, longer) == ["train.epochs"]
    assert different_task(plain, replace(longer, sweep={"train.epochs": "9"})) == []
    assert different_task(plain, replace(plain, limit=5)) == ["--limit"]
    with pytest.raises(SveError, match="do not belong in one table: they differ in data.name"):
        build_table([plain, cell("single"), cell("heads_only", recipe={"data.name": "other"})], {}, None)
    # The two plain ones differ, though each of them may be beside the swept one.
    swept = cell(sweep={"train.epochs": "1"}, recipe={"train.epochs": 1})
    with pytest.raises(SveError, match="'sve, seed 0' and 'single, seed 0' .* train.epochs"):
        build_table([swept, plain, cell("single", recipe={"train.epochs": 9})], {}, None)


def test_seeds_of_one_row_must_be_trained_alike() -> None:
    with pytest.raises(SveError, match="'sve, seed 0' and 'sve, seed 1' .* train.lr"):
        build_table([cell(seed=0), cell(seed=1, recipe={"train.lr": 0.5})], {}, None)


def test_no_cells_are_no_table() -> None:
    with pytest.raises(SveError, match="no finished run"):
        build_table([], {}, None)


def test_written_and_read_again(tmp_path: Path) -> None:
    written = cell(metrics={"nll": float("nan"), "accuracy": 0.5})
    (tmp_path / "sve-seed0.json").write_text(written.to_json(), encoding="utf-8")
    (tmp_path / ".sve-seed1.json.77.tmp.json").write_text("{torn by a kill", encoding="utf-8")
    (tmp_path / "bench.json").write_text("{}", encoding="utf-8")
    [read] = load_cells(tmp_path)
    assert read == replace(written, metrics={"nll": None, "accuracy": 0.5})
    (tmp_path / "grid").mkdir()
    searched_grid = grid("single", 0.5, None)
    (tmp_path / "grid" / "single.json").write_text(searched_grid.to_json(), encoding="utf-8")
    (tmp_path / "grid" / ".sve.json.77.tmp.json").write_text("", encoding="utf-8")
    assert load_grids(tmp_path) == {"single": searched_grid}


def damaged(text: str, **changes: Any) -> str:
    """A document with some keys changed, or removed (None)."""
    document = {**json.loads(text), **{k: v for k, v in changes.items() if v is not None}}
    return json.dumps({k: v for k, v in document.items() if changes.get(k, v) is not None or k == "limit"})


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        ("", "Cannot read"),
        ("[1]", "not of schema sve-bench-cell/1"),
        ('{"schema": "sve-report/1"}', "not of schema sve-bench-cell/1"),
        (grid("sve", 0.1).to_json(), "not of schema sve-bench-cell/1"),
        (damaged(cell().to_json(), metrics=None), "is damaged: metrics"),
        (damaged(cell().to_json(), metrics=[1]), "is damaged: metrics"),
        (damaged(cell().to_json(), seed="0"), "is damaged: seed"),
        (damaged(cell().to_json(), training={"seconds": 1.0, "steps": 2}), "is damaged: training.peak_memory_mb"),
        (damaged(cell().to_json(), rates={}), "is damaged: rates.factor"),
        (damaged(cell().to_json(), metrics={"accuracy": 0.5, "nll": "bad"}), "is damaged: metrics.nll"),
        (damaged(cell().to_json(), metrics={"accuracy": 0.5, "nll": 0.1, "brier": True}), "is damaged: metrics.brier"),
        (damaged(cell().to_json(), metrics={"accuracy": 0.5, "nll": 10**400}), "is damaged: metrics.nll"),
        (damaged(cell().to_json(), metrics={"nll": 0.3}), "is damaged: metrics.accuracy"),
        (damaged(cell().to_json(), metrics={"accuracy": 0.3}), "is damaged: metrics.nll"),
        (damaged(cell().to_json(), parameters={"sigma": "many"}), "is damaged: parameters.sigma"),
        (damaged(cell().to_json(), parameters={"stored_bytes": [1]}), "is damaged: parameters.stored_bytes"),
        (damaged(cell().to_json(), rows={}), "is damaged: rows is"),
        (damaged(cell().to_json(), rows={"test": 0}), "is damaged: rows.test"),
        (damaged(cell().to_json(), rows={"test": "9"}), "is damaged: rows.test"),
        (damaged(cell().to_json(), sweep={"method.members": 2}), "is damaged: sweep.method.members"),
    ],
)
def test_files_that_are_no_cells_are_refused_in_a_sentence(text: str, saying: str, tmp_path: Path) -> None:
    (tmp_path / "sve-seed0.json").write_text(text, encoding="utf-8")
    with pytest.raises(SveError, match=saying) as caught:
        load_cells(tmp_path)
    assert "sve-seed0.json" in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("text", "saying"),
    [
        (cell().to_json(), "not of schema sve-bench-grid/1"),
        (damaged(grid("sve", 0.1).to_json(), recipe=None, settings="6e13"), "is damaged: recipe"),
        (damaged(grid("sve", 0.1).to_json(), points=[{"factor": 1.0}]), "is damaged: validation_nll"),
        (damaged(grid("sve", 0.1).to_json(), points=[3]), "is damaged: GridPoint"),
    ],
)
def test_files_that_are_no_grids_are_refused_in_a_sentence(text: str, saying: str, tmp_path: Path) -> None:
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid" / "sve.json").write_text(text, encoding="utf-8")
    with pytest.raises(SveError, match=saying):
        load_grids(tmp_path)


def test_what_a_newer_version_adds_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "sve-seed0.json").write_text(damaged(cell().to_json(), added_later=[1]), encoding="utf-8")
    assert load_cells(tmp_path) == [cell()]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("/home/me/data/x.csv", "x.csv"), ("/home/me/data/", "data"), ("/my own/data set/x.csv:test", "x.csv:test"),
        ("'/home/me/x.csv' is the data", "'x.csv' is the data"),
        ("data.ood=[/a/b.csv,/c/d.csv:test]", "data.ood=[b.csv,d.csv:test]"),
        ("sve:data.name=/a/b", "sve:data.name=b"), ("(see /var/log/x)", "(see x)"), ("a, /b/c", "a, c"),
        ("and/or", "and/or"), ("https://host/a/b", "https://host/a/b"), ("./a/b", "./a/b"), ("../a/b", "../a/b"), ("~/a", "~/a"),
        ("sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"), ("<b>x</b>", "<b>x</b>"),
        ("1 / 3", "1 / 3"), ("clinc150:oos_test", "clinc150:oos_test"), ("", ""), ("50 %/epoch", "50 %/epoch"),
    ],
)  # fmt: skip
def test_folders_are_cut_and_nothing_else(text: str, cut: str) -> None:
    assert without_folders(text) == cut
    assert without_folders(cut) == cut
    assert without_folders({f"ood.{text}.nll": [text, 1, None]}, [text] if text.startswith("/") else []) == {
        f"ood.{cut}.nll": [cut, 1, None]
    }


def test_known_paths_may_hold_spaces() -> None:
    assert without_folders("set /my own/x.csv is empty", ["/my own/x.csv", "/my own"]) == "set x.csv is empty"
