"""The k members whose mean probability is best on validation, chosen one after another.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

from dataclasses import replace

from sve_cli.errors import DataError
from sve_cli.metrics.aggregate import aggregate
from sve_cli.metrics.nll import nll
from sve_cli.posthoc.state import split_validation
from sve_cli.predictions import Predictions


def best_members(validation: Predictions, k: int, seed: int, how: str = "probs") -> tuple[list[int], str]:
    """k members and a sentence that says how they were chosen.

    The first has the lowest NLL alone; each further one is that which lowers the NLL of the mean probability most (or raises it
    least). On the selection half of validation, so that the calibration half stays unseen. Of equals, the smaller number.

    Raises:
        DataError: no validation sample has a label.
    """
    selection = validation.subset(split_validation(validation.n_samples, seed)[0])
    if not (labelled := aggregate(selection, how).labelled().n):
        raise DataError("No validation sample has a label to choose members by.", "Name the members, as in --members 0,2.")
    chosen: list[int] = []
    value = float("nan")
    for _ in range(k):
        rest = [m for m in range(validation.n_members) if m not in chosen]
        scored = [(_nll(selection, [*chosen, m], how), m) for m in rest]
        value, member = min(scored)
        chosen.append(member)
    whole = _nll(selection, list(range(validation.n_members)), how)
    sentence = (
        f"Members {', '.join(map(str, chosen))}: chosen one after another by the NLL of their mean probability on "
        f"{labelled} labelled validation samples ({value:.4f}; all {validation.n_members}: {whole:.4f})."
    )
    return chosen, sentence


def _nll(predictions: Predictions, members: list[int], how: str) -> float:
    return nll.compute(aggregate(replace(predictions, logits_MNC=predictions.logits_MNC[members]), how))
