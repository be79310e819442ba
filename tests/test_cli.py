"""The command line without any network: start-up, usage errors, recipes."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest

from sve_cli import __version__, cli
from sve_cli.commands.options import name_list
from sve_cli.errors import SveError
from sve_cli.recipe import load_recipe, recipe_names

HEAVY = ("torch", "timm", "transformers", "datasets", "sklearn", "scipy", "pyarrow", "pandas")


def call(*arguments: str, probe: str = "") -> subprocess.CompletedProcess[str]:
    """`sve` in a process of its own; `probe` runs there afterwards."""
    code = f"import sys\nfrom sve_cli.cli import run\ncode = run(sys.argv[1:])\n{probe}\nsys.exit(code)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["evaluate", "-h"], ["recipes", "list"], ["nosuch"]])
def test_light_commands_load_nothing_heavy(arguments: list[str]) -> None:
    done = call(*arguments, probe=f"print('loaded', sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)")
    assert done.stderr.splitlines()[-1] == "loaded []"


def test_help_takes_under_a_third_of_a_second() -> None:
    seconds = []
    for _ in range(3):  # the best of three: what others do on the machine is not ours
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "sve_cli.cli", "--help"], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0 and done.stderr == ""
        assert all(name in done.stdout for name in ("decompose", "train", "evaluate", "ood", "export", "recipes"))
    assert min(seconds) < 0.3, seconds


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"sve {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["nosuch"], "nosuch"),
        (["train", "--nosuch"], "--nosuch"),
        (["evaluate", "a", "b"], "b"),
        (["train", "quickstart", "--limit", "many"], "--limit"),
        (["train", "quickstart", "--limit", "-3"], "--limit"),
        (["recipes", "nosuch"], "nosuch"),
        (["recipes", "show"], "name"),
    ],
)
def test_usage_errors_are_exit_code_2(arguments: list[str], saying: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and saying in err and "Traceback" not in err and "This is a bug" not in err


def test_a_process_ends_with_the_code_of_run() -> None:
    done = subprocess.run([sys.executable, "-m", "sve_cli.cli", "train", "--nosuch"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and "--nosuch" in done.stderr and "Traceback" not in done.stderr


TEN_FAULTS = """\
seeds: 1
model: {nam: digits_vit, pooling: middle}
data: {name: digits, holdout: 0.9}
task: {name: regression}
method:
  name: sve
  members: many
  params: {sigma_int: 0.1}
train:
  epochs: -1
  schedule: [cosine]
evaluate: {bins: 1, ood_scores: [entropi]}
"""
# key path -> line
FOUND = {
    "seeds": 1, "model.nam": 2, "model.pooling": 2, "data.holdout": 3, "task.name": 4, "method.members": 7,
    "method.params.sigma_int": 8, "train.epochs": 10, "train.schedule": 11, "evaluate.bins": 12, "evaluate.ood_scores[0]": 12,
}  # fmt: skip


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_all_faults_of_a_recipe_at_once(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text(TEN_FAULTS, encoding="utf-8")
    assert cli.run(["train", "broken.yaml", "train.lr=fast", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    for key, line in FOUND.items():
        assert any(f"broken.yaml:{line}: {key}: " in said for said in lines), key
    assert any("override 'train.lr=fast'" in said and "train.lr: " in said for said in lines)
    assert any("model.name" in said for said in lines)  # what is missing has no line of its own
    assert f"{len(FOUND) + 2} problems in the recipe" in err
    assert [p.name for p in tmp_path.iterdir()] == ["broken.yaml"]


def test_a_tilde_after_an_equals_sign_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No shell expands it there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert cli.run(["init", "ci", "--recipe", "quickstart", "--out=~/project"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["home"] and any((tmp_path / "home" / "project").iterdir())


def test_recipes_list_show_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["recipes", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("quickstart", "arc_easy_llama", "clinc150_minilm", "sst2_bert"))
    assert cli.run(["recipes", "show", "quickstart"]) == 0
    text = capsys.readouterr().out
    assert cli.run(["recipes", "copy", "quickstart"]) == 0
    assert Path("quickstart.yaml").read_text(encoding="utf-8") == text
    assert load_recipe("quickstart.yaml").recipe == load_recipe("quickstart").recipe
    Path("quickstart.yaml").write_text("mine", encoding="utf-8")
    assert cli.run(["recipes", "copy", "quickstart"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("quickstart.yaml").read_text(encoding="utf-8") == "mine"
    Path("folder").mkdir()
    assert cli.run(["recipes", "copy", "quickstart", "folder"]) == 0
    assert Path("folder/quickstart.yaml").read_text(encoding="utf-8") == text
    assert cli.run(["recipes", "copy", "quickstart", "quickstart.yaml/x.yaml"]) == 2


def test_every_shipped_recipe_loads_and_fits_the_printed_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["recipes", "schema"]) == 0
    validator = jsonschema.Draft202012Validator(json.loads(capsys.readouterr().out))
    names = recipe_names()
    assert {"quickstart", "arc_easy_llama", "flowers102_dino", "pets_dinov2", "dtd_dinov2", "cifar100_dinov2"} <= set(names)
    assert {"sst2_bert", "clinc150_minilm", "emotion_minilm", "cifar10_vit"} <= set(names)
    for name in names:
        recipe = load_recipe(name)
        assert cli.run(["recipes", "show", name]) == 0
        text = capsys.readouterr().out
        assert f"sve train {name}" in text, f"the header of {name} does not state its command"
        assert recipe.recipe.method.members >= 1
        assert not list(validator.iter_errors(asdict(recipe.recipe))), name  # PyYAML would read 5e-3 as text
    assert list(validator.iter_errors({"model": {"name": "x"}}))


def test_json_says_what_is_wrong_too(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["evaluate", "--predictions", "nowhere.npz", "--vector"]
    assert cli.run([*wrong, "--json"]) == 2
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert document["exit_code"] == 2 and "--vector" in document["error"] and document["hint"] and document["error"] in shown.err
    assert cli.run(wrong) == 2 and capsys.readouterr().out == ""


@pytest.mark.parametrize(("how", "code"), [(KeyboardInterrupt, 130), (cli._Terminated, 143)])
def test_json_says_that_a_command_was_ended(
    how: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(*arguments: object, **settings: object) -> None:
        raise how

    monkeypatch.setattr("sve_cli.workflows.bench_cells.parse_methods", ended)
    assert cli.run(["bench", "quickstart", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code"] == code and "the same command goes on" in document["hint"]
    assert cli.run(["bench", "quickstart"]) == code and capsys.readouterr().out == ""


def test_a_name_with_a_comma_is_quoted_as_in_csv() -> None:
    assert name_list(['cat, dog,"New York, NY"', "bird"]) == ["cat", "dog", "New York, NY", "bird"] and name_list(None) == []
    with pytest.raises(SveError, match="',' names nothing"):
        name_list([","])
