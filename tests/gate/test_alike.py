from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sve_cli.gate import Against, Alike, GateSpec, alike, alone, alone_from, judge_worsening, share_level
from sve_cli.metrics.base import Weighted

N, BINS = 600, 5


def sides(rng: np.random.Generator, gap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bin of each sample, and right - confidence on two sides that share most of their noise."""
    bin_N = rng.integers(BINS, size=N)
    shared_N = 0.4 * rng.normal(size=N) + gap * np.where(bin_N % 2, 1.0, -1.0)
    return bin_N, shared_N + 0.2 * rng.normal(size=N), shared_N + 0.2 * rng.normal(size=N)


def gaps(bin_N: np.ndarray, gap_N: np.ndarray) -> Weighted:
    table_BN = (bin_N == np.arange(BINS)[:, None]) * gap_N
    return lambda weights_NR: table_BN @ weights_NR / N


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1])
def test_it_is_the_spread_of_pairs_without_a_change(gap: float) -> None:
    rng = np.random.default_rng(0)
    seen, told = [], []
    for k in range(300):
        bin_N, one_N, two_N = sides(rng, gap)
        ones_N1 = np.ones((N, 1))
        first, second = gaps(bin_N, one_N), gaps(bin_N, two_N)
        seen.append(float(np.abs(second(ones_N1)).sum() - np.abs(first(ones_N1)).sum()))
        if k < 15:
            told.append(alike(first, second, N, 200, k)[0].error)
    assert np.mean(told) == pytest.approx(np.std(seen), rel=0.15)


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.1])
def test_what_is_noise_of_a_sum_is_told_apart(gap: float) -> None:
    """The true sum of |gaps| is `gap`; what is seen above it is noise. At least half of that is found, and hardly more than all."""
    rng = np.random.default_rng(0)
    noise, told = [], []
    for k in range(150):
        bin_N, one_N, two_N = sides(rng, gap)
        first, second = gaps(bin_N, one_N), gaps(bin_N, two_N)
        noise.append(float(np.abs(first(np.ones((N, 1)))).sum()) - gap)
        told.append(alike(first, second, N, 100, k)[0].folded)
    seen, found = float(np.mean(noise)), float(np.mean(told))
    assert 0.5 * seen - 0.002 <= found <= 1.1 * max(seen, 0.0) + 0.002


def test_what_hides_a_worsening_makes_the_gate_blinder() -> None:
    level, gate = share_level(0.95, 1), GateSpec(slack=0.0)
    seen = Against(0.05, 0.04, 0.001, 0.019, 0.005, 4500, 2000, 0.01, 0.0, alike=Alike(0.003, 0.0, 0.0))
    checks = [
        judge_worsening("ece_top1_w15", "lower", gate, replace(seen, alike=Alike(0.003, 0.0, folded)), level)
        for folded in (0.0, 0.004)
    ]
    assert checks[0].detectable is not None and checks[1].detectable is not None
    assert checks[1].detectable - checks[0].detectable == pytest.approx(0.004)
    assert checks[0].low == checks[1].low


def test_the_baseline_alone_takes_the_resamples_that_were_drawn() -> None:
    """To the bit what drawing them once more gives."""
    bin_N, one_N, two_N = sides(np.random.default_rng(1), 0.02)
    first, level = gaps(bin_N, one_N), share_level(0.95, 1)
    total: Weighted = lambda weights_NR: np.abs(first(weights_NR)).sum(axis=0)  # noqa: E731
    _, values_R = alike(first, gaps(bin_N, two_N), N, 200, 3)
    assert alone_from(total, values_R, N, level) == alone(total, N, 200, level, 3)


def test_the_lower_bound_is_the_smaller_of_two() -> None:
    level, gate = share_level(0.95, 1), GateSpec(slack=0.0)
    seen = Against(0.05, 0.04, 0.001, 0.019, 0.005, 4500, 2000, 0.01, 0.0, alike=Alike(0.003, 0.0, 0.0))
    check = judge_worsening("ece_top1_w15", "lower", gate, seen, level)
    assert check.low == pytest.approx(0.01 - 1.6456 * 0.005, abs=1e-6), "the bootstrap's, one-sided, with 1,999 degrees of freedom"
    wider = judge_worsening("ece_top1_w15", "lower", gate, replace(seen, alike=Alike(0.006, 0.0, 0.0)), level)
    assert wider.low == pytest.approx(0.01 - 1.9612 * 0.006, abs=1e-6) and wider.outcome == "pass" != check.outcome
    hidden = judge_worsening("ece_top1_w15", "lower", gate, replace(seen, alike=Alike(0.003, -0.002, 0.0)), level)
    assert hidden.low == pytest.approx(0.01 - 1.6456 * 0.005 + 0.001, abs=1e-6), "half of what resampling hides is given back"
    plain = judge_worsening("ece_top1_w15", "lower", gate, replace(seen, alike=None), level)
    assert plain.low == pytest.approx(0.01 - 1.9612 * 0.005, abs=1e-6)
    assert check.detectable is not None and plain.detectable is not None and check.detectable < plain.detectable


def test_one_flipped_sample_is_no_evidence() -> None:
    seen = Against(0.05, 0.04, 0.001, 0.019, 0.001, 4500, 1, 0.01, 0.0, alike=Alike(0.001, 0.0, 0.0))
    assert judge_worsening("ece_top1_w15", "lower", GateSpec(slack=0.0), seen, share_level(0.95, 1)).low == -math.inf
