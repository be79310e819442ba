"""The FastAPI example of docs/deploy.md, without FastAPI, which is no dependency: its code runs against stand-ins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sve_cli
from sve_cli.errors import DataError

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"


class HTTPException(Exception):
    """As FastAPI's: a status and what to tell."""


class App:
    """As FastAPI's: `post` registers a function."""

    def post(self, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda function: function


class Ensemble:
    """Answers after a moment, and counts the threads that are inside at once."""

    inside = most = 0

    def predict(self, texts: list[str]) -> Any:
        if not texts:
            raise DataError("There are no inputs.", "Give a list with at least one.")
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.01)
        self.inside -= 1
        n = len(texts)
        return SimpleNamespace(
            labels=["yes"] * n, probabilities=np.full((n, 2), 0.5), epistemic=np.zeros(n), decisions=["answer"] * n
        )


def test_it_answers_one_request_at_a_time_and_refuses_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fastapi, pydantic, ensemble = ModuleType("fastapi"), ModuleType("pydantic"), Ensemble()
    vars(fastapi).update(FastAPI=App, HTTPException=HTTPException)
    vars(pydantic).update(BaseModel=object)
    monkeypatch.setitem(sys.modules, "fastapi", fastapi)
    monkeypatch.setitem(sys.modules, "pydantic", pydantic)
    monkeypatch.setattr(sve_cli, "load", lambda run: ensemble)
    code = PAGE.read_text(encoding="utf-8").partition("```python\n# app.py\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    ask = lambda texts: names["predict"](SimpleNamespace(texts=texts))  # noqa: E731
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(ask, [["a"], ["b", "c"], ["d"], ["e"]]))
    assert [len(answer) for answer in answers] == [1, 2, 1, 1] and ensemble.most == 1
    assert answers[0] == [{"label": "yes", "probability": 0.5, "epistemic": 0.0, "decision": "answer"}]
    with pytest.raises(HTTPException, match="There are no inputs"):
        ask([])
