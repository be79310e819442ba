"""Options of `sve export --to distilled`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Epochs = Annotated[
    int | None, typer.Option("--distil-epochs", help="distilled: passes over the inputs; default: the recipe's epochs.")
]
Rate = Annotated[
    float | None,
    typer.Option("--distil-lr", help="distilled: learning rate of the singular values; default: a tenth of the recipe's."),
]
Rows = Annotated[
    int | None, typer.Option("--distil-rows", min=1, help="distilled: learn from so many training inputs; default: all.")
]
Unlabelled = Annotated[
    list[str] | None, typer.Option("--unlabelled", help="distilled: a set whose inputs are learnt from too; repeatable.")
]
Single = Annotated[
    Path | None,
    typer.Option("--single", help="distilled: a run of one network on the same data, to say how much of the gain over it is kept."),
]
