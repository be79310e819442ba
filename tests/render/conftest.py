"""A realistic report: 150 classes, 4 members, 2 OOD sets, 3 epochs."""

from __future__ import annotations

import math

import pytest

from sve_cli.report import Direction, MetricValue, OodSet, ReliabilityBin, Report, Row

HOSTILE_CLASS = "<script>alert(1)</script>"
HOSTILE_DATASET = "clinc|150"

_METRICS: dict[str, tuple[float, Direction, str]] = {
    "accuracy": (0.953, "higher", "Share of samples whose most probable class is the label."),
    "macro_f1": (0.951, "higher", "Mean over classes of the F1 score."),
    "nll": (0.1834, "lower", "Negative log of the ensemble's mean probability of the label, in nats, mean over samples."),
    "brier": (0.0721, "lower", "Sum over classes of the squared error of the mean probability, mean over samples (0 to 2)."),
    "ece_top1_w15": (0.0192, "lower", "Top-label calibration error, 15 equal-width bins, weighted |accuracy - confidence|."),
    "ece_top1_m15": (0.0187, "lower", "Top-label calibration error, 15 bins of equal mass."),
    "ece_class_w15": (0.0011, "lower", "Mean over classes of the one-vs-rest calibration error."),
    "mce_top1_w15": (0.121, "lower", "Largest |accuracy - confidence| of a bin."),
    "aurc": (0.00612, "lower", "Area under the risk-coverage curve, ordered by confidence."),
    "disagreement": (0.0312, "none", "Share of member pairs with different most probable class."),
    "entropy_mean": (0.2604, "none", "Entropy of the mean probability, in nats, mean over samples."),
    "expected_entropy_mean": (0.2218, "none", "Mean over members of each member's entropy, in nats, mean over samples."),
    "mutual_information_mean": (0.0386, "none", "Entropy of the mean minus mean entropy, in nats, mean over samples."),
}
_OOD: dict[str, tuple[float, Direction, str]] = {
    "auroc_ood": (0.9412, "higher", "Chance that an OOD sample scores higher than an ID one; OOD is the positive class."),
    "aupr_ood": (0.802, "higher", "Average precision with OOD as the positive class."),
    "aupr_id": (0.986, "higher", "Average precision with ID as the positive class."),
    "fpr95_ood_positive": (0.287, "lower", "Share of ID flagged when 95 % of OOD is caught."),
    "fpr95_id_positive": (0.243, "lower", "Share of OOD accepted when 95 % of ID is kept."),
}


def _values(table: dict[str, tuple[float, Direction, str]], factor: float, interval: bool) -> dict[str, MetricValue]:
    values = {}
    for key, (base, direction, definition) in table.items():
        value = base * (1 + factor if direction != "higher" else 1 - factor / 10)
        spread = 0.006 if direction == "higher" else 0.12 * value
        low, high = (value - spread, value + spread) if interval else (None, None)
        values[key] = MetricValue(value, 4500, direction, definition, low, high)
    return values


def _bins(over: float) -> list[ReliabilityBin]:
    bins = []
    for i in range(15):
        lower, upper = i / 15, (i + 1) / 15
        count = 0 if i < 2 else round(4 * math.exp(0.42 * (i - 2)))
        confidence = (lower + upper) / 2 + 0.004 * ((i * 7) % 5 - 2)
        accuracy = min(max(confidence - over * math.sin(math.pi * confidence) + 0.03 * ((i * 5) % 3 - 1), 0.0), 1.0)
        half = 1.96 * math.sqrt(accuracy * (1 - accuracy) / count + 0.96 / count**2) if count else 0.0
        bins.append(ReliabilityBin(lower, upper, count, confidence, accuracy, max(accuracy - half, 0.0), min(accuracy + half, 1.0)))
    return bins


def _histogram(shift: float) -> dict[str, list[float]]:
    edges = [i * 5.0 / 30 for i in range(31)]
    inside = [round(4500 * math.exp(-1.7 * e) * 0.25) for e in edges[:-1]]
    outside = [round(300 * math.exp(-(((e - shift) / 0.9) ** 2)) * 0.35) for e in edges[:-1]]
    return {"edges": edges, "id": [float(v) for v in inside], "ood": [float(v) for v in outside]}


@pytest.fixture
def report() -> Report:
    return make_report()


def make_report() -> Report:
    """The fixture; the class names and the data set's name are hostile."""
    rows = [
        Row("ensemble", "Ensemble of 4", _values(_METRICS, 0.0, True), _bins(0.09)),
        Row("temperature", "Ensemble, temperature 0.87", _values(_METRICS, -0.05, True), _bins(0.02)),
        Row("before", "Checkpoint before training", _values({k: _METRICS[k] for k in ("accuracy", "nll", "brier")}, 7.0, True)),
        *(Row(f"members.{m}", f"Member {m}", _values(_METRICS, 0.1 + 0.04 * m, True)) for m in range(4)),
    ]
    scores = ("max_probability", "entropy", "mutual_information", "energy")
    ood = [
        OodSet(
            name,
            4500,
            n,
            {score: _values(_OOD, 0.1 * i + extra, True) for i, score in enumerate(scores)},
            {score: _histogram(2.6 - 0.2 * i - extra) for i, score in enumerate(scores)},
        )
        for name, n, extra in ((f"{HOSTILE_DATASET}:oos_test", 1000, 0.0), ("banking77:test", 3080, 0.3))
    ]
    return Report(
        title=f"sve on {HOSTILE_DATASET}, all-MiniLM-L6-v2, 4 members",
        headline=[
            "The ensemble is accurate (95.3 %) and slightly overconfident: confidence exceeds accuracy by 1.9 points on average.",
            "A temperature of 0.87 brings the calibration error from 1.9 % to 1.8 %.",
            "It beats its average member by 0.9 points of accuracy and 0.030 nats.",
            "Of 1,000 out-of-scope questions, 95 % are caught at the price of flagging 28.7 % of the ordinary ones.",
        ],
        rows=rows,
        dataset=HOSTILE_DATASET,
        split="test",
        n=4500,
        classes=[HOSTILE_CLASS, *(f"intent_{i}" for i in range(149))],
        ood=ood,
        warnings=["The test split has 30 samples per class.", f"Class '{HOSTILE_CLASS}' has 2 samples in validation."],
        history=[
            {"round": 0, "epoch": 1, "train_loss": 2.31, "validation_nll": 0.61, "seconds": 41.2},
            {"round": 0, "epoch": 2, "train_loss": 0.48, "validation_nll": 0.274, "seconds": 40.8},
            {"round": 0, "epoch": 3, "train_loss": 0.21, "validation_nll": 0.231, "seconds": 40.9},
        ],
        parameters={
            "sigma": 55296,
            "bias": 82944,
            "norm": 0,
            "head": 231000,
            "backbone": 0,
            "extra_fraction": 0.01634,
            "stored_bytes": 1477632,
        },
        provenance={
            "recipe_digest": "5c1b0f7a9e3d",
            "checkpoint": {"name": "sentence-transformers/all-MiniLM-L6-v2", "digest": "sha256:" + "0123456789abcdef" * 4},
            "seeds": [0, 1],
            "aggregate": "probs",
            "versions": {"python": "3.11.9", "torch": "2.9.1"},
            "hardware": "2 CPU cores, no accelerator",
            "command": "sve train recipes/clinc150.yaml train.lr=2e-2",
            "precision_gap": 3.1e-6,
        },
    )
