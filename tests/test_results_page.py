"""docs/results.md says what the files below benchmarks/results say: no number of its regions is written by hand."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def results() -> ModuleType:
    """benchmarks/results.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("results_page", ROOT / "benchmarks" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(results: ModuleType) -> None:
    text = results.PAGE.read_text(encoding="utf-8")
    assert len(results.REGION.findall(text)) >= 3
    assert results.renewed(text) == text, "run: python benchmarks/results.py write"


def test_a_changed_number_is_noticed(results: ModuleType) -> None:
    text = results.PAGE.read_text(encoding="utf-8")
    region = next(m.group(0) for m in results.REGION.finditer(text))
    number = re.search(r"\d\.\d{3}", region)
    assert number is not None
    changed = text.replace(region, region.replace(number.group(0), "7.777"))
    assert changed != text and results.renewed(changed) == text


def test_no_file_names_a_folder_of_a_machine(results: ModuleType) -> None:
    files = list(results.RESULTS.rglob("*.json"))
    assert len(files) > 5
    for path in files:
        found = re.search(r"[\"' =](/(?!/)[A-Za-z0-9_.-]+){2,}", path.read_text(encoding="utf-8"))
        assert found is None, f"{path.name}: {found.group(0) if found else ''}"
