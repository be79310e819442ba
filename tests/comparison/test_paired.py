"""The interval of a paired difference: what moves it and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from sve_cli.comparison.paired import centred_interval
from sve_cli.statistics import bootstrap_counts


@pytest.mark.parametrize("seed", range(8))
def test_one_sample_that_differs_is_never_a_verdict(seed: int) -> None:
    n = 48
    gain_N = np.zeros(n)
    gain_N[5] = 1.0
    blocks = bootstrap_counts(n, 1000, np.random.default_rng(seed))
    values_R = np.concatenate([gain_N @ weights_NR / n for weights_NR in blocks])
    low, high = centred_interval(values_R, 1 / n, 0.95)
    assert low == 0.0 < high  # more than a third of the resamples lack this sample
    assert centred_interval(-values_R, -1 / n, 0.95) == (-high, 0.0)


def test_a_bias_of_the_resamples_is_taken_out() -> None:
    values_R = np.random.default_rng(0).normal(0.5, 0.1, 1000)  # the difference seen is 0.2
    low, high = centred_interval(values_R, 0.2, 0.95)
    assert (low + high) / 2 == pytest.approx(0.2, abs=0.02) and high - low == pytest.approx(2 * 1.96 * 0.1, rel=0.1)
