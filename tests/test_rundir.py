"""One run, one folder: atomic writes, seals, the newest run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from sve_cli.errors import SveError
from sve_cli.predictions import Predictions
from sve_cli.rundir import RunDir, atomic_path, check_seal, is_complete, read_json, runs_root, seal, write_json, write_text


def begun(path: Path, name: str = "a", overwrite: bool = False) -> RunDir:
    with RunDir.begin(path, name, "d" * 64, exact=True, overwrite=overwrite) as run:
        return run


def make_run(root: Path, name: str, age: float, complete: bool = True) -> RunDir:
    run = begun(root / name, name)
    write_json(run.path / "recipe.lock.json", {})
    write_text(run.path / "recipe.yaml", "seed: 0\n")
    os.utime(run.path / "recipe.yaml", (1e9 - age, 1e9 - age))
    if complete:
        seal(run.path, ["recipe.yaml"])
    return run


def test_a_file_is_old_or_new_and_never_half(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert read_json(path) == {"x": 1}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_refusing_disk_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(SveError, match=r"Cannot write .*/file/a\.txt.*another place"):
        write_text(tmp_path / "file" / "a.txt", "x")
    with pytest.raises(SveError, match="Cannot create"):
        begun(tmp_path / "file" / "run")
    with pytest.raises(SveError, match="Cannot read"):
        read_json(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(SveError, match=r"Cannot read .*broken\.json"):
        read_json(tmp_path / "broken.json")


@pytest.mark.parametrize("place", ["", ".", "..", "/", "folder"])
def test_a_folder_is_not_written_as_a_file(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    path = tmp_path / "folder" if place == "folder" else Path(place)
    with pytest.raises(SveError, match="is a folder, and a file is to be written") as found:
        write_text(path, "x")
    assert found.value.exit_code == 2 and [p.name for p in tmp_path.rglob("*")] == ["folder"]


def test_a_seal_notices_every_change(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 0, complete=False)
    with pytest.raises(SveError, match="not complete.*--resume"):
        check_seal(run.path)
    write_text(run.path / "history.jsonl", "{}\n")
    seal(run.path, ["recipe.yaml", "history.jsonl"])
    assert is_complete(run.path)
    check_seal(run.path)
    write_text(run.path / "notes.txt", "not covered")
    check_seal(run.path)
    write_text(run.path / "recipe.yaml", "seed: 1\n")
    with pytest.raises(SveError, match=r"recipe\.yaml' is missing or was changed"):
        check_seal(run.path)
    write_text(run.path / "recipe.yaml", "seed: 0\n")
    check_seal(run.path)
    (run.path / "history.jsonl").unlink()
    with pytest.raises(SveError, match=r"history\.jsonl"):
        check_seal(run.path)


def test_the_name_says_recipe_time_and_digest(tmp_path: Path) -> None:
    with RunDir.begin(tmp_path, "digits", "0123456789abcdef") as run:
        assert run.path.parent == tmp_path
    name, stamp, short = run.path.name.rsplit("-", 2)
    assert (name, short) == ("digits", "01234567")
    assert stamp[8] == "T"
    assert stamp.endswith("Z")
    assert run.path.is_dir()


def test_an_existing_folder_is_not_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 0)
    write_text(run.path / ".history.jsonl.77.tmp.jsonl", "left by a kill")
    with pytest.raises(SveError, match="exists and is not empty.*--overwrite"):
        begun(run.path)
    assert (run.path / "recipe.yaml").is_file()
    (run.path / "checkpoints").mkdir()
    with RunDir.begin(run.path, "a", "d" * 64, exact=True, overwrite=True) as again:
        assert [p.name for p in again.path.iterdir()] == [".lock"]
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter").write_text("x", encoding="utf-8")
    with pytest.raises(SveError, match="is not a run, so it is not overwritten"):
        begun(precious, overwrite=True)
    assert (precious / "chapter").is_file()
    project = tmp_path / "project"
    project.mkdir()
    for name in ("recipe.yaml", "thesis.txt"):
        (project / name).write_text("x", encoding="utf-8")
    with pytest.raises(SveError, match="is not a run, so it is not overwritten"):  # a recipe alone is the user's own
        begun(project, overwrite=True)
    write_json(project / "recipe.lock.json", {})  # a run's folder that came to hold more
    with pytest.raises(SveError, match=r"thesis\.txt' is no file of a run, so .*project' is not overwritten"):
        begun(project, overwrite=True)
    assert sorted(p.name for p in project.iterdir()) == ["recipe.lock.json", "recipe.yaml", "thesis.txt"]
    (tmp_path / "empty").mkdir()
    begun(tmp_path / "empty")
    begun(tmp_path / "empty")  # a lock alone is no run


def test_the_newest_run_of_each_kind(tmp_path: Path) -> None:
    for name, age, complete in (("old", 300, True), ("new", 200, True), ("dead", 100, False), ("older-dead", 400, False)):
        make_run(tmp_path, name, age, complete)
    assert RunDir.newest(tmp_path).path.name == "new"
    assert RunDir.newest(tmp_path, complete=False).path.name == "dead"
    assert RunDir.open(tmp_path / "old").complete
    assert not RunDir.open(tmp_path / "dead").complete
    for complete, kind in ((True, "complete"), (False, "unfinished")):
        with pytest.raises(SveError, match=f"no {kind} run"):
            RunDir.newest(tmp_path / "nowhere", complete)
    with pytest.raises(SveError, match="no run at"):
        RunDir.open(tmp_path)


def test_history_and_evaluations(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", 0)
    assert run.history() == []
    write_text(run.history_path, json.dumps({"epoch": 1}) + "\n\n" + json.dumps({"epoch": 2}) + "\n")
    assert [h["epoch"] for h in run.history()] == [1, 2]
    for k, name in enumerate(("first", "second", "unfinished")):
        write_text(run.path / "evaluations" / name / "report.json", "{}")
        if name != "unfinished":
            seal(run.path / "evaluations" / name, ["report.json"])
            os.utime(run.path / "evaluations" / name / "COMPLETE", (1e9 - k, 1e9 - k))  # as a copy may have them
    assert [p.name for p in run.evaluations()] == ["second", "first"]
    for k, name in enumerate(("first", "second")):  # by an earlier version, which wrote no time down
        write_json(run.path / "evaluations" / name / "COMPLETE", {"files": {}})
        os.utime(run.path / "evaluations" / name / "COMPLETE", (1e9 - k, 1e9 - k))
    assert [p.name for p in run.evaluations()] == ["first", "second"]


def test_where_runs_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVE_RUNS_DIR", raising=False)
    assert runs_root() == Path("runs")
    monkeypatch.setenv("SVE_RUNS_DIR", str(tmp_path))
    assert runs_root() == tmp_path
    assert runs_root(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SVE_RUNS_DIR", "~/runs")
    assert runs_root() == tmp_path / "home" / "runs"


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "r", 0)
    with run.only_writer(), pytest.raises(SveError, match="Another process is training"), run.only_writer():
        pass
    with run.only_writer():  # free again
        assert (run.path / ".lock").exists()


def test_a_run_at_work_is_not_overwritten(tmp_path: Path) -> None:
    with RunDir.begin(tmp_path / "a", "a", "d" * 64, exact=True) as run:
        with pytest.raises(SveError, match="Another process is training"):  # before anything is written
            begun(run.path)
        write_json(run.path / "recipe.lock.json", {})
        write_text(run.path / "recipe.yaml", "seed: 0\n")
        with pytest.raises(SveError, match="Another process is training"):
            begun(run.path, overwrite=True)
        assert (run.path / "recipe.yaml").is_file()
        with pytest.raises(SveError, match="Another process is training"), run.only_writer():
            pass  # the first still holds it
    assert not (begun(run.path, overwrite=True).path / "recipe.yaml").exists()


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.safetensors") as temporary:
            save_file({"x": np.zeros(2)}, temporary)
        Predictions(np.zeros((1, 2, 2), np.float32), np.array([0, 1]), ["a", "b"], ["x", "y"]).save(tmp_path / "p")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"a.safetensors": 0o640, "p.safetensors": 0o640, "p.parquet": 0o640}
