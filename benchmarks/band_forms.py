"""Seconds of a layer of sve_band by each of its forms, and of the same layer of sve: forward and backward, in turns.

    python -m benchmarks.band_forms [--threads 1] [--bands 4]

Prints a Markdown table of milliseconds, the lower quartile of 7 turns. `chosen` is what `form: auto` takes.
Shapes: M members, N rows of a member, O out, I in, R rank.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.speed.clock import Action, Spread, interleave
from sve_cli import linear_forms
from sve_cli.methods.sve_band import off_diagonals
from sve_cli.render import markdown
from sve_cli.render.tables import Table

MEMBERS, TURNS = 4, 7
LAYERS = ((384, 384), (1536, 384), (384, 1536))
ROWS = (100, 200, 400, 800, 1600, 4096)


def layer_times(out: int, inner: int, n: int, bands: int) -> dict[str, float]:
    """Milliseconds of each form of one layer, with N rows a member."""
    rank = min(out, inner)
    x_MNI = torch.randn(MEMBERS, n, inner, requires_grad=True)
    a_RI, b_OR = torch.randn(rank, inner) / rank**0.5, torch.randn(out, rank) / rank**0.5
    gain_MR = torch.ones(MEMBERS, rank, requires_grad=True)
    c_MKR = torch.zeros(MEMBERS, bands, rank, requires_grad=True)
    offsets = off_diagonals(MEMBERS, bands // 2, bands - bands // 2, rank)
    forms: dict[str, Callable[[], Tensor]] = {
        "sve, factored": lambda: linear_forms.factored(x_MNI, a_RI, b_OR, gain_MR),
        "sve, materialised": lambda: linear_forms.materialised(x_MNI, a_RI, b_OR, gain_MR),
        "factored": lambda: linear_forms.banded(x_MNI, a_RI, b_OR, gain_MR, c_MKR, offsets),
        "materialised": lambda: linear_forms.banded_matrix(x_MNI, a_RI, b_OR, gain_MR, c_MKR, offsets),
    }
    actions: dict[str, Action] = {name: lambda turn, form=form: form().sum().backward() for name, form in forms.items()}  # type: ignore[misc]
    return {name: 1000 * Spread.of(found).q1 for name, found in interleave(actions, TURNS, math.inf).items()}


def main() -> None:
    """Measure every layer with every number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bands", type=int, default=4, help="off-diagonals, half of them shared")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for out, inner in LAYERS:
        for n in ROWS:
            found = layer_times(out, inner, n, given.bands)
            chosen = linear_forms.cheapest_banded(n, out, inner, given.bands)
            rows.append([f"{out} x {inner}", str(n), *(f"{v:.1f}" for v in found.values()), chosen])
    sys.stdout.write(markdown.table(Table(["layer", "rows", *found, "chosen"], rows)) + "\n")


if __name__ == "__main__":
    main()
