"""Probability arithmetic, bootstrap and intervals on plain arrays: knows nothing of metrics, models or reports.

Shapes: M members, N samples, C classes, R resamples, G groups. Everything is computed in float64; entropies are in nats.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.special import logsumexp, ndtri
from threadpoolctl import threadpool_limits

from sve_cli.errors import SveError

AGGREGATES = ("probs", "logits")
WEIGHTED = "weighted"  # as a setting; fitted, it is "weighted:w0,w1,…", one weight a member
ROUNDING = 1e-14  # a mutual information below this is the rounding of a difference of entropies, and counts as 0
VANISHING = -690.0  # log of a probability near the smallest that float64 holds with all its digits
DIGITS = 13  # decimals of a probability beyond which two are equal: stated ones pass through a logarithm and back
NEAR = 1e-6  # of 1: there every digit counts
BLOCK_ELEMENTS = 2_000_000  # numbers of one block of bootstrap weights: 16 MB, whatever N and R are


class Uncertainty(NamedTuple):
    """The ensemble's distribution and the uncertainty of each sample, see `ensemble_uncertainty`."""

    log_probs_NC: np.ndarray
    total_N: np.ndarray
    expected_N: np.ndarray
    mutual_N: np.ndarray


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """The products of resampling are small and come thick and fast: OpenBLAS's second thread spins and waits more than it helps.

    Measured on two busy cores, 10,000 x 150 predictions: 8.7 CPU seconds with two threads, 2.0 with one.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        yield


def seeded(seed: int, purpose: str) -> np.random.Generator:
    """A random generator keyed by (seed, purpose), so that no draw depends on what was drawn before it."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def require_usable(logits_MNC: np.ndarray, mask_NC: np.ndarray | None, ids_N: Sequence[str], where: str) -> None:
    """Refuse logits that are NaN or infinite (where the option exists), and samples with no option at all.

    Args:
        where: the data set and split, for the message.

    Raises:
        SveError: names the first such sample and the data set.
    """
    if not len(ids_N):
        raise SveError(f"There are no samples in '{where}'.", "Check the split and --limit.")
    step = max(BLOCK_ELEMENTS // max(logits_MNC.shape[0] * logits_MNC.shape[2], 1), 1)
    starts = range(0, logits_MNC.shape[1], step)  # in blocks: a mask of all numbers would be large
    good_MN = np.concatenate([_usable(logits_MNC[:, i : i + step], mask_NC, i) for i in starts], axis=1)
    if not good_MN.all():
        member, sample = (int(i) for i in np.argwhere(~good_MN)[0])
        bad = int((~good_MN).any(axis=0).sum())
        raise SveError(
            f"The logits of sample '{ids_N[sample]}' of '{where}' are not finite (member {member}; {bad} of {len(ids_N)} samples).",
            "The model overflowed or diverged: predict in float32, or look at the training history.",
        )
    if mask_NC is not None and not (some_N := mask_NC.any(axis=1)).all():
        raise SveError(f"Sample '{ids_N[int(np.argmin(some_N))]}' of '{where}' has no options.", "Mend or remove the row.")


def _usable(logits_MBC: np.ndarray, mask_NC: np.ndarray | None, start: int) -> np.ndarray:
    good_MBC = np.isfinite(logits_MBC)
    if mask_NC is not None:
        good_MBC |= ~mask_NC[start : start + logits_MBC.shape[1]]
    return np.asarray(good_MBC.all(axis=2))


def require_aggregate(aggregate: str) -> None:
    """Refuse a way of averaging members that does not exist.

    Raises:
        SveError: neither "probs" nor "logits" nor fitted weights.
    """
    if aggregate == WEIGHTED:
        raise SveError(
            "The members' weights are not fitted here: 'weighted' is for a run, on whose validation split they are fitted.",
            "Choose probs or logits.",
        )
    if aggregate not in AGGREGATES and not aggregate.startswith(f"{WEIGHTED}:"):
        raise SveError(f"Unknown aggregate '{aggregate}'.", f"Known: {', '.join(AGGREGATES)}.")


def weighted_aggregate(weights_M: Sequence[float]) -> str:
    """The aggregate that is the mean of the members' probabilities with these weights."""
    return f"{WEIGHTED}:{','.join(repr(float(w)) for w in weights_M)}"


def without_weights(aggregate: str) -> str:
    """The same, or "probs" for weights: what is left where the members are not those that the weights were fitted for."""
    return "probs" if aggregate.startswith(WEIGHTED) else aggregate


def member_weights(aggregate: str, n_members: int) -> np.ndarray | None:
    """The fitted weights (M,), or None for equal ones; one member alone has the weight 1, whatever the aggregate.

    Raises:
        SveError: weights of another number of members, or an unknown aggregate.
    """
    require_aggregate(aggregate)
    if aggregate in AGGREGATES or n_members == 1:
        return None
    weights_M = np.array([float(w) for w in aggregate.removeprefix(f"{WEIGHTED}:").split(",")])
    if len(weights_M) != n_members:
        raise SveError(f"There are weights for {len(weights_M)} members, and the predictions have {n_members}.", "Use probs.")
    return weights_M


def log_softmax(logits_NC: np.ndarray, mask_NC: np.ndarray | None = None) -> np.ndarray:
    """Log-probabilities over the last axis in float64; options that do not exist get probability 0 (-inf)."""
    logits = logits_NC.astype(np.float64)
    if mask_NC is not None:
        logits = np.where(mask_NC, logits, -np.inf)
    logits -= logits.max(axis=-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return logits


def mean_log_probs(logits_MNC: np.ndarray, mask_NC: np.ndarray | None, aggregate: str) -> np.ndarray:
    """The ensemble's log-probabilities (N, C), one member in memory at a time.

    Args:
        aggregate: "probs": log of the mean of the members' probabilities; "logits": log-softmax of the mean logits;
            "weighted:w0,w1,…": log of their mean with these weights.

    Raises:
        SveError: another aggregate.
    """
    return _mean_log_probs((log_softmax(logits, mask_NC) for logits in logits_MNC), len(logits_MNC), aggregate)


def _mean_log_probs(members: Iterator[np.ndarray], n_members: int, aggregate: str) -> np.ndarray:
    weights_M = member_weights(aggregate, n_members)
    if n_members == 1:
        return next(members)
    if aggregate != "logits":
        return _log_mean(members, np.ones(n_members) if weights_M is None else weights_M, n_members if weights_M is None else 1)
    total_NC = next(members)
    for log_probs_NC in members:
        total_NC = total_NC + log_probs_NC
    return log_softmax(total_NC / n_members)  # the mean logit and the mean log-probability differ by a constant per sample


def _log_mean(members: Iterator[np.ndarray], weights_M: np.ndarray, divisor: int) -> np.ndarray:
    """log(sum of weight * p / divisor): from the probabilities themselves as long as none of them vanishes, which is faster."""
    total_NC, logs = np.zeros(()), False
    for log_probs_NC, weight in zip(members, weights_M, strict=True):
        if not logs and _vanish(log_probs_NC):
            total_NC, logs = _log(total_NC), True
        total_NC = np.logaddexp(total_NC, log_probs_NC + _log(weight)) if logs else total_NC + weight * np.exp(log_probs_NC)
    return np.minimum(total_NC - np.log(divisor) if logs else _log(total_NC / divisor), 0.0)


def _vanish(log_probs_NC: np.ndarray) -> bool:
    """Whether a probability of an option that exists is too small to be added up in float64."""
    return bool(log_probs_NC.min() < VANISHING and ((log_probs_NC < VANISHING) & (log_probs_NC > -np.inf)).any())


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # 0 for an option that does not exist
        return np.asarray(np.log(values))


def log_option_counts(mask_NC: np.ndarray | None) -> np.ndarray | None:
    """ln K_n per sample when the number of options varies between samples, else None (entropies stay in nats)."""
    if mask_NC is None:
        return None
    counts_N = mask_NC.sum(axis=1)
    return None if (counts_N == counts_N[0]).all() else np.log(counts_N.astype(np.float64))


def entropies_of(log_probs_NC: np.ndarray) -> np.ndarray:
    """Entropy of each row (N,) in nats; 0 ln 0 = 0."""
    probs_NC = np.exp(log_probs_NC)
    if log_probs_NC.min(initial=0.0) == -np.inf:
        log_probs_NC = np.where(probs_NC > 0.0, log_probs_NC, 0.0)
    return np.asarray(0.0 - np.einsum("nc,nc->n", probs_NC, log_probs_NC))


def ensemble_uncertainty(
    logits_MNC: np.ndarray, mask_NC: np.ndarray | None, aggregate: str, scale_N: np.ndarray | None = None
) -> Uncertainty:
    """Total, expected and mutual-information uncertainty of each sample.

    total = entropy of the ensemble's distribution, expected = mean entropy of the members, mutual = entropy of the mean
    probability minus expected, clipped at 0 (and exactly 0 for one member). The mutual information always takes the mean
    of the probabilities, which is what makes it one: 0 <= mutual <= ln min(M, C); with aggregate "logits" total is
    therefore not expected + mutual. With weights, both means are weighted. Where the number of options varies between
    samples, each of the three is divided by ln K_n of its sample (0 when K_n = 1), otherwise they are in nats.

    Args:
        scale_N: ln K_n, where these samples are a part of others and the options vary between those.
    """
    require_aggregate(aggregate)
    entropies: list[np.ndarray] = []

    def members() -> Iterator[np.ndarray]:
        for logits_NC in logits_MNC:
            log_probs_NC = log_softmax(logits_NC, mask_NC)
            entropies.append(entropies_of(log_probs_NC))
            yield log_probs_NC

    n_members = len(logits_MNC)
    weights_M = member_weights(aggregate, n_members)
    mean_NC = _mean_log_probs(members(), n_members, "probs" if weights_M is None else aggregate)
    log_probs_NC = mean_NC if aggregate != "logits" or n_members == 1 else mean_log_probs(logits_MNC, mask_NC, aggregate)
    expected_N = np.average(entropies, axis=0, weights=weights_M) if weights_M is not None else np.mean(entropies, axis=0)
    mean_entropy_N = entropies[0] if n_members == 1 else entropies_of(mean_NC)
    total_N = mean_entropy_N if log_probs_NC is mean_NC else entropies_of(log_probs_NC)
    gap_N = mean_entropy_N - expected_N
    mutual_N = np.where(gap_N > ROUNDING, gap_N, 0.0) if n_members > 1 else np.zeros_like(gap_N)
    if (scale_N := log_option_counts(mask_NC) if scale_N is None else scale_N) is not None:
        scale_N = np.where(scale_N > 0, scale_N, 1.0)  # one option: the entropy is 0 already
        total_N, expected_N, mutual_N = total_N / scale_N, expected_N / scale_N, mutual_N / scale_N
    return Uncertainty(log_probs_NC, total_N, expected_N, mutual_N)


def tied(probability_N: np.ndarray) -> np.ndarray:
    """Probabilities without the last digits, so that equal ones are equal; those within 1e-6 of 0 or 1 as they are."""
    inner_N = (probability_N > NEAR) & (probability_N < 1.0 - NEAR)
    return np.where(inner_N, np.round(probability_N, DIGITS), probability_N)


def energy(logits_NC: np.ndarray, mask_NC: np.ndarray | None) -> np.ndarray:
    """-logsumexp of the logits per sample (Liu et al. 2020, arXiv 2010.03759, at temperature 1)."""
    logits = logits_NC.astype(np.float64)
    return -np.asarray(logsumexp(logits if mask_NC is None else np.where(mask_NC, logits, -np.inf), axis=1))


def tie_groups(values_N: np.ndarray) -> tuple[np.ndarray, int]:
    """The rank of each value among the distinct values, ascending, and how many distinct values there are."""
    distinct, group_N = np.unique(values_N, return_inverse=True)
    return group_N, len(distinct)


def grouped_sums(weights_NR: np.ndarray, group_N: np.ndarray, n_groups: int, values_N: np.ndarray | None = None) -> np.ndarray:
    """sum over the samples of group g of weight * value -> (G, R); value 1 when `values_N` is None."""
    values = np.ones(len(group_N)) if values_N is None else values_N
    matrix = csr_array((values, (group_N, np.arange(len(group_N)))), shape=(n_groups, len(weights_NR)))
    return np.asarray(matrix @ weights_NR)


def block_size(n: int) -> int:
    """How many resamples of n samples fit a block of bootstrap weights."""
    return max(1, BLOCK_ELEMENTS // max(n, 1))


def bootstrap_counts(n: int, resamples: int, rng: np.random.Generator, block: int | None = None) -> Iterator[np.ndarray]:
    """How often each sample occurs in each resample with replacement, as blocks of float64 weights (N, R), R <= block.

    Every column sums to n. A metric that takes weights never sees the resampled arrays themselves.
    """
    step = block or block_size(n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn_RN = rng.integers(n, size=(size, n))
        drawn_RN += n * np.arange(size)[:, None]
        counts_RN = np.bincount(drawn_RN.ravel(), minlength=size * n).reshape(size, n)
        yield np.ascontiguousarray(counts_RN.T, dtype=np.float64)


def percentile_interval(values_R: np.ndarray, confidence: float) -> tuple[float, float]:
    """The bootstrap percentile interval: the quantiles that leave (1 - confidence)/2 on each side.

    Statistics with a bias, such as a calibration error, are more biased in a resample: theirs errs upward on small sets.
    """
    low, high = np.quantile(values_R, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for all of them together (Holm, Scand. J. Statist. 1979), in the order given."""
    corrected, highest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (JASA 1927); (0, 1) when n = 0."""
    if n == 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2.0))
    share, z2 = successes / n, z * z / n
    centre, half = share + z2 / 2.0, z * float(np.sqrt(share * (1.0 - share) / n + z2 / (4.0 * n)))
    low, high = (centre - half) / (1.0 + z2), (centre + half) / (1.0 + z2)
    return (low if successes > 0 else 0.0), (high if successes < n else 1.0)  # exact ends, whatever the rounding
