from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sve_cli.comparison import align, compare_predictions
from sve_cli.errors import SveError
from sve_cli.predictions import Predictions

Make = Callable[..., Predictions]
QUICK = {"bootstrap": 60, "permutations": 60}


def reordered(system: Predictions, order: list[int]) -> Predictions:
    """The same predictions with the classes in another order."""
    new_of_old = np.argsort(order)
    return replace(
        system,
        logits_MNC=system.logits_MNC[:, :, order],
        labels_N=np.where(system.labels_N < 0, -1, new_of_old[system.labels_N]),
        classes=[system.classes[c] for c in order],
        mask_NC=None if system.mask_NC is None else system.mask_NC[:, order],
    )


def test_the_order_of_rows_and_of_classes_changes_nothing(make: Make) -> None:
    a, b = make(seed=1, members=2), make(seed=2, members=3)
    rows = compare_predictions(a, b, **QUICK)
    shuffle = np.random.default_rng(0).permutation(60)
    assert compare_predictions(a.subset(shuffle), b, **QUICK) == rows
    assert compare_predictions(a, b.subset(shuffle), **QUICK) == rows
    assert compare_predictions(a, reordered(b, [2, 0, 1]), **QUICK) == rows
    assert [row.difference for row in rows] != [0.0] * len(rows)


def test_what_only_one_side_has_is_left_out_and_counted(make: Make) -> None:
    a, b = make(seed=1), make(seed=2)
    aligned = align([a.subset(np.arange(0, 50)), b.subset(np.arange(20, 60))])
    assert aligned.left_out == [20, 10]
    assert [p.ids_N for p in aligned.predictions] == [[f"toy{i:04d}" for i in range(20, 50)]] * 2
    assert np.array_equal(aligned.predictions[1].logits_MNC, b.logits_MNC[:, 20:50])
    both = compare_predictions(a.subset(np.arange(20, 50)), b.subset(np.arange(20, 50)), **QUICK)
    assert compare_predictions(a.subset(np.arange(0, 50)), b.subset(np.arange(20, 60)), **QUICK) == both


def test_a_label_that_one_side_knows_is_known(make: Make) -> None:
    a, b = make(seed=1), make(seed=2)
    half = np.where(np.arange(60) < 30, a.labels_N, -1)
    one, other = align([replace(a, labels_N=half), replace(b, labels_N=np.where(half < 0, b.labels_N, -1))]).predictions
    assert np.array_equal(one.labels_N, a.labels_N) and np.array_equal(other.labels_N, a.labels_N)


def test_label_distributions_are_shared_and_reordered(make: Make) -> None:
    a, b = make(seed=1), make(seed=2)
    soft = np.random.default_rng(0).dirichlet([1, 1, 1], 60).astype(np.float32)
    known = reordered(replace(b, soft_labels_NC=None), [2, 0, 1])
    one, other = align([a, replace(known, soft_labels_NC=soft[:, [2, 0, 1]])]).predictions
    assert np.array_equal(one.soft_labels_NC, soft) and np.array_equal(other.soft_labels_NC, soft)  # type: ignore[arg-type]
    keys = [row.key for row in compare_predictions(a, replace(b, soft_labels_NC=soft), **QUICK)]
    assert "brier_soft" in keys and "brier_soft" not in [row.key for row in compare_predictions(a, b, **QUICK)]


def refused(saying: str, *systems: Predictions) -> None:
    with pytest.raises(SveError) as caught:
        align(systems, ["left", "right"])
    assert saying in str(caught.value), str(caught.value)


def test_what_cannot_be_paired_is_refused_by_name(make: Make) -> None:
    a, b = make(seed=1), make(seed=2)
    twice = replace(b, ids_N=[*b.ids_N[:-1], "toy0007"])
    refused("The sample id 'toy0007' occurs more than once in 'right'", a, twice)
    refused("Only 29 of the 60 samples of 'left'", a, b.subset(np.arange(29)))
    assert align([a, b.subset(np.arange(30))]).left_out == [30, 0]
    refused("Only 0 of the 60 samples", a, replace(b, ids_N=[f"x{i}" for i in range(60)]))
    wrong = b.labels_N.copy()
    wrong[5] = (wrong[5] + 1) % 3
    label, said = (f"c{labels[5]}" for labels in (a.labels_N, wrong))
    refused(f"The label of sample 'toy0005' is '{label}' in 'left' and '{said}' in 'right' (1 such", a, replace(b, labels_N=wrong))
    refused("'left' has 'c2' and 'right' has not", a, replace(b, classes=["c0", "c1", "new"]))
    refused("'right' has 'c3' and 'left' has not", a, make(seed=2, classes=4))
    refused("have one name", replace(a, classes=["c0", "c1", "c1"]), replace(b, classes=["c0", "c0", "c1"]))


def test_other_options_are_refused_and_equal_ones_are_not(make: Make) -> None:
    a, b = make(seed=1), make(seed=2)
    mask = np.ones((60, 3), dtype=bool)
    mask[a.labels_N != 2, 2] = False
    refused(f"Sample '{a.ids_N[int(np.argmax(a.labels_N != 2))]}' has other options", a, replace(b, mask_NC=mask))
    masked = replace(a, mask_NC=mask)
    assert align([masked, reordered(replace(b, mask_NC=mask), [1, 2, 0])]).left_out == [0, 0]
    assert align([a, replace(b, mask_NC=np.ones((60, 3), dtype=bool))]).left_out == [0, 0]
