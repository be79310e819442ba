"""Validation NLL of variants of a recipe: each line of a file is one variant, its words are overrides.

    python benchmarks/tune.py RECIPE VARIANTS OUT.json [key=value …]

Trains every variant once, keeps no run, and adds to OUT.json what is not there yet. The NLL is that of the mean probability of all
members on the half of the validation split that epochs are selected on; no test set is scored.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sve_cli.errors import SveError
from sve_cli.recipe import load_recipe
from sve_cli.rundir import read_json, write_json
from sve_cli.workflows.bench_cells import shown_command
from sve_cli.workflows.session import Silent
from sve_cli.workflows.train import train_only


def main(words: list[str]) -> int:
    """See the module's docstring."""
    if len(words) < 3:
        raise SveError("Too few arguments.", "Write: python benchmarks/tune.py RECIPE VARIANTS OUT.json [key=value …]")
    recipe, variants, out, shared = words[0], Path(words[1]), Path(words[2]), words[3:]
    document: dict[str, Any] = read_json(out) if out.is_file() else {"schema": "sve-tuning/1", "variants": []}
    document["command"] = shown_command(["python", "benchmarks/tune.py", *words])
    known = {v["overrides"] for v in document["variants"]}
    for line in variants.read_text(encoding="utf-8").splitlines():
        overrides = " ".join(line.split())
        if not overrides or overrides in known:
            continue
        with TemporaryDirectory() as folder:
            nll, seconds = train_only(load_recipe(recipe, [*shared, *overrides.split()]), Silent(), Path(folder) / "run")
        document["variants"].append({"overrides": overrides, "validation_nll": nll, "seconds": round(seconds, 1)})
        write_json(out, document)
        sys.stdout.write(f"{nll:.4f}  {overrides}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
