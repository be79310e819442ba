"""Where a data set comes from: a local path, the package, $SVE_DATA_DIR, or the hub, in this order."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sve_cli.data.hub_names import HUB_SETS, HubSet
from sve_cli.data.tables import TABLE_SUFFIXES, RawSplit, class_folders, features_of, image_files, read_image_folder, read_table
from sve_cli.errors import DataError
from sve_cli.hub import cache_when_unreachable
from sve_cli.recipe.spec import DataSpec
from sve_cli.registry import BUILTIN_DATA, nearest

# Hub exports cut a split into files like train-00000-of-00002.parquet.
_SHARD = re.compile(r"^(?P<split>.+)-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Source:
    """A data set that was found: its splits and how to read one. `unsplit`: one file or folder that is no split of anything."""

    name: str
    splits: list[str]
    reader: Callable[[str], RawSplit]
    unsplit: bool = False

    def read(self, split: str, key: str) -> RawSplit:
        """Read `split`, which the recipe (or the command line) names under `key`.

        Raises:
            DataError: there is no such split, or it cannot be read.
        """
        if split in self.splits:
            return self.reader(split)
        raise DataError(
            f"Data set '{self.name}' has no split '{split}'; it has {', '.join(self.splits)}.",
            f"Change {key}. {nearest(split, self.splits)}",
        )


def local_path(name: str) -> Path | None:
    """The path that a name is, with ~ read as the home; None where nothing is there, or where no path can be called so."""
    path = os.path.expanduser(name)  # pathlib's own fails where the home is nobody's, and its `exists` where a name is too long
    return Path(path) if os.path.exists(path) else None


def split_name(name: str) -> tuple[str, str | None]:
    """'set:split' -> (set, split); a path that exists, or a name without a split, -> (name, None)."""
    if ":" not in name or local_path(name) is not None:
        return name, None
    dataset, _, split = name.rpartition(":")
    return dataset, split


def place_of(name: str) -> tuple[str, str | None]:
    """'set:split' as `split_name` gives it, a path that exists as the one absolute path of its file or folder."""
    dataset, split = split_name(name)
    path = local_path(dataset)
    return (dataset if path is None else str(path.resolve())), split


def require_apart(names: Sequence[str]) -> None:
    """Refuse out-of-distribution sets of which two are one, written in two ways: 'set' and 'set:test', 'a.csv' and './a.csv'.

    Raises:
        DataError: naming the second of them.
    """
    seen: dict[tuple[str, str | None], str] = {}
    for name in names:
        place, split = place_of(name)
        first = seen.setdefault((place, split or "test"), name)
        if first != name:
            raise DataError(f"The out-of-distribution sets '{first}' and '{name}' are the same.", "Name each set and split once.")


def local_splits(name: str) -> dict[str, list[Path]]:
    """split -> what it is read from: its files, or its one folder of images; {} for built-in sets and those of the hub.

    Raises:
        DataError: two files of a folder claim to be the same split.
    """
    place = _found_at(name)
    if place is None:
        return {}
    if place.is_file():
        return {"train": [place]}
    return _split_tables(place) or {split: [folder] for split, folder in _split_folders(place).items()}


def stored_files(name: str) -> set[Path]:
    """The files (or folders of images) behind 'set:split', behind all splits where none is named; none for sets that are not local.

    Raises:
        DataError: two files of a folder claim to be the same split.
    """
    dataset, split = split_name(name)
    return {path.resolve() for found, paths in local_splits(dataset).items() if split in (None, found) for path in paths}


def local_state(name: str) -> str:
    """A digest of where the files of a local data set lie, of their sizes and times; '' where the name is no path that exists.

    Whether predictions made under this name are still of these samples.
    """
    place = local_path(split_name(name)[0])
    if place is None:
        return ""
    files = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
    facts = [(str(p.resolve()), (found := p.stat()).st_size, found.st_mtime_ns) for p in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def open_source(name: str, spec: DataSpec, config: str | None = None, revision: str | None = None) -> Source:
    """Find the data set `name`; the columns are those of `spec`.

    Raises:
        DataError: nothing of that name exists, or what exists holds no data.
    """
    path = _found_at(name)
    if path is not None:
        return _from_path(name, path, spec)
    if _only_a_path(name):
        raise DataError(f"There is no file or folder '{name}'.", f"Paths start at the current folder, {Path.cwd()}.")
    return _from_package(name) if name in BUILTIN_DATA else _from_hub(name, config, revision)


def _only_a_path(name: str) -> bool:
    return Path(name).suffix in TABLE_SUFFIXES or name.startswith((".", "/", "~"))


def _found_at(name: str) -> Path | None:
    """Where a set's files lie: a path, or else a folder of $SVE_DATA_DIR; None for built-in sets and those of the hub."""
    path, home = local_path(name), os.environ.get("SVE_DATA_DIR")
    if path is not None or not home or not name or _only_a_path(name) or name in BUILTIN_DATA:
        return path
    folder = os.path.join(home, name)
    return Path(folder) if os.path.isdir(folder) else None


def _from_path(name: str, path: Path, spec: DataSpec) -> Source:
    strings = tuple(c for c in (spec.text, spec.text_pair, spec.question, spec.choices, "context", "id") if c)
    strings += tuple(c for c in spec.slices if c != spec.label)  # labels are read as labels, also where they are a slice as well

    def read(split: str, paths: list[Path]) -> RawSplit:
        return _read_files(name, split, paths, strings, spec.label)

    if path.is_file():
        if path.suffix not in TABLE_SUFFIXES:
            raise DataError(f"'{path}' is not a {', '.join(TABLE_SUFFIXES)} file.", "Convert it, or name a folder.")
        return Source(name, ["train"], lambda split: read(split, [path]), unsplit=True)
    files = _split_tables(path)
    if files:
        return Source(name, sorted(files), lambda split: read(split, files[split]))
    folders = _split_folders(path)
    if folders:
        return Source(
            name, sorted(folders), lambda split: _read_images(name, split, folders[split], spec), unsplit=folders == {"train": path}
        )
    raise DataError(
        f"Folder '{path}' holds no data.",
        "It must hold <split>.parquet (or csv, tsv, jsonl, json), or images as <split>/<class>/*.png or <class>/*.png.",
    )


def _split_tables(folder: Path) -> dict[str, list[Path]]:
    """split -> its files: those of the folder itself, else of its `data`."""
    inner = folder / "data"
    return _split_files(folder) or (_split_files(inner) if inner.is_dir() else {})


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """split -> its files. A leading underscore or dot marks files that are about the data, not data."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in TABLE_SUFFIXES and path.is_file() and not path.name.startswith(("_", ".")):
            shard = _SHARD.match(path.stem)
            found.setdefault(shard["split"] if shard else path.stem, []).append(path)
    for split, paths in found.items():
        if len(paths) > 1 and not all(_SHARD.match(p.stem) and p.suffix == paths[0].suffix for p in paths):
            raise DataError(
                f"Split '{split}' of '{folder}' is there more than once: {', '.join(p.name for p in paths)}.",
                "Keep one of the files, or name a file instead of the folder.",
            )
    return found


def _split_folders(folder: Path) -> dict[str, Path]:
    """split -> its image folder; {"train": folder} when the folder itself holds classes or images."""
    classes = class_folders(folder)
    splits = {p.name: p for p in classes if class_folders(p)}
    if splits:
        return splits
    return {"train": folder} if classes or image_files(folder) else {}


def _read_files(name: str, split: str, paths: list[Path], strings: tuple[str, ...], label: str) -> RawSplit:
    tables = [read_table(path, strings, label) for path in paths]
    try:
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    except pa.ArrowInvalid as error:
        raise DataError(f"The files of split '{split}' do not fit together ({paths[0]}, …): {error}") from error
    return RawSplit(name, split, table, str(paths[0]), paths[0].parent, features_of(table))


def _read_images(name: str, split: str, folder: Path, spec: DataSpec) -> RawSplit:
    return RawSplit(name, split, read_image_folder(folder, spec.image, spec.label), str(folder), folder)


def _from_package(name: str) -> Source:
    builtin = BUILTIN_DATA.resolve(name)

    def read(split: str) -> RawSplit:
        table = builtin(split)
        return RawSplit(name, split, table, f"{name}:{split}", None, features_of(table))

    return Source(name, list(builtin.splits), read)


def _from_hub(name: str, config: str | None, revision: str | None) -> Source:
    """Download, or take from the hub's cache. The import is late: local data must not pay for it."""
    known = sorted(BUILTIN_DATA) + _local_names()
    hint = (
        f"{nearest(name, known)} Name a local file or folder, or set SVE_DATA_DIR to a folder that holds "
        f"{name}/<split>.parquet; a hub id needs network or a filled cache."
    )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise DataError(f"There is no data set '{name}'.", hint)
    import datasets

    known_set = HUB_SETS.get(name, HubSet(name, config))
    try:
        with cache_when_unreachable():
            loaded = datasets.load_dataset(known_set.repo, config or known_set.config, revision=revision)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # OSError: offline, missing or gated; ValueError: configuration; RuntimeError: sets that are scripts.
        raise DataError(f"Data set '{name}' is neither a local path nor built in, and the hub gave: {error}", hint) from error

    def read(split: str) -> RawSplit:
        part = loaded[known_set.splits.get(split, split)]
        part = part.rename_columns({old: new for old, new in known_set.columns.items() if old in part.column_names})
        table = part.data.table.replace_schema_metadata(part.features.arrow_schema.metadata)
        return RawSplit(name, split, table, f"{name}:{split}", None, features_of(table))

    return Source(name, list(known_set.splits) or [str(s) for s in loaded], read)


def _local_names() -> list[str]:
    folder = os.environ.get("SVE_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        return []
    return [p.name for p in Path(folder).iterdir() if p.is_dir()]
