"""The runs of a benchmark: which cells there are, with which recipe each, and where its result lies."""

from __future__ import annotations

import hashlib
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from sve_cli.benchmark import DIVERGED, REFERENCE, Cell, differing_keys, row_name, without_folders
from sve_cli.errors import RecipeError, SveError
from sve_cli.recipe import LoadedRecipe, Recipe, digest, learning_rate, load_recipe, resolve_dict
from sve_cli.registry import METHOD_ALIASES, METHODS, ONE_NETWORK, nearest

_OWN = re.compile(r"^([a-z_0-9]+):(?=[a-z_]+[.=])")  # 'sve:train.lr=1e-2' is for sve alone
_PARAMS = "method.params."
_IS_PARAMS = re.compile(r"\s*method\.params\b")
RATES = ("train.lr", "train.bias_lr", "train.head_lr")
GRIDS = (1, 3, 5, 7)  # points: 7 reach from 1/27 to 27 times the rates
LEAST_FACTOR = 1e-3
_SETS = ("data.ood", "data.ood_near", "data.ood_far")
_PLACES = ("data.name", "data.splits.train", "data.splits.validation", "data.splits.test", *_SETS)  # these may be paths
_NOT_SWEPT = {"seed": "Write --seeds N instead.", "method.name": "Write --methods a,b instead."}


@dataclass(frozen=True)
class Study:
    """What a benchmark compares, and where it keeps what it measured.

    Attributes:
        recipe: the recipe as it is named; overrides: `key=value` for all methods, or `METHOD:key=value` for one.
        out: the folder of the results; runs: the folder of the runs.
        sweep: recipe key -> values as text. factors: of the learning-rate grid; one factor: no search.
        command: as typed, for the record, without folders of this machine.
        reference: the row that others are compared with; None: `sve`, else `single`, else the first.
    """

    recipe: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    sweep: dict[str, list[str]]
    factors: tuple[float, ...]
    out: Path
    runs: Path
    limit: int | None = None
    command: str = ""
    reference: str | None = None

    @cached_property
    def first_seed(self) -> int:
        """The recipe's."""
        return self._read(self.methods[0], {}).recipe.seed

    def cells(self) -> list[Cell]:
        """Every cell, seed by seed, so that an unfinished benchmark has whole tables of fewer seeds."""
        first = self.first_seed
        return [Cell(method, first + k, point) for k in range(self.seeds) for point in self.points() for method in self.methods]

    def points(self) -> list[dict[str, str]]:
        """The points of the sweep; one empty point without a sweep."""
        return [dict(zip(self.sweep, values, strict=True)) for values in itertools.product(*self.sweep.values())]

    def load(self, method: str, point: dict[str, str], more: Sequence[str] = ()) -> LoadedRecipe:
        """The recipe of a method at a sweep point. A number of members for all methods is not for those that are one network.

        With `limit`, all seeds draw the same rows, so that they can be paired: `data.seed` is the first seed where it is not set.

        Raises:
            SveError: the recipe, an override or a sweep value is wrong.
        """
        loaded = self._read(method, point, more)
        data = loaded.recipe.data
        if self.limit is None or data.seed is not None:
            return loaded
        return replace(loaded, recipe=replace(loaded.recipe, data=replace(data, seed=self.first_seed)))

    def cost_reference(self) -> LoadedRecipe:
        """The recipe that costs are relative to. `method.params` for all methods are not for one that is none of them.

        Raises:
            SveError: the recipe or an override is wrong.
        """
        if REFERENCE in self.methods:
            return self.load(REFERENCE, {})
        owned = [o for o in self.overrides if split_override(o)[0] is not None or not _IS_PARAMS.match(o)]
        return replace(self, overrides=tuple(owned)).load(REFERENCE, {})

    def _read(self, method: str, point: dict[str, str], more: Sequence[str] = ()) -> LoadedRecipe:
        """The recipe as it is written, with all overrides."""
        chosen = [f"method.name={method}"]
        fixed = method in ONE_NETWORK or "members" in METHOD_ALIASES.get(method, ("", {}))[1]
        for override in self.overrides:
            owner, bare = split_override(override)
            for_all = owner is None and not (fixed and bare.partition("=")[0].strip() == "method.members")
            if for_all or owner == method:
                chosen.append(bare)
        swept = [f"{key}={value}" for key, value in point.items()]
        try:
            return load_recipe(self.recipe, [*chosen, *swept, *more])
        except RecipeError as error:
            raise self._named(error, method, swept) from error

    def _named(self, error: RecipeError, method: str, swept: Sequence[str]) -> RecipeError:
        """The error with the method that its `method.params` belong to: others may know the same key."""
        problems = [f"for {method}: {problem}" if _PARAMS in problem else problem for problem in error.problems]
        unknown = [problem for problem in problems if "unknown key" in problem]
        for_all = [bare for owner, bare in map(split_override, self.overrides) if owner is None]
        given = [text for text in (*for_all, *swept) if any(f"'{text}': {_PARAMS}" in problem for problem in unknown)]
        if not given or len(self.methods) == 1:
            return RecipeError(problems, error.hint)
        alone = "" if given[0] in swept else f", or write METHOD:{given[0]} for one of the others"
        return RecipeError(problems, f"Leave {method} out of --methods{alone}.")

    def cell_recipe(self, cell: Cell, factor: float) -> LoadedRecipe:
        """The recipe of one cell, with its learning rates scaled by `factor`."""
        loaded = self.load(cell.method, dict(cell.sweep), [f"seed={cell.seed}"])
        return replace(loaded, recipe=_scaled(loaded.recipe, factor))

    def grid_cell(self, method: str) -> Cell:
        """What learning rates are searched with: all members, the first seed, the recipe as it is without the sweep."""
        return Cell(method, self.first_seed)

    def result_path(self, cell: Cell) -> Path:
        return self.out / f"{file_stem(cell.method, dict(cell.sweep))}-seed{cell.seed}.json"

    def diverged_path(self, cell: Cell) -> Path:
        return self.out / DIVERGED / self.result_path(cell).name

    def kept(self, cell: Cell) -> Path | None:
        """The file of a cell that needs no training any more: its result, or that it diverged."""
        return next((path for path in (self.result_path(cell), self.diverged_path(cell)) if path.is_file()), None)

    def grid_path(self, method: str) -> Path:
        return self.out / "grid" / f"{file_stem(method, {})}.json"

    def run_folder(self, cell: Cell, recipe: Recipe) -> Path:
        """Named by the settings too, so that other settings never meet an old run."""
        key = hashlib.sha256(f"{digest(recipe)} {self.limit}".encode()).hexdigest()[:8]
        return self.runs / f"{file_stem(cell.method, dict(cell.sweep))}-seed{cell.seed}-{key}"


def _scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with all learning rates multiplied; unchanged for factor 1."""
    if factor == 1.0:
        return recipe
    scaled = {name: None if rate is None else float(f"{rate * factor:.6g}") for name, rate in rates_of(recipe).items()}
    return replace(recipe, train=replace(recipe.train, **scaled))  # type: ignore[arg-type]


def rates_of(recipe: Recipe) -> dict[str, float | None]:
    """The learning rates a recipe trains with; bias_lr None: a tenth of lr."""
    return {"lr": learning_rate(recipe), "bias_lr": recipe.train.bias_lr, "head_lr": recipe.train.head_lr}


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every key path of a recipe with its value; local checkpoints and data count by their last part, so that machines agree."""
    pairs = dict(_leaves(asdict(recipe), ""))
    pairs |= {key: without_folders(pairs[key], local_paths(recipe)) for key in _PLACES}
    return {**pairs, "model.name": model_name(recipe)}


def local_paths(recipe: Recipe) -> list[str]:
    """Absolute paths that a recipe names."""
    pairs = dict(_leaves(asdict(recipe), ""))
    named = [pairs["model.name"], *(pairs[key] for key in _PLACES if key not in _SETS), *pairs["data.ood"]]
    return [value for value in named if value is not None and Path(value).is_absolute()]


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def model_name(recipe: Recipe) -> str:
    """The checkpoint, a local one by its folder's name."""
    path = Path(recipe.model.name)
    return path.name if path.is_absolute() or path.exists() else recipe.model.name


def same_settings(stored: dict[str, Any], recipe: Recipe) -> list[str]:
    """Key paths in which a stored recipe differs from this one; what the stored one does not know yet must be at its default."""
    now = flat(recipe)
    plain = {"name": recipe.method.name}
    bare = resolve_dict(
        {"model": {"name": "-"}, "data": {"name": "-"}, "task": {"name": recipe.task.name}, "method": plain}, "defaults"
    )
    defaults = flat(bare)
    return [*differing_keys(stored, now), *sorted(k for k in now.keys() - stored.keys() if now[k] != defaults.get(k))]


def file_stem(method: str, sweep: dict[str, str]) -> str:
    """A file name for a row: plain where that is unambiguous, else with a hash, so that different rows never share a file."""
    name = row_name(method, sweep)
    stem = re.sub(r"[^A-Za-z0-9_.=-]+", "-", name).strip("-")
    plain = all(re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z0-9_.]", value) for value in sweep.values())
    return stem if plain and len(stem) <= 100 else f"{stem[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def split_override(override: str) -> tuple[str | None, str]:
    """'sve:train.lr=1e-2' -> ('sve', 'train.lr=1e-2'); what is for all methods -> (None, itself).

    Raises:
        SveError: what stands before the colon is no method.
    """
    own = _OWN.match(override)
    if own is None:
        return None, override
    if own.group(1) not in METHODS and own.group(1) not in METHOD_ALIASES:
        known = nearest(own.group(1), [*METHODS, *METHOD_ALIASES])
        raise SveError(f"'{override}' is for the method '{own.group(1)}', which is unknown.", known)
    return own.group(1), override[own.end() :]


def parse_sweep(texts: Sequence[str]) -> dict[str, list[str]]:
    """`key=v1,v2` options as key -> values; commas inside brackets, braces or quotes do not separate.

    Raises:
        SveError: no key, no value, the same key or value twice, or a key that has an option of its own.
    """
    sweep: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        found = _split(values)
        if not equals or not key or not all(found):
            raise SveError(f"--sweep '{text}' cannot be read.", "Write --sweep key.path=value1,value2")
        if key in _NOT_SWEPT:
            raise SveError(f"--sweep cannot vary {key}.", _NOT_SWEPT[key])
        if key in sweep or len(set(found)) < len(found):
            raise SveError(f"--sweep names '{key}' or one of its values twice.", "Name each once.")
        sweep[key] = found
    return sweep


def _split(text: str) -> list[str]:
    """Values between commas; [''] where brackets or quotes do not end."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and parts[-1].rstrip()[-1:] in ("", "[", "{", ","):
            quote = letter  # only where a value begins: an apostrophe in a word is none
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts] if not depth and not quote else [""]


def parse_methods(text: str) -> tuple[str, ...]:
    """Method names from a comma list, checked.

    Raises:
        SveError: an unknown method, or one twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if ":" in name and name.partition(":")[0] in METHODS:
            raise SveError(f"'{name}' is no method.", f"A change for one method stands behind the recipe: sve bench RECIPE {name}")
        if name not in METHODS and name not in METHOD_ALIASES:
            raise SveError(f"Unknown method '{name}'.", nearest(name, [*METHODS, *METHOD_ALIASES]))
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        what = "no method" if twice is None else f"'{twice}' twice"
        raise SveError(f"--methods names {what}.", f"Known: {', '.join(sorted([*METHODS, *METHOD_ALIASES]))}.")
    return tuple(names)


def grid_factors(text: str) -> tuple[float, ...]:
    """Factors of a learning-rate grid: of a number of points, 1 and then one to each side by factors of 3 (3 points: 1/3, 1, 3), or
    the factors themselves, separated by commas.

    Raises:
        SveError: an even number of points, which has no middle, more than are of use, or factors that are none.
    """
    if "," in text:
        return _listed(text)
    if text.strip() not in map(str, GRIDS):
        hint = "3 tries 1/3, 1 and 3 times the learning rates; factors are separated by commas: --grid 1/3,1,3,9."
        raise SveError(f"--grid must be 1 (no search), 3, 5, 7 or factors, not '{text}'.", hint)
    half = int(text) // 2
    return tuple(_rounded(3.0**k) for k in range(-half, half + 1))


def _rounded(factor: float) -> float:
    return float(f"{factor:.6g}")


def _listed(text: str) -> tuple[float, ...]:
    factors = []
    for word in text.split(","):
        try:
            factors.append(_rounded(float(Fraction(word.strip()))))
        except (ValueError, ZeroDivisionError, OverflowError):
            raise SveError(f"--grid: '{word.strip()}' is not a factor.", "Write numbers or fractions: --grid 1/3,1,3,9.") from None
    if not all(LEAST_FACTOR <= factor <= 1.0 / LEAST_FACTOR for factor in factors):
        raise SveError(f"--grid: the factors {text} are not all between 1/1000 and 1000.", "Write --grid 1/3,1,3,9.")
    if len(set(factors)) < len(factors) or len(factors) > GRIDS[-1]:
        raise SveError(f"--grid: {text} names a factor twice, or more than {GRIDS[-1]}.", "Write --grid 1/3,1,3,9.")
    return tuple(sorted(factors))


def shown_command(words: Sequence[str]) -> str:
    """A command for the record: folders of this machine are cut to their last part."""

    def short(word: str) -> str:
        key, equals, value = word.partition("=")
        return f"{without_folders(key)}{equals}{without_folders(value)}"

    return shlex.join(short(w) for w in words)
