"""The package as it is installed: what the wheel holds, and that asking for help costs nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_recipes_assets_and_licence(tmp_path: Path) -> None:
    """Built by the backend itself: no pip, no network."""
    pytest.importorskip("hatchling", reason="Building the wheel needs hatchling: pip install -e '.[dev]'.")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("sve_cli-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"sve_cli/recipes_data/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    for folder in (ROOT / "sve_cli", ROOT / "sve_cli" / "assets"):
        files = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        wanted |= {str(path.relative_to(ROOT)) for path in files}
    assert any(name.startswith("sve_cli/recipes_data/") for name in wanted)
    assert any(name.startswith("sve_cli/assets/") for name in wanted)
    assert wanted <= names, sorted(wanted - names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/")) or name.endswith(".pyc")]

    # The recipes are found from the installed layout too, without the repository beside it.
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "import sve_cli.recipe as r; print(r.__file__, *r.recipe_names(), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True)
    where, *recipes = done.stdout.split("\n")[:-1]
    assert Path(where).is_relative_to(tmp_path / "site")
    assert recipes == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


@pytest.mark.skipif(find_spec("sve_cli.cli") is None, reason="The command line is not there yet.")
def test_help_loads_no_torch() -> None:
    heavy = "{'torch', 'timm', 'transformers', 'datasets', 'sklearn', 'pyarrow', 'numpy'}"
    code = (
        "import sys\nfrom sve_cli.cli import main\nsys.argv = ['sve', '--help']\n"
        f"try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\nassert not {heavy} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout


def test_every_dependency_has_a_lower_bound_and_the_script_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        assert ">=" in requirement, requirement
    assert project["scripts"] == {"sve": "sve_cli.cli:main"}


def test_no_placeholder_is_left() -> None:
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").glob("*.yaml")]
    left = [f"{p.name}: {m}" for p in texts for m in re.findall(r"@[A-Z]+@", p.read_text(encoding="utf-8"))]
    assert len(texts) > 10 and left == []
