"""How different the members of an ensemble are, and whether what they disagree on is far from the training data.

Functions of plain arrays, and the values `sve diversity` shows. Means, sums and ratios are in float64; products of large matrices
are computed in float32.
Shapes: M members, N samples, C classes, F features, D weights, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from sve_cli.errors import SveError
from sve_cli.statistics import bootstrap_counts, grouped_sums, log_softmax, percentile_interval, tie_groups

NEIGHBOURS = 10
PERMUTATIONS = 200
BLOCK_NUMBERS = 4_000_000  # of one block of samples: 32 MB


@dataclass(frozen=True)
class PairMeasure:
    """One number for every pair of members.

    Attributes:
        apart: "higher" or "lower", whichever the number is for members that are more unlike.
        matrix: M x M; row a, column b is the pair (a, b). The diagonal, a member with itself, counts nowhere. NaN: not defined.
    """

    title: str
    definition: str
    apart: Literal["higher", "lower"]
    matrix: list[list[float]]

    def of_pairs(self) -> list[float]:
        """The finite values off the diagonal."""
        pairs = [value for a, row in enumerate(self.matrix) for b, value in enumerate(row) if a != b]
        return [value for value in pairs if math.isfinite(value)]

    @property
    def mean(self) -> float:
        """Mean over ordered pairs; NaN when it is defined for none."""
        values = self.of_pairs()
        return sum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation with its interval.

    `by_chance`: what 95 % of the absolute correlations stay below when the pairing is shuffled.
    """

    value: float
    low: float | None
    high: float | None
    by_chance: float


@dataclass(frozen=True)
class DistanceRow:
    """Rank correlations of one set of samples: uncertainty (by report key) against distance to the training features."""

    name: str
    n: int
    mean_distance: float
    correlations: dict[str, RankCorrelation]


@dataclass(frozen=True)
class Diversity:
    """What `sve diversity` found: JSON is the truth, the other files are views of it."""

    title: str
    dataset: str
    split: str
    members: int
    n: int
    headline: list[str]
    pairs: dict[str, PairMeasure]
    distance: list[DistanceRow]
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON: numbers that are not finite are null, and every pair measure carries its mean."""
        pairs = {key: {**asdict(measure), "mean": measure.mean} for key, measure in self.pairs.items()}
        document = {"schema": "sve-diversity/1", **asdict(self), "pairs": pairs}
        return {key: _plain(value) for key, value in document.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def disagreement_matrix(logits_MNC: np.ndarray, mask_NC: np.ndarray | None = None) -> np.ndarray:
    """Share of samples on which two members name different classes, (M, M); options that do not exist are never named."""
    shown_MNC = logits_MNC if mask_NC is None else np.where(mask_NC, logits_MNC, -np.inf)
    votes_MN = shown_MNC.argmax(axis=2)
    return np.array([[float((a != b).mean()) for b in votes_MN] for a in votes_MN])


def kl_matrix(logits_MNC: np.ndarray, mask_NC: np.ndarray | None = None) -> np.ndarray:
    """Mean over samples of KL(p_a || p_b) in nats, (M, M) with a the row; not symmetric. Only existing options count."""
    m, n, n_classes = logits_MNC.shape
    total_MM = np.zeros((m, m))
    step = max(1, BLOCK_NUMBERS // (m * n_classes))
    for start in range(0, n, step):
        mask = None if mask_NC is None else mask_NC[start : start + step]
        log_probs = [log_softmax(logits_NC[start : start + step], mask) for logits_NC in logits_MNC]
        if mask is not None:  # an option that does not exist adds 0 ln (0 / 0) = 0
            log_probs = [np.where(mask, log_probs_NC, 0.0) for log_probs_NC in log_probs]
        for a, own_NC in enumerate(log_probs):
            probs_NC = np.exp(own_NC)
            total_MM[a] += [float((probs_NC * (own_NC - other_NC)).sum()) for other_NC in log_probs]
    return total_MM / n


def q_statistic_matrix(correct_MN: np.ndarray) -> np.ndarray:
    """Yule's Q of two members' errors, (M, M): (n11 n00 - n10 n01) / (n11 n00 + n10 n01).

    n11: samples both get right, n00: both wrong, n10 and n01: one of them. 0 for independent errors, 1 when one member's errors
    contain the other's, negative when they err on different samples; NaN where the denominator is 0. Kuncheva and Whitaker,
    Machine Learning 51 (2003).
    """
    right = correct_MN.astype(np.float64)
    wrong = 1.0 - right
    same = (right @ right.T) * (wrong @ wrong.T)
    other = (right @ wrong.T) * (wrong @ right.T)
    total = same + other
    return np.where(total > 0, (same - other) / np.where(total > 0, total, 1.0), np.nan)


def inner_products(deviations_MD: np.ndarray) -> np.ndarray:
    """Inner products of the members' deviations in one layer, (M, M); add them up over layers, then `cosine_matrix`."""
    return np.asarray(deviations_MD @ deviations_MD.T, dtype=np.float64)


def cosine_matrix(products_MM: np.ndarray) -> np.ndarray:
    """Cosines from inner products; NaN where a member does not deviate at all."""
    norms_M = np.sqrt(np.diag(products_MM))
    scale_MM = np.outer(norms_M, norms_M)
    return np.where(scale_MM > 0, products_MM / np.where(scale_MM > 0, scale_MM, 1.0), np.nan)


def linear_cka(x_NF: np.ndarray, y_NF: np.ndarray) -> float:
    """Debiased linear centred kernel alignment of two sets of features of the same samples.

    Kornblith et al. 2019 (arXiv 1905.00414) with the unbiased estimator of HSIC (Song et al., JMLR 13, 2012), so that unrelated
    features give about 0 however few the samples are. 1 for equal features; rotations and scalings change nothing; may fall a
    little below 0. NaN for constant features.

    Raises:
        SveError: fewer than 4 samples.
    """
    n = len(x_NF)
    if n < 4:
        raise SveError(f"The similarity of features needs at least 4 samples, not {n}.", "Raise --samples.")
    x, y = (f.astype(np.float64) - f.astype(np.float64).mean(axis=0) for f in (x_NF, y_NF))
    own = _hsic(x, x) * _hsic(y, y)
    return float(_hsic(x, y) / math.sqrt(own)) if own > 0 else math.nan


def _hsic(x_NF: np.ndarray, y_NF: np.ndarray) -> float:
    """Unbiased HSIC of centred features, times n (n - 3), without any N x N matrix.

    With K the Gram matrix of x without its diagonal, centring makes the row sums of K minus the squared norms.
    """
    n = len(x_NF)
    kx_N, ky_N = (x_NF**2).sum(axis=1), (y_NF**2).sum(axis=1)
    both = float(kx_N @ ky_N)
    trace = float(((x_NF.T @ y_NF) ** 2).sum()) - both
    return trace + float(kx_N.sum() * ky_N.sum()) / ((n - 1) * (n - 2)) - 2.0 * both / (n - 2)


def cka_matrix(features_MNF: np.ndarray) -> np.ndarray:
    """`linear_cka` of every pair of members, (M, M)."""
    m = len(features_MNF)
    matrix = np.ones((m, m))
    for a in range(m):
        for b in range(a):
            matrix[a, b] = matrix[b, a] = linear_cka(features_MNF[a], features_MNF[b])
    return matrix


def neighbour_distance(queries_NF: np.ndarray, references_NF: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Mean Euclidean distance (N,) to the k nearest references, all features scaled to length 1.

    Sun et al. 2022 (arXiv 2204.06507), who take the k-th distance; the mean of the k is less noisy. Between 0 and 2.

    Raises:
        SveError: fewer than k references.
    """
    return np.asarray(nearest_distances(queries_NF, references_NF, k).mean(axis=1))


def nearest_distances(queries_NF: np.ndarray, references_NF: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Euclidean distances (N, k) to the k nearest references, in no order, all features scaled to length 1.

    Raises:
        SveError: fewer than k references.
    """
    if len(references_NF) < k:
        raise SveError(f"The distance to {k} neighbours needs {k} training samples; there are {len(references_NF)}.")
    queries, references = _unit(queries_NF), _unit(references_NF)
    found = []
    step = max(1, BLOCK_NUMBERS // len(references))
    for start in range(0, len(queries), step):
        squared = np.maximum(2.0 - 2.0 * (queries[start : start + step] @ references.T), 0.0)
        found.append(np.sqrt(np.partition(squared, k - 1, axis=1)[:, :k]))
    return np.concatenate(found) if found else np.zeros((0, k))


def _unit(features_NF: np.ndarray) -> np.ndarray:
    features = features_NF.astype(np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norms > 0, norms, 1.0)


def rank_correlation(
    x_N: np.ndarray, y_N: np.ndarray, rng: np.random.Generator, resamples: int = 1000, confidence: float = 0.95
) -> RankCorrelation:
    """Spearman's rank correlation (mean ranks for ties) with a bootstrap interval, and what shuffled pairs give.

    NaN where one side is constant; resamples in which it is are left out of the interval.
    """
    groups = [tie_groups(x_N), tie_groups(y_N)]
    value = float(_spearman(groups, np.ones((len(x_N), 1)))[0])
    if not math.isfinite(value):
        return RankCorrelation(math.nan, None, None, math.nan)
    low = high = None
    if resamples:
        drawn = [_spearman(groups, weights_NR) for weights_NR in bootstrap_counts(len(x_N), resamples, rng)]
        values_R = np.concatenate(drawn)
        low, high = percentile_interval(values_R[np.isfinite(values_R)], confidence)
    shuffled_R = permuted_correlations(x_N, y_N, rng)
    return RankCorrelation(value, low, high, float(np.quantile(np.abs(shuffled_R), 0.95)))


def permuted_correlations(x_N: np.ndarray, y_N: np.ndarray, rng: np.random.Generator, times: int = PERMUTATIONS) -> np.ndarray:
    """Rank correlations (R,) of x with shuffled y: what chance gives. They scatter around 0."""
    ranks_2N = [_mid_ranks(group_N, count, np.ones((len(group_N), 1)))[:, 0] for group_N, count in map(tie_groups, (x_N, y_N))]
    a_N, b_N = ((r - r.mean()) / np.linalg.norm(r - r.mean()) for r in ranks_2N)
    return np.array([float(a_N @ rng.permutation(b_N)) for _ in range(times)])


def _spearman(groups: Sequence[tuple[np.ndarray, int]], weights_NR: np.ndarray) -> np.ndarray:
    """Spearman's correlation (R,) of two variables given by their tie groups, each sample counted as often as its weight says."""
    n = weights_NR.sum(axis=0)
    ranks = [_mid_ranks(group_N, count, weights_NR) for group_N, count in groups]
    a, b = (r - (weights_NR * r).sum(axis=0) / n for r in ranks)
    covariance, va, vb = ((weights_NR * p * q).sum(axis=0) for p, q in ((a, b), (a, a), (b, b)))
    scale = np.sqrt(va * vb)
    return np.where(scale > 0, covariance / np.where(scale > 0, scale, 1.0), np.nan)


def _mid_ranks(group_N: np.ndarray, count: int, weights_NR: np.ndarray) -> np.ndarray:
    """Mean rank of each sample among the weighted samples, up to a constant (N, R)."""
    size_GR = grouped_sums(weights_NR, group_N, count)
    return np.asarray((np.cumsum(size_GR, axis=0) - size_GR / 2.0)[group_N])
