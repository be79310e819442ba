"""What the options of `sve bench` say: cells, their recipes and files; and nothing of this machine in what is kept."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sve_cli.commands.bench import DEFAULT_METHODS
from sve_cli.errors import RecipeError, SveError
from sve_cli.recipe import LoadedRecipe, load_recipe
from sve_cli.registry import METHOD_ALIASES, METHODS
from sve_cli.workflows.bench import _result
from sve_cli.workflows.bench_cells import (
    Study,
    file_stem,
    flat,
    grid_factors,
    parse_methods,
    parse_sweep,
    rates_of,
    same_settings,
    shown_command,
    split_override,
)
from sve_cli.workflows.bench_checks import check_place, check_study, searches


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Two seeds of sve and single on the digits; nothing is trained here."""
    return Study(
        recipe="quickstart", overrides=(), methods=("single", "sve"), seeds=2, sweep={}, factors=(1.0,),
        out=tmp_path / "out", runs=tmp_path / "runs",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("texts", "sweep"),
    [
        ([], {}),
        (["method.members=1,2, 4"], {"method.members": ["1", "2", "4"]}),
        (["a=1", "b=2,3"], {"a": ["1"], "b": ["2", "3"]}),
        (["data.ood=[x,y],[z]"], {"data.ood": ["[x,y]", "[z]"]}),
        (["a=[[1,2],[3]],4"], {"a": ["[[1,2],[3]]", "4"]}),
        (["a='x,y',\"z,'w\",don't"], {"a": ["'x,y'", '"z,\'w"', "don't"]}),
        (["a=['x]',y],z"], {"a": ["['x]',y]", "z"]}),
        (["p={r: 1, s: 2},{r: 3}"], {"p": ["{r: 1, s: 2}", "{r: 3}"]}),
        (["data.name=a=b,c"], {"data.name": ["a=b", "c"]}),
    ],
)
def test_a_sweep_is_read(texts: list[str], sweep: dict[str, list[str]]) -> None:
    assert parse_sweep(texts) == sweep


@pytest.mark.parametrize(
    ("texts", "saying"),
    [
        ([""], "cannot be read"), (["a"], "cannot be read"), (["a="], "cannot be read"), (["=1"], "cannot be read"),
        (["a=1,,2"], "cannot be read"), (["a=1,"], "cannot be read"), (["a=[1,2"], "cannot be read"),
        (["a='1,2"], "cannot be read"),
        (["a=1,1"], "twice"), (["a=1", "a=2"], "twice"), (["seed=0,1"], "--seeds"), (["method.name=sve,single"], "--methods"),
    ],
)  # fmt: skip
def test_a_sweep_that_means_nothing_is_refused(texts: list[str], saying: str) -> None:
    with pytest.raises(SveError) as caught:
        parse_sweep(texts)
    assert saying in str(caught.value)


def test_methods_are_read_and_unknown_ones_refused() -> None:
    assert parse_methods(" sve, svf ,single") == ("sve", "svf", "single")
    for text, saying in (
        ("sve,deep_ensembel", "Did you mean 'deep_ensemble'?"),
        (",", "names no method"),
        ("sve,sve", "names 'sve' twice"),
        ("sve:train.lr=1", "stands behind the recipe: sve bench RECIPE sve:train.lr=1"),
    ):
        with pytest.raises(SveError) as caught:
            parse_methods(text)
        assert saying in str(caught.value)
    assert parse_methods(DEFAULT_METHODS)


def test_grid_factors() -> None:
    assert grid_factors("1") == (1.0,)
    assert grid_factors("3") == (0.333333, 1.0, 3.0)
    assert grid_factors("5") == (0.111111, 0.333333, 1.0, 3.0, 9.0)
    for points in ("0", "2", "4", "-1", "3.0", "1/3", "three", ""):
        with pytest.raises(SveError, match="--grid must be 1"):
            grid_factors(points)


def test_grid_factors_that_are_listed() -> None:
    assert grid_factors("9,1, 1/3,3") == (0.333333, 1.0, 3.0, 9.0)
    assert grid_factors("0.333333,1e1") == (0.333333, 10.0)
    for text, saying in [
        ("1,x", "'x' is not a factor"), ("1,", "'' is not a factor"), ("1,1/0", "'1/0' is not a factor"),
        ("1,nan", "'nan' is not a factor"), ("1,inf", "'inf' is not a factor"), ("1,1e999", "'1e999' is not a factor"),
        ("1,0", "are not all between"), ("1,-3", "are not all between"), ("1,1001", "are not all between"),
        ("1,3,3.0", "names a factor twice"), ("1,2,3,4,5,6,7,8", "or more than 7"),
    ]:  # fmt: skip
        with pytest.raises(SveError) as caught:
            grid_factors(text)
        assert saying in caught.value.message, text


@pytest.mark.parametrize(
    ("override", "owner", "bare"),
    [
        ("sve:train.lr=1e-2", "sve", "train.lr=1e-2"),
        ("linear_probe:seed=1", "linear_probe", "seed=1"),
        ("heads_only:data.ood=[digits:ood]", "heads_only", "data.ood=[digits:ood]"),
        ("model.name=timm:vit_tiny", None, "model.name=timm:vit_tiny"),
        ("model.name=org/net:main", None, "model.name=org/net:main"),
        ("data.ood=[clinc150:oos_test]", None, "data.ood=[clinc150:oos_test]"),
        ("data.splits.test=cifar10h:test.x=1", None, "data.splits.test=cifar10h:test.x=1"),
        ("method.targets=re:blocks.0=", None, "method.targets=re:blocks.0="),
    ],
)
def test_only_a_method_before_the_key_is_a_prefix(override: str, owner: str | None, bare: str) -> None:
    assert split_override(override) == (owner, bare)


def test_a_prefix_that_is_no_method_is_refused(study: Study) -> None:
    with pytest.raises(SveError, match="the method 'swe', which is unknown. Did you mean 'sve'"):
        check_study(replace(study, overrides=("swe:train.lr=1",)))


def test_an_override_for_one_method_reaches_only_that(study: Study) -> None:
    own = replace(study, overrides=("train.epochs=2", "sve:train.lr=0.5", "data.ood=[digits:ood]", "single:train.lr=0.25"))
    recipes = {method: own.load(method, {}).recipe for method in own.methods}
    assert (recipes["sve"].train.lr, recipes["single"].train.lr) == (0.5, 0.25)
    assert {r.train.epochs for r in recipes.values()} == {2} and recipes["single"].data.ood == ["digits:ood"]
    check_study(own)


def test_members_for_all_are_not_for_one_network(study: Study) -> None:
    own = replace(study, overrides=("method.members=6",), methods=("single", "svf", "svfit", "sve", "deep_ensemble"))
    assert [own.load(m, {}).recipe.method.members for m in own.methods] == [1, 1, 1, 6, 6]
    check_study(own)
    for wrong in (replace(study, overrides=("single:method.members=2",)), replace(study, sweep={"method.members": ["1", "2"]})):
        with pytest.raises(SveError, match="single is one network, but method.members is 2"):
            check_study(wrong)


def test_settings_that_only_one_method_has_are_refused_unless_they_are_its_own(study: Study) -> None:
    check_study(replace(study, overrides=("sve:train.lr=1", "sve:method.targets=mlp", "single:train.weight_decay=0.1")))
    with pytest.raises(SveError, match="'sve' would be trained with another train.epochs than 'single'"):
        check_study(replace(study, overrides=("sve:train.epochs=9",)))
    with pytest.raises(RecipeError, match="method.params.rank"):
        check_study(replace(study, overrides=("method.params.rank=8",)))  # single has no such parameter
    with pytest.raises(RecipeError, match="train.epoch"):
        check_study(replace(study, sweep={"train.epoch": ["1", "2"]}))


def test_cells_come_seed_by_seed(study: Study) -> None:
    swept = replace(study, sweep={"data.limit": ["9", "8"]}, overrides=("seed=5",))
    assert [c.label for c in swept.cells()][:5] == [
        "single (limit=9), seed 5", "sve (limit=9), seed 5", "single (limit=8), seed 5", "sve (limit=8), seed 5",
        "single (limit=9), seed 6",
    ]  # fmt: skip
    seeds = [swept.cell_recipe(c, 1.0).recipe.seed for c in swept.cells()]
    assert seeds == [5] * 4 + [6] * 4


STUDIES = {
    "model.random_init": "false,true", "method.targets": "attention,mlp", "method.last_blocks": "1,2", "method.members": "1,2,4",
    "method.params.rank": "8,32", "method.params.biases": "member,frozen", "data.limit": "100,300",
    "method.params.parametrisation": "relative,absolute", "method.params.member_batches": "independent,shared",
    "method.params.sigma_init": "0,0.01,1e-1",
}  # fmt: skip


@pytest.mark.parametrize("key", STUDIES)
def test_every_ablation_gives_one_row_a_value(key: str, study: Study) -> None:
    swept = replace(study, methods=("sve",), sweep=parse_sweep([f"{key}={STUDIES[key]}"]))
    check_study(swept)
    values = STUDIES[key].split(",")
    cells = [c for c in swept.cells() if c.seed == 0]
    recipes = [swept.cell_recipe(c, 1.0).recipe for c in cells]
    plain = flat(swept.load("sve", {}).recipe)
    read = [flat(r)[key] for r in recipes]
    assert len(set(map(str, read))) == len(values)
    assert [str(v).lower() for v in read] == [{"1e-1": "0.1", "0": "0.0"}.get(v, v) for v in values]
    assert all(flat(r) == {**plain, key: v} for r, v in zip(recipes, read, strict=True))  # nothing else changes
    assert [c.row for c in cells] == [f"sve ({key.rpartition('.')[2]}={v})" for v in values]
    paths = {swept.result_path(c) for c in swept.cells()} | {swept.run_folder(c, r) for c, r in zip(cells, recipes, strict=True)}
    assert len(paths) == 3 * len(values)


def test_all_learning_rates_scale_together(study: Study) -> None:
    own = replace(study, overrides=("train.bias_lr=2e-3", "train.head_lr=7e-3"))
    for method in METHODS:
        own = replace(own, methods=(method,))
        cell = own.cells()[0]
        plain = own.load(method, {}).recipe
        assert own.cell_recipe(cell, 1.0).recipe == plain  # not even made explicit
        scaled = own.cell_recipe(cell, 3.0).recipe
        before, after = rates_of(plain), rates_of(scaled)
        assert after == {name: pytest.approx(3 * rate) for name, rate in before.items() if rate is not None}
        assert replace(scaled, train=plain.train) == plain
        unset = replace(own, overrides=()).cell_recipe(cell, 1 / 3).recipe
        assert unset.train.bias_lr is None  # a tenth of lr, which is scaled
        assert unset.train.lr == pytest.approx(rates_of(replace(own, overrides=()).load(method, {}).recipe)["lr"] / 3, rel=1e-5)


def test_a_search_trains_the_cells_of_the_first_seed(study: Study) -> None:
    own = replace(study, methods=("sve", "deep_ensemble"), factors=(0.333333, 1.0, 3.0), sweep={"method.members": ["2", "3"]})
    assert searches(own) == ["sve", "deep_ensemble"] and searches(replace(own, factors=(1.0,))) == []
    for method in own.methods:
        recipe = own.cell_recipe(own.grid_cell(method), 3.0).recipe
        first = next(c for c in replace(own, sweep={}).cells() if c.method == method)
        assert first.seed == recipe.seed and recipe == own.cell_recipe(first, 3.0).recipe
        assert (recipe.method.members, recipe.seed) == (4, study.load(method, {}).recipe.seed)  # not swept
    assert own.grid_path("sve") == study.out / "grid" / "sve.json"


def test_the_same_settings_are_known_again_across_versions(study: Study) -> None:
    recipe = study.load("sve", {}).recipe
    stored = flat(recipe)
    assert same_settings(stored, recipe) == []
    older = {k: v for k, v in stored.items() if k not in ("train.clip", "method.params.form")}
    assert same_settings(older, recipe) == []  # what it does not know yet is at its default
    assert same_settings({**stored, "train.gone": 1}, recipe) == []
    assert same_settings({**stored, "train.epochs": 1}, recipe) == ["train.epochs"]
    changed = replace(recipe, train=replace(recipe.train, clip=2.0))
    assert same_settings(older, changed) == ["train.clip"]


def test_different_rows_never_share_a_file() -> None:
    points = [
        {}, {"a.b": "1"}, {"a.b": "1-"}, {"a.b": "-1"}, {"a.b": "1e-1"}, {"b": "x*"}, {"b": "x+"}, {"b": "x?"}, {"b": "[x,y]"},
        {"b": "[x y]"}, {"b": "x=1"}, {"b": "x, c=1"}, {"b": "x", "c": "1"}, {"b": "y" * 300}, {"b": "y" * 301}, {"b": "é"},
        {"b": "ö"}, {"b": "../x"}, {"b": "x/../../y"}, {"b": "\x00"},
    ]  # fmt: skip
    stems = [file_stem("sve", point) for point in points]
    assert len(set(stems)) == len(stems)
    for stem in stems:
        assert Path(stem).name == stem and len(stem) < 120 and stem.isascii() and stem.isprintable() and not stem.startswith(".")
    assert stems[0] == "sve" and stems[1] == "sve-b=1" and stems[4] == "sve-b=1e-1"  # plain ones stay readable
    names = [file_stem(m, {}) for m in (*METHODS, *METHOD_ALIASES)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"sweep": {"data.name": ["digits", "nope"]}}, r"'sve \(name=nope\)' cannot be trained: Data set 'nope'"),
        ({"overrides": ("data.ood=['digits:ood', 'held_out_classes', './none.csv']",)}, "'sve' cannot be trained: .*none.csv"),
    ],
)
def test_a_set_that_is_not_there_is_found_out_first(
    study: Study, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], saying: str
) -> None:
    monkeypatch.setattr("sve_cli.workflows.bench_checks.check_builds", lambda rows, stored, one_precision: None)
    check_study(study)
    with pytest.raises(SveError, match=saying):
        check_study(replace(study, methods=("sve",), **change))


def test_swept_files_of_one_name_are_refused(study: Study) -> None:
    with pytest.raises(SveError, match="Two rows would be called"):
        check_study(replace(study, methods=("sve",), sweep={"data.name": ["/a/x.csv", "/b/x.csv"]}))
    with pytest.raises(SveError, match="Two sets of data.ood are called 'x.csv'"):
        check_study(replace(study, overrides=("data.ood=[/a/x.csv,/b/x.csv]",)))


def test_a_shown_command_has_no_folders_and_is_still_one_command() -> None:
    words = ["sve", "bench", "/home/me/my recipes/r.yaml", "model.name=/models/a b", "data.ood=[/d/x.csv,/d/y.csv:test]",
             "sve:train.lr=1e-2", "--out", "/results/clinc", "--limit=5", "data.name=../d/z", "--sweep",
             "data.name=/p/q,/p/r"]  # fmt: skip
    assert shlex.split(shown_command(words)) == [
        "sve", "bench", "r.yaml", "model.name=a b", "data.ood=[x.csv,y.csv:test]", "sve:train.lr=1e-2", "--out", "clinc",
        "--limit=5", "data.name=../d/z", "--sweep", "data.name=q,r",
    ]  # fmt: skip


def test_nothing_that_is_kept_names_a_folder_of_this_machine(study: Study, tmp_path: Path) -> None:
    home = tmp_path / "home of me"
    home.mkdir()
    (home / "net").mkdir()
    own = replace(
        study, methods=("sve",), command=shown_command(["sve", "bench", f"model.name={home}/net", "--out", str(home)]),
        overrides=(f"model.name={home}/net", f"data.name={home}/d.csv", f"data.ood=[{home}/o.csv,{home}/p.csv:x]",
                   f"data.splits.validation={home}/v.csv"),
        sweep={"data.splits.test": [f"{home}/t.csv:test", f"{home}/u.csv"]},
    )  # fmt: skip
    cell = own.cells()[0]
    loaded: LoadedRecipe = own.cell_recipe(cell, 1.0)
    found: dict[str, Any] = {
        "metrics": {"nll": 0.5, f"ood.{home}/o.csv:test.entropy.auroc_ood": 0.9},
        "parameters": {"sigma": 3, "factors": f"{home}/cache", "places": ["/opt/x/y"]},
        "training": {"seconds": 1.0, "steps": 2, "peak_memory_mb": 3, "best": [{"epoch": 1}], "command": f"sve {home}"},
        "warnings": [f"'{home}/o.csv' is the data this run was trained on.", "Read from /opt/data/x.csv: 3 rows."],
        "environment": {"torch": "2", "library": "/usr/lib/x.so"},
        "rows": {"test": 1, "validation": 1}, "sources": {"checkpoint": "c0", "test": "d1"},
    }  # fmt: skip
    result = _result(cell, own, loaded, 1.0, own.run_folder(cell, loaded.recipe), found)
    text = result.to_json()
    assert str(tmp_path) not in text and "home of me" not in text.replace("--out 'home of me'", "")
    assert "/opt" not in text and "/usr" not in text and '"/' not in text
    assert result.metrics == {"nll": 0.5, "ood.o.csv:test.entropy.auroc_ood": 0.9}
    assert result.warnings == ["'o.csv' is the data this run was trained on.", "Read from x.csv: 3 rows."]
    assert result.model == "net" and result.recipe["data.ood"] == ["o.csv", "p.csv:x"]
    assert result.row == cell.row == "sve (test=t.csv:test)"
    assert same_settings(result.recipe, loaded.recipe) == []  # and it is still known again
    assert load_recipe("quickstart").recipe.model.name == flat(load_recipe("quickstart").recipe)["model.name"]


def test_a_place_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_place(tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nothing")):
        with pytest.raises(SveError, match="Cannot write in") as caught:
            check_place(place)
        assert "--out" in caught.value.hint
    assert (tmp_path / "file").read_text() == "mine"
