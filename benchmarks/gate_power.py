"""How often the gate fails without and with a true worsening: python benchmarks/gate_power.py [--pairs N] [--out FILE]

A pair is a model and its retraining: two noisy copies of a recorded network's log-probabilities on the same fresh samples, so
that about 3 % of the predictions differ. The second copy is made more over-confident by a temperature that is found by bisection
so that its true worsening, measured on the whole population (40 copies of all recorded samples), is the one asked for. Without
SVE_DATA_DIR the records are made up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sve_cli.gate import GateSettings, GateSpec, Samples, judge_worsening, metrics_by_key, share_level
from sve_cli.metrics.binning import bin_index
from sve_cli.workflows.gate import compare_samples

KEY, BINS = "ece_top1_w15", 15
RECORDS = "cifar10_wideresnet-16-4"
COPIES = 40  # of every recorded sample: the population
NOISE = 1.0  # standard deviation of the retraining's noise on every log-probability
POINTS = 0.02
STEPS = (0.0, 0.005, 0.01, 0.015, POINTS)
BASELINES = ("as recorded", "after temperature scaling")


@dataclass(frozen=True)
class Setting:
    """One row. `failed`: share of the pairs that fail; `blind`: share in which the gate says that it cannot see 2 points."""

    name: str
    n: int
    true_worsening: float
    pairs: int
    failed: float
    blind: float
    detectable: float
    differing: float


def load() -> tuple[np.ndarray, np.ndarray, str]:
    """Log-probabilities (N, C), labels (N,) and where they come from."""
    folder = os.environ.get("SVE_DATA_DIR", "")
    path = Path(folder) / "calib_records" / f"{RECORDS}.parquet"
    if folder and path.is_file():
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        probs_NC = table["probs"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1).astype(np.float64)
        return np.log(np.maximum(probs_NC, 1e-30)), table["label"].to_numpy(), RECORDS
    rng = np.random.default_rng(0)
    labels_N = rng.integers(10, size=10_000)
    logits_NC = rng.normal(size=(10_000, 10)) * 2.0
    logits_NC[np.arange(10_000), labels_N] += rng.gamma(4.0, 2.0, size=10_000)
    return logits_NC, labels_N, "made up"


def copy(logits_NC: np.ndarray, labels_N: np.ndarray, scale: float, rng: np.random.Generator) -> Samples:
    """The samples of one noisy copy, its logits multiplied by `scale`."""
    z_NC = (logits_NC + NOISE * rng.normal(size=logits_NC.shape)) * scale
    z_NC -= z_NC.max(axis=1, keepdims=True)
    probs_NC = np.exp(z_NC)
    total_N = probs_NC.sum(axis=1)
    probs_NC /= total_N[:, None]
    predicted_N, rows = probs_NC.argmax(axis=1), np.arange(len(labels_N))
    return Samples(
        [str(i) for i in rows], labels_N, probs_NC.max(axis=1), (predicted_N == labels_N).astype(np.float64),
        np.log(total_N) - z_NC[rows, labels_N], np.square(probs_NC).sum(axis=1), [str(c) for c in range(z_NC.shape[1])],
    )  # fmt: skip


def true_ece(logits_NC: np.ndarray, labels_N: np.ndarray, scale: float, copies: int = COPIES) -> float:
    """The calibration error of the population: noisy copies of every recorded sample."""
    rng, gaps_B, n = np.random.default_rng(1), np.zeros(BINS), 0
    for _ in range(copies):
        made = copy(logits_NC, labels_N, scale, rng)
        index_N = bin_index(made.confidence_N, BINS)
        gaps_B += np.bincount(index_N, made.correct_N - made.confidence_N, BINS)
        n += made.n
    return float(np.abs(gaps_B).sum() / n)


def scale_for(logits_NC: np.ndarray, labels_N: np.ndarray, start: float, worsening: float) -> float:
    """The scale above `start` whose calibration error is so much larger, by bisection."""
    target = true_ece(logits_NC, labels_N, start) + worsening
    low, high = start, 2.0 * start
    while true_ece(logits_NC, labels_N, high) < target:
        low, high = high, 2.0 * high
    for _ in range(12):
        middle = (low + high) / 2.0
        low, high = (middle, high) if true_ece(logits_NC, labels_N, middle) < target else (low, middle)
    return (low + high) / 2.0


def best_scale(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The scale with the smallest calibration error: what temperature scaling would give."""
    scales = np.linspace(0.3, 1.1, 17)
    return float(scales[int(np.argmin([true_ece(logits_NC, labels_N, s, 4) for s in scales]))])


def measure(
    name: str, logits_NC: np.ndarray, labels_N: np.ndarray, scales: tuple[float, float], n: int, pairs: int, resamples: int
) -> Setting:
    """Judge that many fresh pairs of n samples with slack 0."""
    settings, level, metric = GateSettings(bootstrap=resamples), share_level(0.95, 1), metrics_by_key(BINS)[KEY]
    rng = np.random.default_rng([n, round(1e6 * scales[1])])
    failed, blind, detectable, differing = 0, 0, [], 0.0
    for k in range(pairs):
        rows = rng.integers(len(labels_N), size=n)
        first, second = (copy(logits_NC[rows], labels_N[rows], scale, rng) for scale in scales)
        fresh = GateSettings(bootstrap=settings.bootstrap, seed=k)
        seen = compare_samples(first, second, {KEY: metric}, BINS, fresh, level)[KEY]
        check = judge_worsening(KEY, "lower", GateSpec(slack=0.0), seen, level)
        failed, blind = failed + (check.outcome == "fail"), blind + check.blind
        detectable.append(check.detectable)
        differing += float((first.correct_N != second.correct_N).mean())
    true = true_ece(logits_NC, labels_N, scales[1]) - true_ece(logits_NC, labels_N, scales[0])
    return Setting(name, n, true, pairs, failed / pairs, blind / pairs, float(np.median(detectable)), differing / pairs)


def measured_detectable(rows: list[Setting]) -> float:
    """The worsening with 80 % power, between the two settings around it."""
    ordered = sorted(rows, key=lambda row: row.true_worsening)
    return float(np.interp(0.8, [row.failed for row in ordered], [row.true_worsening for row in ordered]))


def table(rows: list[Setting]) -> list[str]:
    """The rows as Markdown."""
    heads = ["baseline", "n", "true worsening of ECE", "pairs", "failed", "said to be blind to 2 points"]
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row.name} | {row.n:,} | {100 * row.true_worsening:.2f} | {row.pairs} | {100 * row.failed:.1f} % "
            f"| {100 * row.blind:.1f} % |"
        )
    return lines


def study(name: str, pairs: int, resamples: int) -> tuple[list[Setting], dict[str, float | str], float]:
    """All settings of one baseline; what it prints and what was measured; CPU seconds."""
    started = time.process_time()
    logits_NC, labels_N, _ = load()
    scale = 1.0 if name == BASELINES[0] else best_scale(logits_NC, labels_N)
    ends = {step: scale_for(logits_NC, labels_N, scale, step) if step else scale for step in STEPS}
    rows = []
    for step in STEPS:
        these = pairs if step in (0.0, POINTS) else max(pairs * 3 // 10, 2)
        rows.append(measure(name, logits_NC, labels_N, (scale, ends[step]), 4500, these, resamples))
    power: dict[str, float | str] = {
        "baseline": name, "ece": true_ece(logits_NC, labels_N, scale), "printed": rows[0].detectable,
        "measured": measured_detectable(rows),
    }  # fmt: skip
    for step in (0.0, POINTS):
        rows.append(measure(name, logits_NC, labels_N, (scale, ends[step]), 200, pairs, resamples))
    return rows, power, time.process_time() - started


def main() -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=1, help="processes, at most 2")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gate_power.json")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(pool.map(study, BASELINES, [options.pairs] * 2, [options.resamples] * 2))
    rows, powers = [row for part in found for row in part[0]], [part[1] for part in found]
    lines = table(rows)
    for power in powers:
        printed, measured = float(power["printed"]), float(power["measured"])
        lines.append(
            f"{power['baseline']} (ECE {100 * float(power['ece']):.2f}): detectable at n = 4,500 printed {100 * printed:.2f}, "
            f"measured {100 * measured:.2f} points, ratio {printed / measured:.2f}"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    document = {
        "source": load()[2], "noise": NOISE, "resamples": options.resamples,
        "cpu_seconds": round(sum(part[2] for part in found)), "settings": [asdict(row) for row in rows], "detectable": powers,
    }  # fmt: skip
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
