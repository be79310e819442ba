"""Files of predictions that are read as they are written, and files that hold none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from sve_cli.errors import SveError
from sve_cli.foreign import open_predictions
from sve_cli.predictions import Predictions

PROBS = [[0.7, 0.3], [0.2, 0.8], [0.5, 0.5]]


@pytest.mark.parametrize(
    "ids",
    [
        ["00007", "00008", "10"],
        ["123456789012345678901", "123456789012345678902", "3"],
        ["012e12", "1e3", "1.50"],
        ["true", "2024-01-01", ""],
    ],
)
def test_ids_are_text_as_in_the_data(tmp_path: Path, ids: list[str]) -> None:
    rows = [f"{a},{b},0,{name}" for (a, b), name in zip(PROBS, ids, strict=True)]
    (tmp_path / "a.csv").write_text("u,v,label,id\n" + "\n".join(rows) + "\n")
    found, notes = open_predictions(tmp_path / "a.csv", ["u", "v"])
    assert found.ids_N == ids and notes == []


def test_an_array_that_is_called_an_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(PROBS))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(SveError, match="Cannot read .*a.npz' .*one array, not an archive"):
        open_predictions(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:  # an archive of something else
        for name in ("probs", "labels"):
            archive.writestr(name, "0.5 0.5")
    with pytest.raises(SveError, match="b.npz' holds nothing"):
        open_predictions(tmp_path / "b.npz")


@pytest.mark.parametrize(("header", "named"), [("u,v,label,label", "label"), ("u,u,label,id", "u"), ("id,v,label,id", "id")])
def test_a_column_that_is_meant_is_there_once(tmp_path: Path, header: str, named: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\n0.5,0.5,0,1\n")
    with pytest.raises(SveError, match=f"has 2 columns '{named}'"):
        open_predictions(tmp_path / "a.csv", ["u", "v"])
    (tmp_path / "b.csv").write_text("u,v,label,note,note\n0.5,0.5,0,x,y\n")  # what nothing reads may be there twice
    assert open_predictions(tmp_path / "b.csv", ["u", "v"])[0].n_samples == 1


@pytest.mark.parametrize("path", [".", "", "/"])
def test_a_folder_is_no_file_of_predictions(path: str) -> None:
    for read in (open_predictions, Predictions.load):
        with pytest.raises(SveError, match="is a folder, not predictions") as found:
            read(Path(path))
        assert found.value.exit_code == 2
