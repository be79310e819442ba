"""`sve diversity`: how unlike the members of a run are, and whether what they disagree on is far from the training data.

Shapes: M members, N samples, C classes, F features, D weights, R singular values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from sve_cli import diversity as measures
from sve_cli.backbone import Head, LinearView
from sve_cli.data.load import ROLES
from sve_cli.diversity import DistanceRow, Diversity, PairMeasure, RankCorrelation
from sve_cli.ensemble import Ensemble, MemberContext, MemberHeads
from sve_cli.errors import NotExportable, SveError
from sve_cli.prediction import as_predictions
from sve_cli.predictions import UNKNOWN_LABEL, Predictions
from sve_cli.recipe import digest
from sve_cli.render.diversity import render_html, render_markdown
from sve_cli.rundir import RunDir, check_seal, file_digest, read_json, write_json, write_text
from sve_cli.samples import Samples
from sve_cli.statistics import ensemble_uncertainty, require_usable, seeded
from sve_cli.tasks.common import Encoded
from sve_cli.workflows.session import Log, Session, open_session, run_recipe
from sve_cli.workflows.spectrum import HasGains
from sve_cli.workflows.stored import run_aggregate, saved_predictions

SAMPLES = 2000
TRAIN_SAMPLES = 10_000
TOGETHER = "test and OOD"


def diversity(
    run: RunDir,
    log: Log,
    *,
    samples: int = SAMPLES,
    train_samples: int = TRAIN_SAMPLES,
    ood: Sequence[str] = (),
    out: Path | None = None,
    command: str = "",
) -> tuple[Path, Diversity]:
    """Measure a finished run and write diversity.json, .md and .html to `out` (default: below the run).

    Args:
        samples: most samples of the test split and of each OOD set that are run through the network.
        train_samples: most training samples that distances are measured to.
        ood: out-of-distribution sets besides the recipe's.

    Raises:
        SveError: an unfinished or changed run, a run of one member, too few samples, an unknown set.
    """
    check_seal(run.path)
    recipe = run_recipe(run)
    if recipe.method.members < 2:
        raise SveError(f"'{run.path}' has one member, which differs from nobody.", "Name a run with several members.")
    names = _others([*recipe.data.ood, *ood])
    limit = read_json(run.path / "recipe.lock.json")["limit"]
    session = open_session(recipe, log, limit, need=("train", "test"))
    session.check_ood(names)
    ensemble = session.load_run(run, ROLES)
    trained = file_digest(run.path / "ensemble.safetensors")
    drawn = _draw(session, "test", samples)
    logits_MNC, features_MNF = session.outputs(ensemble, drawn[1], "Test features of every member", keep_features=True)
    assert features_MNF is not None
    part = as_predictions(logits_MNC, *drawn, ensemble.classes, trained)
    test = saved_predictions(run, "test", trained) or part
    notes: list[str] = list(session.data.notes)
    pairs = _prediction_pairs(test, notes) | _weight_pairs(session, ensemble, notes) | _feature_pairs(ensemble, features_MNF, notes)
    how = run_aggregate(run)
    distance = _distance_rows(session, ensemble, part, names, samples, train_samples, how)
    found = Diversity(
        title=f"Diversity of {recipe.method.name}, {recipe.method.members} members, on {recipe.data.name}",
        dataset=test.dataset,
        split=test.split,
        members=test.n_members,
        n=test.n_samples,
        headline=[_disagreement_sentence(pairs["disagreement"], test.n_samples), _distance_sentence(distance[-1])],
        pairs=pairs,
        distance=distance,
        notes=notes,
        provenance={
            "command": command, "run": str(run.path), "recipe_digest": digest(recipe), "trained_digest": trained,
            "samples_per_set": samples, "training_samples": min(train_samples, len(_role(session, "train"))),
            "neighbours": measures.NEIGHBOURS, "seed": recipe.seed, "aggregate": how,
        },
    )  # fmt: skip
    folder = out or run.path / "diversity" / _key(trained, names, samples, train_samples, how)
    write_json(folder / "diversity.json", found.document())
    write_text(folder / "diversity.md", render_markdown(found))
    write_text(folder / "diversity.html", render_html(found))
    return folder, found


def _others(names: Sequence[str]) -> list[str]:
    """Each set once; refuses the run's own splits, which have rows of their own in the table."""
    if own := [name for name in names if name in ROLES]:
        raise SveError(f"'{own[0]}' is a split of the run's own data, not an out-of-distribution set.", "Name another set.")
    return list(dict.fromkeys(names))


def _key(trained: str, names: list[str], samples: int, train_samples: int, how: str) -> str:
    return hashlib.sha256(json.dumps([trained, names, samples, train_samples, how]).encode()).hexdigest()[:12]


def _role(session: Session, name: str) -> Samples:
    found = session.data.test if name == "test" else session.data.train
    assert found is not None
    return found


def _draw(session: Session, name: str, count: int) -> tuple[Samples, Encoded]:
    """At most `count` samples of a split or set, drawn by the recipe's seed and the set's name, in the order of the source."""
    whole = _role(session, name) if name in ("test", "train") else session.split(name)[0]
    rows = np.arange(len(whole))
    if len(whole) > count:
        rows = np.sort(seeded(session.recipe.seed, f"diversity of {name}").choice(len(whole), count, replace=False))
    drawn = whole.subset(rows)
    return drawn, session.task.encode(drawn)


def _measure(title: str, definition: str, apart: Literal["higher", "lower"], matrix_MM: np.ndarray) -> PairMeasure:
    return PairMeasure(title, definition, apart, matrix_MM.tolist())


def _prediction_pairs(test: Predictions, notes: list[str]) -> dict[str, PairMeasure]:
    """What the members' predictions on the whole test split say."""
    require_usable(test.logits_MNC, test.mask_NC, test.ids_N, test.dataset)
    found = {
        "disagreement": _measure(
            "Disagreement",
            "Share of test samples on which two members name different classes.",
            "higher",
            measures.disagreement_matrix(test.logits_MNC, test.mask_NC),
        ),
        "kl": _measure(
            "KL divergence",
            "KL(p_a || p_b) between two members' predictions in nats, mean over test samples; a is the row. Its mean is over "
            "ordered pairs. Only options that exist count.",
            "higher",
            measures.kl_matrix(test.logits_MNC, test.mask_NC),
        ),
    }
    labelled = test.subset(test.labels_N != UNKNOWN_LABEL)
    if not labelled.n_samples:
        notes.append("No test sample has a label, so that the correlation of errors is left out.")
        return found
    shown_MNC = labelled.logits_MNC if labelled.mask_NC is None else np.where(labelled.mask_NC, labelled.logits_MNC, -np.inf)
    found["q_statistic"] = _measure(
        "Error correlation (Q)",
        "Yule's Q of two members' errors on labelled test samples, (n11 n00 - n10 n01) / (n11 n00 + n10 n01), n11 both right, n00 "
        "both wrong: 0 for independent errors, 1 when one's errors contain the other's (Kuncheva and Whitaker 2003). It is close "
        "to 1 for accurate members of one checkpoint.",
        "lower",
        measures.q_statistic_matrix(shown_MNC.argmax(axis=2) == labelled.labels_N),
    )
    return found


def _weight_pairs(session: Session, ensemble: Ensemble, notes: list[str]) -> dict[str, PairMeasure]:
    """Cosines between what two members changed, in singular values and in weights."""
    found: dict[str, PairMeasure] = {}
    sigma_MM = sigma_products(ensemble)
    if sigma_MM is not None:
        found["sigma_cosine"] = _measure(
            "Cosine in Σ",
            "Cosine between two members' relative changes of the singular values, (s_m - S) / S, over all targets; 0 for "
            "unrelated changes, 1 for the same direction.",
            "lower",
            measures.cosine_matrix(sigma_MM),
        )
    if ensemble.shares_features:
        notes.append("The members share the checkpoint's weights and features, so that neither is compared.")
        return found
    try:
        weight_MM, count = weight_products(session, ensemble)
    except NotExportable as reason:
        notes.append(f"Weights are not compared: {reason.message}")
        return found
    found["weight_cosine"] = _measure(
        "Cosine of weight changes",
        f"Cosine between W_a - W and W_b - W, W the checkpoint's, over the {count} matrices that method.targets names; biases "
        "and norms left out.",
        "lower",
        measures.cosine_matrix(weight_MM),
    )
    return found


def _feature_pairs(ensemble: Ensemble, features_MNF: np.ndarray, notes: list[str]) -> dict[str, PairMeasure]:
    if ensemble.shares_features:
        return {}
    definition = (
        f"Linear centred kernel alignment of two members' features on {features_MNF.shape[1]:,} test samples, debiased (Kornblith "
        "et al. 2019, arXiv 1905.00414; unbiased HSIC); 1 for features equal up to rotation and scale, 0 for unrelated ones."
    )
    return {"cka": _measure("Similarity of features (CKA)", definition, "lower", measures.cka_matrix(features_MNF))}


def sigma_products(ensemble: Ensemble) -> np.ndarray | None:
    """Inner products (M, M) of the members' (s_m - S) / S over all targets; None for a method without singular values."""
    if not any(group.role == "sigma" for group in ensemble.groups):
        return None
    every = tuple(range(ensemble.n_members))
    layers = [linear for linear in ensemble.member_linears() if isinstance(linear, HasGains)]
    with torch.no_grad():
        deviations = ((linear.gain_MR(every) - 1.0).double().cpu().numpy() for linear in layers)
        return np.asarray(sum(measures.inner_products(d_MR) for d_MR in deviations))


def weight_products(session: Session, ensemble: Ensemble) -> tuple[np.ndarray, int]:
    """Inner products (M, M) of W_m - W over the targeted matrices, and how many those are.

    One layer of all members is in memory at a time; for methods whose members are whole networks, two members.

    Raises:
        NotExportable: the members are not plain networks.
    """
    every = range(ensemble.n_members)
    linears = list(ensemble.member_linears())
    if linears:
        total_MM = np.zeros((len(every), len(every)))
        with torch.no_grad():
            for linear in linears:
                own = [(linear.merged(m)[0] - linear.weight_OI).flatten() for m in every]
                total_MM += measures.inner_products(torch.stack(own).float().cpu().numpy())
        return total_MM, len(linears)
    views = session.backbone.targets(session.recipe.method)
    total_MM = np.zeros((len(every), len(every)))
    for a in every:
        mine = list(_deviations(ensemble, views, a))
        for b in range(a, len(every)):
            others = mine if b == a else _deviations(ensemble, views, b)
            total_MM[a, b] = total_MM[b, a] = sum(float(x @ y) for x, y in zip(mine, others, strict=True))
    return total_MM, len(views)


def _deviations(ensemble: Ensemble, views: list[LinearView], member: int) -> Iterator[np.ndarray]:
    """One member's W_m - W, layer after layer."""
    network = ensemble.member_network(member)
    for view in views:
        own = LinearView(view.name, view.kind, network.get_submodule(view.name))
        yield (own.weight_OI - view.weight_OI).flatten().cpu().numpy()


def _checkpoint(session: Session) -> Ensemble:
    """The checkpoint as it is, for its features: one member with a head that is not looked at."""
    head = Head(torch.zeros(1, session.backbone.feature_dim), None, None)
    heads = MemberHeads([head], trainable=False)
    ensemble = Ensemble(session.backbone, session.backbone.fresh(), heads, ["none"], MemberContext((0,)))
    session.to_device(ensemble)
    return ensemble


def _distance_rows(
    session: Session, ensemble: Ensemble, test: Predictions, names: list[str], samples: int, train_samples: int, how: str
) -> list[DistanceRow]:
    """Uncertainty against distance to the training features: test, each OOD set, and all together."""
    checkpoint = _checkpoint(session)

    def features(drawn: tuple[Samples, Encoded], text: str) -> np.ndarray:
        found = session.outputs(checkpoint, drawn[1], text, keep_features=True)[1]
        assert found is not None
        return found[0]

    train_NF = features(_draw(session, "train", train_samples), "Training features of the checkpoint")
    parts = [test]
    distances = [
        measures.neighbour_distance(features(_draw(session, "test", samples), "Test features of the checkpoint"), train_NF)
    ]
    for name in names:
        drawn = _draw(session, name, samples)
        logits_MNC, _ = session.outputs(ensemble, drawn[1], f"Predicting {name}")
        parts.append(as_predictions(logits_MNC, *drawn, ensemble.classes, test.model_digest))
        distances.append(measures.neighbour_distance(features(drawn, f"Features of {name}"), train_NF))
    uncertainty = _uncertainties(parts, session.recipe.data.name, how)
    ends = np.cumsum([part.n_samples for part in parts]).tolist()
    sets = {"test": slice(0, ends[0])} | {n: slice(ends[i], ends[i + 1]) for i, n in enumerate(names)}
    if names:
        sets[TOGETHER] = slice(0, ends[-1])
    distance_N = np.concatenate(distances)
    spec, seed = session.recipe.evaluate, session.recipe.seed

    def row(name: str, which: slice) -> DistanceRow:
        found: dict[str, RankCorrelation] = {}
        for key, values_N in uncertainty.items():
            rng = seeded(seed, "bootstrap of distance")  # the same resamples for every uncertainty: rows are paired
            found[key] = measures.rank_correlation(values_N[which], distance_N[which], rng, spec.bootstrap, spec.confidence)
        return DistanceRow(name, which.stop - which.start, float(distance_N[which].mean()), found)

    return [row(name, which) for name, which in sets.items()]


def _uncertainties(parts: list[Predictions], name: str, how: str) -> dict[str, np.ndarray]:
    """The three uncertainties of all samples (N,), computed together, so that entropies have one unit."""
    logits_MNC = np.concatenate([part.logits_MNC for part in parts], axis=1)
    masked = any(part.mask_NC is not None for part in parts)
    masks = [np.ones(p.logits_MNC.shape[1:], dtype=bool) if p.mask_NC is None else p.mask_NC for p in parts]
    mask_NC = np.concatenate(masks) if masked else None
    require_usable(logits_MNC, mask_NC, [i for part in parts for i in part.ids_N], name)
    found = ensemble_uncertainty(logits_MNC, mask_NC, how)
    return {"mutual_information": found.mutual_N, "expected_entropy": found.expected_N, "entropy": found.total_N}


def _disagreement_sentence(found: PairMeasure, n: int) -> str:
    return f"Two members name different classes on {100 * found.mean:.2f} % of {n:,} test samples, mean over pairs."


def _distance_sentence(row: DistanceRow) -> str:
    """Whether the epistemic part follows the distance, judged by its interval and by chance."""
    mutual, aleatoric = row.correlations["mutual_information"], row.correlations["expected_entropy"]
    if not np.isfinite(mutual.value):
        return "Mutual information or distance is the same for every sample, so that they cannot be related."
    interval = f" ({mutual.low:.2f} to {mutual.high:.2f})" if mutual.low is not None and mutual.high is not None else ""
    low = mutual.value if mutual.low is None else mutual.low
    verb = "rises" if low > 0 and mutual.value > mutual.by_chance else "does not rise"
    beside = f"; the aleatoric part alone gives {aleatoric.value:.2f}" if np.isfinite(aleatoric.value) else ""
    return (
        f"Mutual information {verb} with the distance to the training features: rank correlation {mutual.value:.2f}{interval} over "
        f"{row.n:,} samples ({row.name}){beside}. Shuffled samples stay below {mutual.by_chance:.2f}."
    )
