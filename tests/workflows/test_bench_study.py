"""What `sve bench` promises of a study before anything is trained: rows that can be paired, and faults found at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.main import get_command

from sve_cli.benchmark import EARLIER, Grid, GridPoint, load_cells, load_grids
from sve_cli.cli import app
from sve_cli.data.load import load_data
from sve_cli.errors import RecipeError, SveError
from sve_cli.factors import FactorStore
from sve_cli.recipe import digest, load_recipe
from sve_cli.recipe.schema import recipes_reference
from sve_cli.registry import METHOD_ALIASES, METHODS
from sve_cli.rundir import RunDir
from sve_cli.workflows import bench_builds, bench_checks
from sve_cli.workflows.bench import bench
from sve_cli.workflows.bench_cells import Study, grid_factors
from sve_cli.workflows.bench_checks import _to_make, by_default, check_study
from sve_cli.workflows.bench_worker import Crew, Job
from sve_cli.workflows.session import Silent

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two seeds of single and sve on the digits, in an empty folder; a decomposition fails the test."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a weight was decomposed")

    monkeypatch.setattr(FactorStore, "get", refuse)
    return Study(
        recipe="quickstart", overrides=("seed=5",), methods=("single", "sve"), seeds=2, sweep={}, factors=(1.0,),
        out=tmp_path / "out", runs=tmp_path / "runs",
    )  # fmt: skip


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the checkpoints that the check opens."""
    names: list[str] = []
    load: Callable[..., Any] = bench_builds.load_backbone

    def counted(spec: Any, task_name: str) -> Any:
        names.append(spec.name)
        return load(spec, task_name)

    monkeypatch.setattr(bench_builds, "load_backbone", counted)
    return names


def test_with_a_limit_every_seed_draws_the_rows_of_the_first(study: Study) -> None:
    limited = replace(study, limit=24)
    recipes = [limited.cell_recipe(cell, 1.0).recipe for cell in limited.cells()]
    assert [(r.seed, r.data.seed) for r in recipes] == [(5, 5), (5, 5), (6, 5), (6, 5)]
    tests = [load_data(r.data, "image", r.seed, 24, ("test",)).test for r in recipes[1:3]]
    assert tests[0] is not None and tests[1] is not None and tests[0].ids_N == tests[1].ids_N and len(tests[0]) == 24
    alone = load_recipe("quickstart", ["method.name=sve", "seed=6", "data.seed=5"]).recipe  # a separate run repeats the cell
    assert digest(alone) == digest(recipes[3])
    own = replace(limited, overrides=("seed=5", "data.seed=9"))
    assert {own.cell_recipe(cell, 1.0).recipe.data.seed for cell in own.cells()} == {9}


def test_without_a_limit_nothing_changes(study: Study) -> None:
    recipes = [study.cell_recipe(cell, 1.0).recipe for cell in study.cells()]
    plain = [load_recipe("quickstart", [f"method.name={c.method}", "seed=5", f"seed={c.seed}"]).recipe for c in study.cells()]
    assert [digest(r) for r in recipes] == [digest(r) for r in plain] and {r.data.seed for r in recipes} == {None}


def test_a_grid_has_at_most_seven_points(sve: Any) -> None:
    assert grid_factors("7") == (0.037037, 0.111111, 0.333333, 1.0, 3.0, 9.0, 27.0)
    for points in ("9", "1001", "4", "0", "-3"):
        with pytest.raises(SveError, match=f"not '{points}'"):
            grid_factors(points)
    sve.check_refuses(
        "bench", "quickstart", "--grid", "2001", saying="--grid must be 1 (no search), 3, 5, 7 or factors, not '2001'."
    )


@pytest.mark.parametrize(
    ("methods", "overrides", "saying"),
    [
        ("sve", ["method.params.rank_start=8", "method.params.rank=4"], "'sve' cannot be trained: method.params.rank_start is 8"),
        ("single,sve", ["sve:method.targets=re:nothing"], "'sve' cannot be trained: method.targets: 're:nothing' matches no layer"),
        ("single,lora_ensemble", ["method.exclude=[nothing]"], "'lora_ensemble' cannot be trained: method.exclude: 'nothing'"),
        ("sve_lora", ["method.params.lora_targets=[nothing]"], "'nothing' matches no layer"),
        ("sve,sve_band", ["method.params.rank=4"], "'sve_band' cannot be trained: sve_band trains every direction"),
        ("lora_ensemble", ["method.params.alpha=2"], "'lora_ensemble' cannot be trained: method.params.alpha is set"),
        ("single,sve_band", ["sve_band:method.params.bands=400"], "'sve_band' cannot be trained: method.params.bands is 400"),
    ],
)
def test_what_a_method_refuses_is_refused_before_any_training(
    methods: str, overrides: list[str], saying: str, study: Study, opened: list[str]
) -> None:
    with pytest.raises(SveError) as caught:
        check_study(replace(study, methods=tuple(methods.split(",")), overrides=tuple(overrides)))
    assert saying in str(caught.value) and opened == ["digits_vit"]
    assert ("leave" in caught.value.hint and "out of --methods." in caught.value.hint) == ("," in methods)
    assert not study.out.exists() and not study.runs.exists()


def test_heads_alone_are_refused_where_the_head_is_frozen_unless_nobody_chose_them(study: Study, lab: Any, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text('{"question": "Is it red ?", "choices": ["yes", "no"], "label": 0}\n')
    recipe = tmp_path / "letters.yaml"
    recipe.write_text(
        f"model: {{name: {lab.root / 'llama'}}}\ndata: {{name: {folder}}}\nmethod: {{name: sve, members: 2}}\n"
        "task: {name: multiple_choice}\n"
    )
    letters = replace(study, recipe=str(recipe), methods=("single", "heads_only", "sve"))
    with pytest.raises(SveError) as caught:
        check_study(letters)
    assert caught.value.message.startswith("'heads_only' cannot be trained: heads_only would train nothing")
    assert caught.value.hint == "Write task.head: new. Or leave heads_only out of --methods."
    left = by_default(letters, log := Silent())
    assert left.methods == ("single", "sve") and log.lines[0].startswith("heads_only is left out: the task's head is frozen")
    check_study(left)
    trained = replace(letters, overrides=("task.head=new",))
    assert by_default(trained, Silent()).methods == letters.methods
    check_study(trained)


def test_what_costs_are_relative_to_has_its_own_parameters(study: Study) -> None:
    """`single` is none of the methods, and knows no rank."""
    alone = replace(study, methods=("sve",), overrides=("method.params.rank=8", "train.batch_size=4", "single:train.epochs=2"))
    check_study(alone, costs=True)
    recipe = alone.cost_reference().recipe
    assert (recipe.method.name, recipe.method.members, recipe.train.batch_size, recipe.train.epochs) == ("single", 1, 4, 2)
    assert "rank" not in recipe.method.params
    both = replace(study, overrides=("method.params.embeddings=frozen",), methods=("deep_ensemble", "single"))
    assert both.cost_reference().recipe.method.params["embeddings"] == "frozen"
    wrong = replace(alone, overrides=("single:method.params.rank=8",))
    check_study(wrong)
    with pytest.raises(RecipeError, match=r"for single: .*method\.params\.rank: unknown key"):
        check_study(wrong, costs=True)


@pytest.mark.parametrize("error", [SveError("It cannot be.", "Try again."), RuntimeError("It cannot be. Try again.")])
def test_where_costs_fail_there_is_a_table_all_the_same(study: Study, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(study: Study, log: Any) -> None:
        raise error

    monkeypatch.setattr("sve_cli.workflows.bench.measure_costs", refuse)
    monkeypatch.setattr(Crew, "run", found_nothing_new)
    table = bench(replace(study, seeds=1), log := Silent())
    assert [row.name for row in table.rows] == ["single", "sve"] and (study.out / "bench.md").is_file()
    assert "warning: No costs: It cannot be. Try again." in log.lines


def found_nothing_new(self: Crew, job: Job, label: str) -> dict[str, Any]:
    """A run that took no time."""
    facts: dict[str, Any] = {key: {} for key in ("parameters", "environment", "sources")}
    training = {"seconds": 1.0, "steps": 3, "peak_memory_mb": 1}
    return {**facts, "training": training, "metrics": {"accuracy": 0.5, "nll": 1.0}, "rows": {"test": 8}, "warnings": []}


def test_the_last_row_of_a_sweep_is_checked_too_and_the_checkpoint_opened_once(study: Study, opened: list[str]) -> None:
    swept = replace(study, methods=("sve", "deep_ensemble"), seeds=1, sweep={"method.targets": ["mlp", "re:fc1", "re:nothing"]})
    with pytest.raises(SveError, match=r"'sve \(targets=re:nothing\)' cannot be trained"):
        check_study(swept)
    check_study(replace(swept, sweep={"method.targets": ["mlp", "re:fc1"]}))
    assert opened == ["digits_vit"] * 2
    check_study(replace(study, methods=tuple(METHODS), seeds=1, overrides=("data.limit=9",)))  # all of them can be built
    assert len(opened) == 3


def test_rows_of_one_table_are_trained_in_one_precision(study: Study, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stored = SimpleNamespace(row="sve", label="sve, seed 7", training={"precision": "bfloat16"}, recipe={"train.precision": "auto"})
    monkeypatch.setattr(bench_checks, "load_cells", lambda out: [stored])
    with pytest.raises(SveError) as caught:
        check_study(replace(study, overrides=("train.precision=float32",)))
    assert caught.value.message == "'single' would be trained in float32, but 'sve, seed 7' in bfloat16."
    assert caught.value.hint.startswith("Write train.precision=bfloat16 for all")
    check_study(replace(study, overrides=("train.precision=bfloat16",)))
    check_study(replace(study, sweep={"train.precision": ["float32", "bfloat16"]}))
    check_study(replace(study, methods=("heads_only",), overrides=("data.augment=none",)))  # on features, always float32
    with pytest.raises(SveError, match="'heads_only' would be trained in float32"):
        check_study(replace(study, methods=("heads_only",), overrides=("data.augment=flip",)))
    stored.training.clear()  # heads alone were trained, or an earlier version did
    check_study(replace(study, overrides=("train.precision=float32",)))
    assert set(opened) == {"digits_vit"}


def test_a_precision_for_one_method_alone_is_refused_before_any_training(study: Study, opened: list[str]) -> None:
    """`auto` means float32 for so narrow a network, and is no other key than bfloat16 as long as nothing was trained."""
    with pytest.raises(SveError, match="'sve' would be trained in bfloat16, but 'single' in float32"):
        check_study(replace(study, overrides=("train.precision=auto", "sve:train.precision=bfloat16")))
    assert opened and not study.out.exists()


def test_what_is_finished_needs_no_checkpoint(study: Study, opened: list[str]) -> None:
    study.out.mkdir()
    for cell in study.cells():
        study.result_path(cell).touch()
    assert _to_make(study) == []
    searched = replace(study, factors=(0.333333, 1.0, 3.0))
    assert _to_make(searched) == [searched.grid_cell("single"), searched.grid_cell("sve")]
    (study.out / "grid").mkdir()
    tried = Grid("single", 1, {}, [GridPoint(factor, 0.5, 1.0) for factor in searched.factors])
    study.grid_path("single").write_text(tried.to_json(), encoding="utf-8")
    assert _to_make(searched) == [searched.grid_cell("sve")]
    wider = replace(searched, factors=(*searched.factors, 9.0))  # its new points are trained in the table's precision too
    assert _to_make(wider) == [searched.grid_cell("single"), searched.grid_cell("sve")]
    bench_builds.check_builds([])
    assert opened == []


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"sweep": {"method.params.rank": ["8", "16"]}}, "Leave single out of --methods."),
        ({"overrides": ("method.params.rank=8",)}, "or write METHOD:method.params.rank=8 for one of the others."),
        ({"overrides": ("single:method.params.rank=8",)}, ""),
    ],
)
def test_a_parameter_of_other_methods_is_refused_by_name(change: dict[str, Any], hint: str, study: Study) -> None:
    with pytest.raises(RecipeError) as caught:
        check_study(replace(study, **change))
    [problem] = caught.value.problems
    assert problem.startswith("for single: override 'method.params.rank=8': method.params.rank: unknown key")
    assert caught.value.hint.endswith(hint) and bool(caught.value.hint) == bool(hint)
    with pytest.raises(RecipeError) as caught:
        check_study(replace(study, overrides=("train.epoch=8",)))  # a fault that has nothing to do with the method
    assert caught.value.hint == "" and caught.value.problems[0].startswith("override 'train.epoch=8': train.epoch: unknown key")


def test_an_override_for_a_method_that_is_not_compared_is_named(study: Study) -> None:
    class Said(Silent):
        def warn(self, text: str) -> None:
            raise SveError(text)

    with pytest.raises(SveError, match="^'single:train.lr=1' changes nothing: single is not in --methods.$"):
        bench(replace(study, methods=("sve",), overrides=("single:train.lr=1",)), Said())


def test_nobody_says_that_a_run_may_be_left_out_where_it_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(SveError) as caught:
        RunDir.open(tmp_path / "nosuch")
    assert "left out" not in str(caught.value) and "leave" not in str(caught.value)
    group: Any = get_command(app)
    commands = {name: group.get_command(None, name) for name in ("ood", "compare", "transfer", "members", "export", "evaluate")}
    required = [name for name, c in commands.items() if any(p.name in ("run", "runs") and p.required for p in c.params)]
    assert required == ["compare", "transfer"]
    [sentence] = [line for line in README.read_text(encoding="utf-8").splitlines() if "`RUN` may be left out" in line]
    assert "everywhere" not in sentence and all(f"`{name}`" in sentence for name in required)


def test_the_reference_names_every_method() -> None:
    [row] = [line for line in recipes_reference().splitlines() if line.startswith("| `method.name` |")]
    named = row.rpartition(":")[2].strip(" .|").split(", ")
    assert sorted(named) == sorted([*METHODS, *METHOD_ALIASES])


def test_the_points_of_a_grid_are_tried_at_once_and_none_is_lost(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=30)  # broken unless all three points of the one method are at work

    def wait(self: Crew, job: Job, label: str) -> dict[str, float]:
        if job.kind == "train":
            raise SveError("Enough.", "")
        together.wait()
        return {"validation_nll": job.loaded.recipe.train.head_lr or 0.0, "seconds": 1.0}

    monkeypatch.setattr(Crew, "run", wait)
    wide = replace(study, methods=("single",), seeds=1, factors=grid_factors("3"))
    with pytest.raises(SveError, match=r"Enough\."):
        bench(wide, Silent(), jobs=3, costs=False)
    points = load_grids(study.out)["single"].points
    assert [p.factor for p in points] == [0.333333, 1.0, 3.0]
    rates = [p.validation_nll for p in points]
    assert None not in rates and rates == sorted(set(rates)), "each point has the NLL of its own rates"


def test_a_wider_grid_that_chooses_other_rates_puts_earlier_results_aside(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the advice at the edge of a grid says: the same benchmark with a further factor; and then the first command again."""
    trained: list[str] = []

    def run(self: Crew, job: Job, label: str) -> dict[str, Any]:
        rate = job.loaded.recipe.train.head_lr or 0.0
        if job.kind == "search":
            return {"validation_nll": 1.0 / rate, "seconds": 1.0}  # the larger the better
        trained.append(label)
        metrics = {"accuracy": 0.5, "nll": 1.0 / rate}
        training = {"seconds": 1.0, "steps": 3, "peak_memory_mb": 1}
        facts: dict[str, Any] = {key: {} for key in ("parameters", "environment", "sources")}
        return {**facts, "training": training, "metrics": metrics, "rows": {"train": 8}, "warnings": []}

    monkeypatch.setattr(Crew, "run", run)
    narrow = replace(study, methods=("single", "heads_only"), seeds=2, factors=grid_factors("3"))
    first = bench(narrow, Silent(), jobs=1, costs=False)
    assert len(trained) == 4 and all("edge of the grid" in row.notes[0] for row in first.rows)
    wide, log = replace(narrow, methods=("single",), seeds=1, factors=grid_factors("1/3,1,3,9")), Silent()
    table = bench(wide, log, jobs=1, costs=False)
    assert trained[4:] == ["single, seed 5"], "the other seed was not asked for, the other method not searched"
    said = [line for line in log.lines if "was trained with × 3" in line]
    assert len(said) == 2 and "--seeds 2 trains it anew" in said[1] and "the grid chose × 9 since" in said[0]
    assert sorted(path.name for path in (study.out / EARLIER).iterdir()) == ["single-seed5-x3.json", "single-seed6-x3.json"]
    by_name = {row.name: row for row in table.rows}
    assert by_name["single"].seeds == [5] and "× 9 (edge" in by_name["single"].notes[0]
    assert "× 3 (edge" in by_name["heads_only"].notes[0]
    bench(narrow, log := Silent(), jobs=1, costs=False)
    assert trained[5:] == ["single, seed 6"] and "4 runs: 3 done, 1 to train." in log.lines
    assert {cell.label: cell.rates["factor"] for cell in load_cells(study.out)} == {
        "single, seed 5": 9.0, "single, seed 6": 9.0, "heads_only, seed 5": 3.0, "heads_only, seed 6": 3.0
    }  # fmt: skip
    swept = replace(narrow, sweep={"train.warmup": ["0.05"]}, factors=(1.0,), seeds=1)
    bench(swept, Silent(), jobs=1, costs=False)
    (study.out / ".single-seed5.json.123.tmp.json").write_text("{")  # what a killed process leaves
    before = sorted(path.name for path in study.out.glob("*-seed*.json"))
    bench(narrow, Silent(), jobs=1, costs=False)
    assert sorted(path.name for path in study.out.glob("*-seed*.json")) == before and any("warmup=0.05" in name for name in before)
    with pytest.raises(SveError, match="results with another train.batch_size"):
        bench(replace(narrow, overrides=("train.batch_size=7",)), Silent(), jobs=1, costs=False)
