"""JUnit XML: valid against the schema that CI servers use, whatever a class, a slice or a file is called."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sve_cli.render.gate import render_junit, render_markdown
from sve_cli.verdict import Check, Verdict

HOSTILE = [
    "<script>alert(1)</script>", 'a" onload="x', "]]>&amp;<!--", "bell\x07 null\x00 escape\x1b[31m", "\ud800 half", "\ufffe \uffff",
    "tab\tline\nreturn\r", "naïve 雪 😀", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def schema() -> Any:
    xmlschema = pytest.importorskip("xmlschema", reason="Needs xmlschema: pip install -e '.[dev]'.")
    return xmlschema.XMLSchema10(str(Path(__file__).with_name("junit-10.xsd")))


def verdict(name: str) -> Verdict:
    key = f"slice.{name}.{name}.nll"
    numbers = (0.5, 0.4, 0.1, 0.05, 0.15, 0.0, 0.02, 0.01)
    checks = [
        Check(key, name, "worsening", "fail", f"{name} is worse.", "lower", *numbers, 900, True, [name]),
        Check(key, name, "limit", "pass", name, "lower", 0.5, low=0.4, high=0.6, allowed=1.0, detectable=0.1, detect=0.2, n=900),
        Check(key, name, "worsening", "warn", f"{name} was not compared.", n=900),
        Check(f"{key} > 1", name, "condition", "pass", name, value=0.5, allowed=1.0, n=900),
    ]  # fmt: skip
    return Verdict(f"run {name}", name, 900, checks, [name])


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_valid_and_says_what_it_should(schema: Any, name: str) -> None:
    text = render_junit(verdict(name))
    text.encode("utf-8")
    schema.validate(text)
    (suite,) = ET.fromstring(text.encode())
    assert [suite.get(k) for k in ("tests", "failures", "errors", "skipped")] == ["4", "1", "0", "1"]
    cases = suite.findall("testcase")
    assert [[child.tag for child in case] for case in cases] == [
        ["failure", "system-out"], ["system-out"], ["skipped", "system-out"], ["system-out"],
    ]  # fmt: skip
    if name.isprintable() and name:
        assert name in (cases[0].get("name") or "") and name in (cases[0].findtext("failure") or "")
    assert "<script" not in text and "<script" not in render_markdown(verdict(name))


def test_the_schema_tells_right_from_wrong(schema: Any) -> None:
    text = render_junit(verdict("a"))
    wrong = [
        text.replace(' failures="1" errors="0" skipped', ' errors="0" skipped', 1),
        text.replace("<testcase", "<case").replace("</testcase", "</case"),
        text.replace('time="0"', 'time="soon"'),
        text.replace('tests="4"', 'tests="four"'),
        text.replace("<failure", "<skip").replace("</failure", "</skip"),
    ]
    assert all(bad != text for bad in wrong) and schema.is_valid(text)
    assert not any(schema.is_valid(bad) for bad in wrong)
    assert schema.is_valid(render_junit(replace(verdict("a"), checks=[])))
