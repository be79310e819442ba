"""Strict loading of recipes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import pytest

from sve_cli.errors import RecipeError, SveError
from sve_cli.recipe import digest, library, load_recipe, load_recipe_text, recipe_names, recipe_text, resolve_dict, to_yaml
from sve_cli.recipe.reader import _SYNONYMS
from sve_cli.recipe.spec import DataSpec, EvaluateSpec, MethodSpec, ModelSpec, Recipe, SplitSpec, TaskSpec, TrainSpec

pytestmark = pytest.mark.usefixtures("fake_methods")


def problems_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe_text(text, "r.yaml", overrides)
    return caught.value.problems


BROKEN = """\
model: {name: ""}
data:
  name: digits
  ood: [mnist, " "]
  splits: {trian: train}
task: {name: token_classification}
method:
  name: svf
  members: 3
  params:
    sigma_init: 2
    bogus: 1
  targets: "re:(("
train:
  lr: 1e-3
  lr: 2e-3
  epochs: 3.0
  batch_size: true
  warmup: yes
  schedule: cosin
  clip: "1.0"
  precison: auto
  betas: [0.9, 1.0]
evaluate:
  ood_scores: [entropy, entrop]
  bins: 1
  confidence: .nan
  bootstrap: many
batch_size: 4
"""

# line, key path, a piece of what must be said
EXPECTED = [
    (1, "model.name", "must not be empty"),
    (4, "data.ood[1]", "must not be empty"),
    (5, "data.splits.trian", "Did you mean 'train'?"),
    (6, "task.name", "token_classification is refused: sve is for classification"),
    (9, "method.members", "'svf' fixes this at 1, found 3"),
    (11, "method.params.sigma_init", "at least 0 and at most 1, found 2"),
    (12, "method.params.bogus", "unknown key"),
    (13, "method.targets", "is not a regular expression"),
    (16, "train.lr", "written twice, on lines 15 and 16"),
    (17, "train.epochs", "write 3"),
    (18, "train.batch_size", "expected a whole number, found true"),
    (19, "train.warmup", "expected a number"),
    (20, "train.schedule", "Did you mean 'cosine'?"),
    (21, "train.clip", "write 1.0 without quotes"),
    (22, "train.precison", "Did you mean 'precision'?"),
    (23, "train.betas", "two numbers from 0 to below 1"),
    (25, "evaluate.ood_scores[1]", "Did you mean 'entropy'?"),
    (26, "evaluate.bins", "at least 2 and at most 1000, found 1"),
    (27, "evaluate.confidence", "finite number"),
    (28, "evaluate.bootstrap", "expected a whole number, found 'many'"),
    (29, "batch_size", "Did you mean 'train.batch_size'?"),
]


def test_all_problems_are_reported_at_once_in_file_order() -> None:
    problems = problems_of(BROKEN)
    assert len(problems) == len(EXPECTED)
    for problem, (line, path, piece) in zip(problems, EXPECTED, strict=True):
        assert problem.startswith(f"r.yaml:{line}: {path}: ")
        assert piece in problem


def test_missing_sections_and_keys() -> None:
    problems = problems_of("model:\ndata: {text: t}\ntask: {name: text_classification}\n")
    assert [p.split(" missing")[0] for p in problems] == ["r.yaml:1: model.name:", "r.yaml:1: method:", "r.yaml:2: data.name:"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yaml:1: the file is empty"),
        ("# nothing\n", "r.yaml:1: the file is empty"),
        ("- a\n", "r.yaml:1: a recipe is a mapping of keys, not a list"),
        ("hello\n", "r.yaml:1: a recipe is a mapping of keys, not 'hello'"),
        ("model:\n\tname: x\n", "r.yaml:2: a tab cannot be used here (indent with spaces)"),
        ("a: 1\nb: x: y\n", "r.yaml:2: not valid YAML: a ':' where none can be"),
        ("a: 1\nb: [1,\n", "r.yaml:3: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: a second document begins here"),
        ("a: " + "[" * 50_000, "r.yaml:1: a[0][0]"),
        ("{a: " * 50_000, "r.yaml:1: a.a"),
        ("\n[1, 2]: x\n", "r.yaml:2: a key must be a single word"),
        ("a: 1\nb: \x01\n", "r.yaml:2: the character U+0001 is not allowed"),
        ('a: "\\UFFFFFFFF"\n', "r.yaml:1: not valid YAML"),
    ],
)
def test_unreadable_text_is_one_sentence_with_a_line(text: str, problem: str) -> None:
    found = problems_of(text)
    assert len(found) == 1
    assert found[0].startswith(problem)


def test_nothing_is_evaluated(tmp_path: Path, good: str) -> None:
    target = tmp_path / "made"
    problems = problems_of(good + f"seed: !!python/object/apply:os.mkdir ['{target}']\n")
    assert problems == [
        "r.yaml:9: seed: the tag tag:yaml.org,2002:python/object/apply:os.mkdir is refused "
        "(remove it; recipes hold plain values only)",
        "r.yaml:9: seed: expected a whole number, found a list",
    ]
    assert not target.exists()


def test_anchors_and_aliases_are_refused(good: str) -> None:
    problems = problems_of(good + "  head_lr: &x 1e-3\n  bias_lr: *x\n")
    assert [p.split(" (")[0] for p in problems] == [
        "r.yaml:9: train.head_lr: the anchor &x is refused",
        "r.yaml:10: train.bias_lr: the alias *x is refused",
    ]


def test_scalars_follow_yaml_1_2(good: str) -> None:
    recipe = load_recipe_text(good + "  warmup: 5E-2\n  weight_decay: 1\n", "r.yaml")
    assert (recipe.train.lr, recipe.train.warmup, recipe.train.weight_decay) == (0.001, 0.05, 1.0)
    assert isinstance(recipe.train.weight_decay, float)
    text = good.replace("  name: digits\n", "  name: digits\n  text: no\n  label: on\n  classes: [yes, off, '1e-3', 1:30, 1_000]\n")
    data = load_recipe_text(text, "r.yaml").data
    assert (data.text, data.label, data.classes) == ("no", "on", ["yes", "off", "1e-3", "1:30", "1_000"])


def test_quoted_number_as_text_and_number_as_text(good: str) -> None:
    assert problems_of(good, "data.text=12") == [
        "override 'data.text=12': data.text: expected text, found 12 (write '12' in quotes)"
    ]
    assert load_recipe_text(good, "r.yaml", ["data.text='12'"]).data.text == "12"


def test_method_params_are_filled_in_the_same_pass(good: str) -> None:
    assert load_recipe_text(good, "r.yaml").method.params == {"sigma_init": 0.01, "biases": "member", "rank": None}
    changed = load_recipe_text(good, "r.yaml", ["method.params.biases=frozen", "method.params.rank=8"])
    assert changed.method.params == {"sigma_init": 0.01, "biases": "frozen", "rank": 8}
    assert problems_of(good, "method.name=needy")[0].startswith("r.yaml:5: method.params.rank: missing")


def test_alias_becomes_its_method_with_fixed_settings(good: str) -> None:
    text = good.replace("name: sve", "name: svf")
    recipe = load_recipe_text(text, "r.yaml")
    assert (recipe.method.name, recipe.method.members) == ("sve", 1)
    assert recipe == load_recipe_text(text, "r.yaml", ["method.members=1"])
    assert digest(recipe) == digest(load_recipe_text(good, "r.yaml", ["method.members=1"]))
    assert "fixes this at 1, found true" in problems_of(text, "method.members=true")[0]


def test_an_alias_of_the_files_method_keeps_what_suits_it(good: str) -> None:
    text = good.replace("  name: sve\n", "  name: sve\n  members: 8\n  params: {biases: frozen}\n") + "  weight_decay: 0.05\n"
    alias = load_recipe_text(text, "r.yaml", ["method.name=svf"])
    assert alias == load_recipe_text(text, "r.yaml", ["method.members=1"])
    assert (alias.method.params["biases"], alias.train.lr, alias.train.weight_decay) == ("frozen", 1e-3, 0.05)
    other = load_recipe_text(text, "r.yaml", ["method.name=heads_only"])  # of another method: nothing that suited this one
    assert (other.method.members, other.train.lr, other.train.weight_decay) == (8, None, TrainSpec.weight_decay)


def test_unknown_method_and_task_name_the_nearest(good: str) -> None:
    problems = problems_of(good.replace("name: sve", "name: sfv").replace("image_classification", "image_clasification"))
    assert problems == [
        "r.yaml:4: task.name: unknown task 'image_clasification' (Did you mean 'image_classification'?)",
        "r.yaml:6: method.name: unknown method 'sfv' (Did you mean 'svf'?)",
    ]


def test_accumulation_must_divide_the_batch(good: str) -> None:
    assert load_recipe_text(good, "r.yaml", ["train.accumulation=8"]).train.accumulation == 8
    assert problems_of(good + "  accumulation: 5\n") == [
        "r.yaml:9: train.accumulation: 5 does not divide batch_size 32 (choose a divisor)"
    ]


def test_overrides_are_scalars_or_flow_values(good: str) -> None:
    recipe = load_recipe_text(
        good,
        "r.yaml",
        [
            "train.lr=2e-2",
            "train.lr=3e-2",
            "data.ood=[a, 'b: c']",
            "evaluate.bins=20",
            "model.revision=null",
            "task.instruction=Answer: a #1 = {x}",
            "data.splits={validation: null}",
            "method.targets=re:.*qkv",
        ],
    )
    assert recipe.train.lr == 0.03
    assert recipe.data.ood == ["a", "b: c"]
    assert recipe.evaluate.bins == 20
    assert recipe.task.instruction == "Answer: a #1 = {x}"
    assert recipe.data.splits.validation is None
    assert recipe.method.targets == "re:.*qkv"


def test_override_problems_name_the_override_not_a_line(good: str) -> None:
    problems = problems_of(good, "train.lr=x", "train.epoch=3", "lr=1", "seed", "train.betas=[1,", "model.name.x=1")
    assert sorted(p.split(" (")[0] for p in problems) == [
        "override 'lr=1': lr: unknown key",
        "override 'model.name.x=1': model.name: is 'some/model', not a section",
        "override 'seed': cannot be read",
        "override 'train.betas=[1,': not valid YAML: expected the node content, but found '<stream end>' while parsing a flow node",
        "override 'train.epoch=3': train.epoch: unknown key",
        "override 'train.lr=x': train.lr: expected a number, found 'x'",
    ]
    assert any("Did you mean 'epochs'?" in p for p in problems)
    assert any("Did you mean 'train.lr'?" in p for p in problems)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("train.lerning_rate", "lr"),
        ("method.n_members", "members"),
        ("train.max_grad_norm", "clip"),
        ("model.dtype", "train.precision"),
    ],
)
def test_a_key_of_another_trainer_is_told_its_name_here(good: str, written: str, meant: str) -> None:
    (problem,) = problems_of(good, f"{written}=1")
    assert problem.endswith(f"unknown key (Did you mean '{meant}'?)")


def test_every_other_name_stands_for_a_key() -> None:
    keys = {f.name for hint in get_type_hints(Recipe).values() if is_dataclass(hint) for f in fields(hint)}
    assert set(_SYNONYMS.values()) <= keys
    assert not keys & set(_SYNONYMS)


def test_round_trip_and_digest(good: str) -> None:
    tricky = ["no", "null", "1e-3", "0x1f", "", "a: b", "tab\there", "ünï → 🙂", "two\nlines", "~", "'quoted'", "- x", "\u2028"]
    recipe = load_recipe_text(good, "r.yaml", ["method.params.biases=frozen"])
    recipe = replace(recipe, data=replace(recipe.data, classes=tricky), train=replace(recipe.train, lr=1e-7))
    again = load_recipe_text(to_yaml(recipe), "again.yaml")
    assert again == recipe
    assert digest(again) == digest(recipe)
    assert resolve_dict(asdict(recipe), "dict") == recipe
    assert digest(recipe) != digest(replace(recipe, seed=1))


def test_a_path_wins_and_bad_files_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good: str) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    (shipped / "quickstart.yaml").write_text(good)
    monkeypatch.setattr(library, "_folder", lambda: shipped)
    monkeypatch.chdir(tmp_path)
    assert recipe_names() == ["quickstart"]
    assert load_recipe("quickstart").source == str(shipped / "quickstart.yaml")
    Path("quickstart").write_text(good + "seed: 7\n")
    loaded = load_recipe("quickstart", ["train.epochs=1"])
    assert (loaded.recipe.seed, loaded.recipe.train.epochs, loaded.name, loaded.source) == (7, 1, "quickstart", "quickstart")
    with pytest.raises(SveError, match="Did you mean 'quickstart'"):
        load_recipe("quickstrat")
    Path("latin.yaml").write_bytes(b"model:\n  name: caf\xe9\n")
    with pytest.raises(RecipeError, match=r"latin\.yaml:2: the file is not UTF-8 text"):
        load_recipe("latin.yaml")
    Path("big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(SveError, match="is not a recipe: it has 1,000,001 bytes"):
        load_recipe("big.yaml")
    with pytest.raises(SveError, match="is a folder"):
        load_recipe(str(shipped))
    Path("bom.yaml").write_bytes(b"\xef\xbb\xbf" + good.encode())
    assert load_recipe("bom.yaml").recipe.data.name == "digits"


def test_every_key_is_documented() -> None:
    for section in (ModelSpec, DataSpec, SplitSpec, TaskSpec, MethodSpec, TrainSpec, EvaluateSpec, Recipe):
        for key in fields(section):
            assert key.metadata["doc"].endswith("."), f"{section.__name__}.{key.name}"


def test_shipped_recipes_start_with_a_comment() -> None:
    for name in recipe_names():
        assert recipe_text(name).startswith("#"), name


def test_importing_recipes_loads_no_torch() -> None:
    code = "import sys, sve_cli.recipe, sve_cli.recipe.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
