"""The pages of a finished benchmark: what they must say, damaged files that are refused, and pages that belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sve_cli.benchmark import BenchTable
from sve_cli.errors import SveError
from sve_cli.registry import RENDERERS
from sve_cli.workflows.bench import write_table

STORED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "clinc150"
TABLE = ["bench", "quickstart", "--table", "--out", "out"]
DIFFERENCE = {"difference": 0.1, "low": 0.0, "high": 0.2, "verdict": "B better"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three finished cells with their grids and paired differences; their runs are not at hand."""
    folder = tmp_path / "out"
    shutil.copytree(STORED / "grid", folder / "grid")
    for name in ("single-seed0.json", "heads_only-seed0.json", "sve-seed0.json", "paired.json"):
        shutil.copy(STORED / name, folder / name)
    return folder


def change(path: Path, **parts: Any) -> None:
    """Replace parts of a JSON document."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | parts), encoding="utf-8")


def paired(key: str, **changes: Any) -> str:
    """A document of paired differences with one difference."""
    return json.dumps({"reference": "sve", "rows": {"single": {"differences": {key: DIFFERENCE | changes}}}})


def test_limits_and_scaled_differences_are_explained_in_every_view(sve: Any, out: Path) -> None:
    for path in out.glob("*-seed0.json"):
        change(path, limit=24)
    shown = sve(*TABLE)
    limit, against = "Limited to 24 rows a split: not comparable with full runs.", "with sve as it is, before temperature scaling."
    label = ", row temperature-scaled, reference not"  # of a difference; the note has no comma before it
    assert label in shown and f"Note: {limit}\n" in sve.err and against in sve.err
    for name in ("bench.md", "bench.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert limit in text and against in text and label in text
    table = sve.json(*TABLE)
    assert limit in table["notes"] and table == json.loads((out / "bench.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "text", "saying"),
    [
        ("paired.json", '{"rows": 3}', "is damaged: reference"),
        ("paired.json", '{"reference": "sve", "rows": 3}', "is damaged: rows"),
        ("paired.json", '{"reference": "sve", "rows": {"single": {}}}', "is damaged: rows.single.differences"),
        ("paired.json", '{"reference": "sve", "rows": {}, "left_out": 3}', "is damaged: left_out"),
        ("paired.json", '{"reference": "sve", "rows": {"a": {"differences": {}, "seeds": ["0"]}}}', "is damaged: rows.a.seeds"),
        ("paired.json", "[]", "is damaged: its content"),
        ("paired.json", '{"reference": "sve", "rows": {"si', "Cannot read"),
        ("paired.json", paired("nll", low=None), "is damaged: rows.single.differences.nll"),
        ("paired.json", paired("nll", verdict="A good one"), "is damaged: rows.single.differences.nll"),
        ("paired.json", paired("ood.set.auroc_ood"), "is damaged: rows.single.differences.ood.set.auroc_ood"),
        ("costs.json", '{"methods": {"sve": {"train_time": "bad"}}}', "is damaged: methods.sve.train_time"),
        ("costs.json", '{"methods": {', "Cannot read"),
    ],
)
def test_damaged_files_beside_the_cells_are_refused_with_a_way_on(name: str, text: str, saying: str, out: Path) -> None:
    (out / name).write_text(text, encoding="utf-8")
    with pytest.raises(SveError, match=saying) as caught:
        write_table(out)
    assert f"'{out / name}'" in caught.value.message and caught.value.hint.startswith("Remove it")
    assert not list(out.glob("bench.*"))


def test_damaged_files_end_with_exit_code_2_and_without_them_the_table_is_made(sve: Any, out: Path) -> None:
    cell = (out / "sve-seed0.json").read_text(encoding="utf-8")
    change(out / "sve-seed0.json", metrics={"accuracy": 0.9, "nll": "bad"})
    sve.check_refuses(*TABLE, saying="'out/sve-seed0.json' is damaged: metrics.nll")
    assert "hint: Remove it" in sve.err and sve.err.count("error:") == 1
    (out / "sve-seed0.json").write_text(cell, encoding="utf-8")
    (out / "paired.json").write_text('{"rows": 3}', encoding="utf-8")
    sve.check_refuses(*TABLE, saying="'out/paired.json' is damaged: reference")
    assert "hint: Remove it" in sve.err and sve.err.count("error:") == 1
    (out / "paired.json").unlink()  # what the hint says
    assert "Paired differences" not in sve(*TABLE)


def test_paired_differences_that_are_not_finite_are_shown_as_missing(sve: Any, out: Path) -> None:
    (out / "paired.json").write_text(paired("nll", low=float("nan"), high=float("nan")), encoding="utf-8")
    assert "+0.100 (– to –)" in sve(*TABLE)


def test_a_view_that_fails_leaves_all_pages_as_they_were(sve: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sve(*TABLE)
    change(out / "sve-seed0.json", command="another command")
    before = sve.digests(out)
    html = RENDERERS.resolve("bench_html")

    def broken(view: str) -> Any:
        def fail(table: BenchTable) -> str:
            raise RuntimeError("this view is broken")

        return fail if view == "bench_html" else lambda table: "new"

    monkeypatch.setattr(RENDERERS, "resolve", broken)
    with pytest.raises(RuntimeError, match="this view is broken"):
        write_table(out)
    assert sve.digests(out) == before
    monkeypatch.undo()
    table = write_table(out)
    assert (out / "bench.html").read_text(encoding="utf-8") == html(table) and "another command" in table.commands
    assert sve.digests(out) != before
