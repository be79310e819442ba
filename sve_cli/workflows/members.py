"""`sve members`: one ensemble's predictions -> every metric as a function of the number of members. Opens no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sve_cli.comparison import MOST_SUBSETS, enough_members, member_curves, member_sentences
from sve_cli.findings import MemberCurves
from sve_cli.metrics.aggregate import source_name
from sve_cli.registry import METRICS
from sve_cli.render import members as views
from sve_cli.rundir import write_text
from sve_cli.scoring import data_warnings
from sve_cli.statistics import one_blas_thread, without_weights
from sve_cli.workflows.compare import System


@one_blas_thread()
def members(
    system: System,
    metrics: Sequence[str] = (),
    bootstrap: int = 500,
    confidence: float = 0.95,
    seed: int = 0,
    step: Callable[[int], None] = lambda n: None,
) -> MemberCurves:
    """How many members the system needs, see `workflows.compare.open_system`.

    Args:
        step: called with 1 after each of `comparison.n_subsets` subsets.

    Raises:
        SveError: one member only, an unknown metric, or predictions that cannot be scored.
    """
    for name in metrics:
        METRICS[name]
    test, sets = system.test, list(system.ood.values())
    how = without_weights(system.aggregate)
    curves = member_curves(
        test, sets, how, system.bins, metrics, bootstrap, confidence, seed, lambda: step(1)
    )  # fmt: skip
    settings = {
        "aggregate": how, "bins": system.bins, "bootstrap": bootstrap, "confidence": confidence,
        "most subsets of a size": MOST_SUBSETS, "seed": seed,
    }  # fmt: skip
    return MemberCurves(
        system.name, test.n_members, source_name(test), test.n_samples, enough_members(curves), member_sentences(curves), curves,
        settings, data_warnings(test),
    )  # fmt: skip


def write_members(found: MemberCurves, folder: Path) -> Path:
    """Write members.json, .md and .html; the path of the last."""
    write_text(folder / "members.json", found.to_json())
    write_text(folder / "members.md", views.render_markdown(found))
    write_text(folder / "members.html", views.render_html(found))
    return folder / "members.html"
