"""A GitHub workflow that gates every build on calibration, and a first gate file, from the templates in `assets/ci`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

from sve_cli import __version__
from sve_cli.errors import SveError
from sve_cli.foreign import SUFFIXES
from sve_cli.recipe import load_recipe, recipe_names
from sve_cli.rundir import write_text

WORKFLOW = Path(".github/workflows/calibration.yml")
GATES = Path("gates.yaml")
BASELINE = "baseline.json"
_TEMPLATES = Path(__file__).resolve().parent.parent / "assets" / "ci"
_BLOCK = re.compile(r"^# \[(recipe|predictions)\]\n(.*?)^# \[/\1\]\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CiOptions:
    """What the workflow is about.

    Attributes:
        recipe: a shipped recipe or a file below the repository; None: a predictions file.
        predictions: the file that a step of the user's writes.
        package: what pip installs.
    """

    recipe: str | None = "quickstart"
    predictions: str | None = None
    package: str = f"sve-cli=={__version__}"


def installed_from() -> tuple[str, bool]:
    """(what pip installs to have this very package, whether a build can get it): as the installation itself recorded it (PEP 610).

    Not where it was installed from a folder, which a build has not.
    """
    recorded = json.loads(distribution("sve-cli").read_text("direct_url.json") or "{}")
    url, version_control = str(recorded.get("url", "")), recorded.get("vcs_info")
    if version_control:
        return f"sve-cli @ {version_control['vcs']}+{url}@{version_control['commit_id']}", True
    if "archive_info" in recorded and not url.startswith("file:"):
        return f"sve-cli @ {url}", True
    return CiOptions().package, not recorded


def write_ci(root: Path, options: CiOptions) -> list[Path]:
    """Write both files below the repository's folder.

    Raises:
        SveError: one of them exists, or the recipe cannot be used.
    """
    texts = ci_texts(root, options)
    for path in texts:
        if path.exists():
            raise SveError(f"'{path}' exists already; nothing was written.", "Move it away, or choose another folder with --out.")
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def ci_texts(root: Path, options: CiOptions) -> dict[Path, str]:
    """The files' texts by path.

    Raises:
        SveError: the recipe cannot be used, or a name cannot stand in a workflow.
    """
    bins = 15
    if options.predictions is not None:
        _inside(options.predictions, "predictions file")
        if not options.predictions.endswith((*SUFFIXES, ".safetensors")):
            raise SveError(f"'{options.predictions}' is no predictions file.", f"Use {', '.join(SUFFIXES)}.")
    elif options.recipe is not None:
        bins = _bins(root, options.recipe)
    kind = "recipe" if options.predictions is None else "predictions"
    values = {
        "package": options.package, "recipe": options.recipe or "", "predictions": options.predictions or "", "baseline": BASELINE,
    }  # fmt: skip
    quoted = {name: _quoted(value) for name, value in values.items()}
    found = {}
    for target, template in ((WORKFLOW, "calibration.yml"), (GATES, "gates.yaml")):
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        text = _BLOCK.sub(lambda block: block[2] if block[1] == kind else "", text)
        for name, value in (quoted | {"ece": f"ece_top1_w{bins}"}).items():
            text = text.replace(f"@{name}@", value)
        found[root / target] = text
    return found


def _bins(root: Path, recipe: str) -> int:
    """Of a usable recipe."""
    if recipe in recipe_names():
        return load_recipe(recipe).recipe.evaluate.bins
    _inside(recipe, "recipe")
    if not (root / recipe).is_file():
        raise SveError(
            f"There is no recipe '{recipe}' in '{root}'.",
            "Name a shipped recipe (sve recipes list), or a file from that folder on.",
        )
    return load_recipe(str(root / recipe)).recipe.evaluate.bins


def _inside(name: str, what: str) -> None:
    """Refuse a path that a build, which has only the repository, would not find."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or name.startswith("-"):
        raise SveError(f"The {what} '{name}' must lie in the repository.", "Write its path from the repository's folder on.")


def _quoted(value: str) -> str:
    """As a YAML string that GitHub takes as it is."""
    if "${{" in value or not value.isprintable():
        raise SveError(f"'{value!r}' cannot stand in a workflow.", "Use a name without ${{ and control characters.")
    return json.dumps(value, ensure_ascii=False)
