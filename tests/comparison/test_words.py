from __future__ import annotations

from sve_cli.comparison import pair_sentences
from sve_cli.findings import Difference
from sve_cli.render.comparison import rounded


def row(key: str, label: str, side: int, p_holm: float | None = 0.01, needed: int | None = 12_345) -> Difference:
    """A row where lower is better: side 1 is worse for B, -1 better, 0 a tie."""
    low, high = {1: (0.1, 0.3), -1: (-0.3, -0.1), 0: (-0.1, 0.3)}[side]
    group = "far:test" if key.startswith("ood.") else ""
    metric = key.rpartition(".")[2]
    return Difference(key, metric, group, label, "lower", "", 500, 1.0, 1.1, side or 0.1, low, high, 0.1, p_holm, p_holm, needed)


def test_winners_losers_and_ties_are_named() -> None:
    rows = [row("accuracy", "Accuracy", -1), row("nll", "NLL", 0, 0.9), row("ece_top1_m15", "ECE, equal mass", -1, 0.2)]
    rows += [row("brier", "Brier", 1), row("aurc", "AURC", 0, 0.9, 99)]
    rows += [row("temperature.nll", "NLL", -1), row("ood.far:test.entropy.auroc_ood", "AUROC by entropy", 1, 0.3)]
    assert pair_sentences("new", "old", rows) == [
        "new is better on accuracy and ECE (equal mass); old is better on Brier; NLL and AURC are ties.",
        "After temperature scaling of both, new is better on NLL.",
        "On the out-of-distribution set far:test, old is better on AUROC by entropy.",
        "Of the 5 rows that are no ties, 3 keep p < 0.05 after the correction for all 7 rows (Holm).",
        "A difference in NLL as small as the one seen here would take about 12,000 samples to show; there are 500.",
    ]


def test_a_name_of_a_person_keeps_its_capital_in_its_parts() -> None:
    rows = [row("brier_resolution", "Brier, resolution", 1), row("fpr", "FPR at 95 % TPR", 1), row("slope", "Calibration slope", 1)]
    assert pair_sentences("new", "old", rows)[0] == "old is better on Brier (resolution), FPR at 95 % TPR and calibration slope."


def test_only_ties_and_nothing_to_judge() -> None:
    assert pair_sentences("new", "old", [row("nll", "NLL", 0, needed=None), row("brier", "Brier", 0, needed=None)]) == [
        "No difference between new and old can be seen on NLL and Brier."
    ]
    described = Difference("e", "entropy_mean", "", "Total uncertainty", "none", "", 9, 1, 2, 1, 0.5, 1.5, 0.1, 0.1, 0.1, 3)
    assert pair_sentences("new", "old", [described]) == ["No compared metric has a better side."]


def test_numbers_of_samples_are_rounded() -> None:
    assert [rounded(n) for n in (7, 99, 101, 12_345, 987_654)] == ["7", "99", "100", "12,000", "990,000"]
    assert rounded(10**12) == "over a billion"
