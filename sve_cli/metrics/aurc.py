"""Area under the risk-coverage curve (Geifman et al. 2019, arXiv 1805.08206)."""

from __future__ import annotations

import numpy as np

from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.base import Metric, Weighted
from sve_cli.metrics.ranking import ranking_of
from sve_cli.metrics.sums import remembering


def aurc_of(view: Aggregated, bins: int) -> Weighted:
    """The area as a function of whole-number weights."""
    found: Weighted = view.once("aurc", lambda: remembering(_area(view)))
    return found


def _area(view: Aggregated) -> Weighted:
    ranking = ranking_of(view)
    wrong_E = ranking.wrong_E

    def weighted(weights_UR: np.ndarray) -> np.ndarray:
        mass_GR, errors_ER = ranking.mass(weights_UR), ranking.errors(weights_UR)
        total_R, after_ER = mass_GR[-1], mass_GR[wrong_E]
        before_ER = np.where(wrong_E[:, None] > 0, mass_GR[np.maximum(wrong_E - 1, 0)], 0.0)
        harmonic = harmonic_numbers(total_R.max())
        to_end_ER = harmonic[_whole(total_R)] - harmonic[_whole(after_ER)]
        own_ER = harmonic[_whole(after_ER)] - harmonic[_whole(before_ER)]
        # Within a group of g tied samples with error rate e, E errors and w samples above it, the risks add up to
        # sum_{j=1..g} (E + j e) / (w + j) = g e + (E - w e) (H(w + g) - H(w)). What stands above, E, is summed from the other
        # side: each error adds H(n) - H(its last place), so that only the groups with errors count.
        size_ER = after_ER - before_ER
        rate_ER = np.divide(errors_ER, size_ER, out=np.zeros_like(errors_ER), where=size_ER > 0)
        return np.asarray((errors_ER * (1.0 + to_end_ER) - before_ER * rate_ER * own_ER).sum(axis=0) / total_R)

    return weighted


def harmonic_numbers(most: float) -> np.ndarray:
    """H(0), H(1), ... H(most)."""
    return np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1.0, most + 1.0))])


def _whole(mass: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(mass).astype(np.int64))


aurc = Metric(
    "aurc",
    "lower",
    "Area under the risk-coverage curve: mean over k = 1 ... n of the error rate of the k most confident samples (0 to 1, not "
    "times 1000); errors among equal confidences are spread evenly.",
    aurc_of,
    limits=(0.0, 1.0),
    ranked=True,
)
