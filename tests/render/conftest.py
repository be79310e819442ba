"""A realistic report: 150 classes, 4 members, 2 OOD sets, 3 epochs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import html5lib
import pytest

from sve_cli.report import (
    AnswerPart,
    BinChoice,
    ClassRow,
    Decision,
    Direction,
    MetricValue,
    OodSet,
    ReliabilityBin,
    Report,
    RiskCurve,
    Row,
    Slice,
    Spectrum,
    SpectrumLayer,
)

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


def check_page(text: str) -> None:
    """A document without parse errors that fetches nothing, runs nothing, and whose links lead somewhere inside it."""
    tree = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(text)  # raises at the first error
    tags = [element for element in tree.iter() if isinstance(element.tag, str)]
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {e.tag.rpartition("}")[2] for e in tags}
    ids = [e.attrib["id"] for e in tags if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    for element in tags:
        for name, value in element.attrib.items():
            assert not name.startswith("on") and name not in ("src", "srcset", "data", "action"), (name, value)
            if name.rpartition("}")[2] == "href":
                assert value.startswith("#") and value[1:] in ids, value
            if name == "style":
                assert "url(" not in value
    styles = "".join(e.text or "" for e in tags if e.tag == "style")
    assert "url(" not in styles and "@import" not in styles and "http" not in styles


@pytest.fixture
def strict_page() -> Callable[[str], None]:
    return check_page


@pytest.fixture
def report() -> Report:
    return make_report()


@pytest.fixture
def full_report() -> Report:
    return make_full_report()


def _risk_curve() -> RiskCurve:
    coverage = [(i + 1) / 100 for i in range(100)]
    risk = [0.047 * c**4 for c in coverage]
    oracle = [max(c - 0.953, 0.0) / c for c in coverage]
    low, high = [0.8 * y for y in risk], [min(1.0, 1.2 * y + 0.01 / c) for y, c in zip(risk, coverage, strict=True)]
    return RiskCurve(coverage, risk, low, high, oracle, 0.047)


def _spectrum() -> Spectrum:
    kinds = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")
    layers = [
        SpectrumLayer(f"encoder.layer.{b}.{kind}", 384, 0.01 + 0.001 * b, [0.002 * (r + 1) for r in range(10)], 0.4 - 0.1 * k)
        for b in range(6)
        for k, kind in enumerate(kinds)
    ]
    return Spectrum(4, 0.008, layers)


def make_full_report() -> Report:
    """The fixture with everything a page can show."""

    def share(value: float) -> MetricValue:
        return MetricValue(value, 4500, "higher", "A share.", value - 0.01, value + 0.01)

    uncertain = {key: _METRICS[key] for key in ("entropy_mean", "expected_entropy_mean", "mutual_information_mean")}
    edges = [0.1 * i for i in range(31)]
    report = make_report()
    ensemble = report.row("ensemble")
    risks = {f"risk_at_{p}": replace(ensemble.metrics["aurc"], value=0.047 * (p / 100) ** 4) for p in (80, 90)}
    report.rows[0] = replace(ensemble, metrics={**ensemble.metrics, **risks})
    return replace(
        report,
        history=[{**line, "member_train_loss": [line["train_loss"] * f for f in (0.9, 1.1)]} for line in report.history],
        bin_choices=[BinChoice(b, 0.01 + b / 1000, 0.02) for b in (5, 10, 15, 20)],
        per_class=[ClassRow(name, 30, 29, 0.9, 0.5 + i / 400, 0.5 + i / 400, 0.001) for i, name in enumerate(report.classes)],
        slices=[
            Slice("<b>", f"v{i}", 100, {"accuracy": share(0.5 + i / 100), "ece_top1_w15": share(0.2)}, {"accuracy": i / 50})
            for i in range(20)
        ],
        risk_curve=_risk_curve(),
        answers=[
            AnswerPart("right", 4289, _values(uncertain, -0.3, True), edges, [200 - 6 * i for i in range(30)]),
            AnswerPart("wrong", 211, _values(uncertain, 4.0, True), edges, [10] * 30),
        ],
        decisions=[
            Decision(
                "abstention", "Abstaining", "Answer when sure.", 900, "One.", "Two.", {"answered": share(0.9), "risk": share(0.05)}
            )
        ],
        spectrum=_spectrum(),
    )


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
