"""`sve evaluate` and `sve ood`: predictions -> report, stored with the run. An evaluation is never rewritten."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sve_cli.data.sources import local_splits, require_apart, split_name
from sve_cli.decisions import cautions, fit_decisions, measure_decisions
from sve_cli.diagnosis import diagnose
from sve_cli.ensemble import Ensemble
from sve_cli.errors import CheckpointError, SveError
from sve_cli.foreign import open_predictions
from sve_cli.metrics.aggregate import aggregate as aggregate_members
from sve_cli.metrics.aggregate import aggregate_each
from sve_cli.metrics.intervals import how_resampled
from sve_cli.ood.build import needs_features
from sve_cli.ood.training_features import TrainingFeatures
from sve_cli.posthoc.state import Posthoc, split_validation
from sve_cli.posthoc.vector import options_vary
from sve_cli.predictions import Predictions
from sve_cli.recipe import EvaluateSpec, Recipe, digest, resolve_dict
from sve_cli.registry import RENDERERS
from sve_cli.report import Report
from sve_cli.rundir import EVALUATING, RunDir, check_seal, file_digest, is_complete, only_process, read_json, seal, write_text
from sve_cli.scoring import break_down, data_warnings, headline, score, score_ood
from sve_cli.statistics import one_blas_thread
from sve_cli.training import path_gap
from sve_cli.workflows.fitting import fit_posthoc, with_weights
from sve_cli.workflows.session import Log, Session, environment, ood_warnings, open_session, run_recipe
from sve_cli.workflows.spectrum import run_spectrum
from sve_cli.workflows.stored import evaluation_folder, saved_predictions, slug

VIEWS = {"md": "report.md", "html": "report.html"}
BEFORE = "before training"
TRAINING_FEATURES = "training_features.safetensors"


def evaluate(
    run: RunDir,
    log: Log,
    *,
    ood: Sequence[str] | None = None,
    changes: dict[str, Any] | None = None,
    groups: dict[str, str] | None = None,
    command: str = "",
) -> tuple[Path, Report]:
    """Evaluate a finished run, with the recipe's OOD sets and those given. Predictions already there are not made again.

    Args:
        changes: keys of the recipe's `evaluate` section to use instead of the run's.
        groups: "near" or "far" for OOD sets, besides what the recipe says; sets that are new with it are added.

    Raises:
        SveError: an unfinished or changed run, an unknown set, a set of another kind.
    """
    check_seal(run.path)
    recipe = run_recipe(run)
    spec = replace(recipe.evaluate, **(changes or {}))
    names = list(dict.fromkeys([*recipe.data.ood, *(ood or []), *(groups or {})]))
    sets = {name: (groups or {}).get(name) or recipe.data.ood_group(name) for name in names}
    folder = evaluation_folder(run, spec, sets)
    if (existing := _finished(folder)) is not None:
        return folder, existing
    lazy = _Lazy(run, replace(recipe, evaluate=spec), log)
    lazy.check_ood(names, _with_features(spec))
    return folder, _evaluate(folder, run, recipe, spec, sets, lazy, command, None)


def evaluate_session(
    session: Session,
    run: RunDir,
    ensemble: Ensemble,
    ood: Sequence[str],
    spec: EvaluateSpec,
    command: str,
    training_gap: bool = False,
) -> Report:
    """The first evaluation, with everything still open."""
    lazy = _Lazy(run, session.recipe, session.log, session, ensemble)
    gap = None
    if training_gap:
        own = session.recipe.train  # `auto` as it was meant where a resumed run began
        own = replace(own, precision=read_json(run.path / "training.json").get("precision", own.precision))
        gap = path_gap(own, ensemble, session.split("validation")[1], session.device)
    sets = {name: session.recipe.data.ood_group(name) for name in ood}
    return _evaluate(evaluation_folder(run, spec, sets), run, session.recipe, spec, sets, lazy, command, gap)


def evaluate_checkpoint(recipe: Recipe, log: Log, ood: Sequence[str] = (), limit: int | None = None) -> Report:
    """Score a checkpoint as it is: its own head on a data set whose classes it knows.

    Raises:
        CheckpointError: it has no head for these classes.
    """
    session = open_session(recipe, log, limit, need=("test",))
    ensemble = session.base_ensemble()
    if ensemble is None:
        raise CheckpointError(
            f"'{recipe.model.name}' cannot be scored as it is: it has no classifier for the classes of '{recipe.data.name}'.",
            "Train one: sve train RECIPE.",
        )
    test = session.predict(ensemble, "test", session.digest())
    others = [session.predict(ensemble, name, session.digest()) for name in ood]
    title = f"{recipe.model.name} as it is on {recipe.data.name}"
    report = build_report(title, test, others, recipe.evaluate, Posthoc(), None, recipe.seed, list(session.data.notes))
    return replace(report, warnings=[*report.warnings, *_limited(limit)])


def evaluate_predictions(path: Path, spec: EvaluateSpec, ood: Sequence[Path] = (), seed: int = 0) -> Report:
    """Score saved predictions of this tool or of another one; needs no model."""
    test, notes = open_predictions(path)
    others = [open_predictions(other)[0] for other in ood]
    return build_report(f"Predictions {path.stem}", test, others, spec, Posthoc(), None, seed, notes)


def _finished(folder: Path) -> Report | None:
    """The report of an evaluation that is there, unchanged."""
    if not is_complete(folder):
        return None
    check_seal(folder)
    return Report.load(folder / "report.json")


def _evaluate(
    folder: Path, run: RunDir, recipe: Recipe, spec: EvaluateSpec, ood: dict[str, str], lazy: _Lazy, command: str, gap: float | None
) -> Report:
    """`ood`: the sets with their groups. A second process is refused: it would remove this one's files."""
    with only_process(run.path / EVALUATING, f"Another process is evaluating '{run.path}'."):
        if (done := _finished(folder)) is not None:  # meanwhile
            return done
        if folder.exists():  # left by a killed evaluation: it has no COMPLETE
            shutil.rmtree(folder)
        return _evaluated(folder, run, recipe, spec, ood, lazy, command, gap)


def _evaluated(
    folder: Path, run: RunDir, recipe: Recipe, spec: EvaluateSpec, ood: dict[str, str], lazy: _Lazy, command: str, gap: float | None
) -> Report:
    store = folder / "predictions"
    store.mkdir(parents=True)
    features = _with_features(spec)
    wanted = {name: lazy.predictions(name, features) for name in ("validation", "test", *ood)}
    training = lazy.training_features() if features else None
    before = lazy.before()
    posthoc = fit_posthoc(wanted["validation"], spec, recipe.seed)
    spec = with_weights(spec, posthoc)
    calibration = wanted["validation"].subset(split_validation(wanted["validation"].n_samples, recipe.seed)[1])
    posthoc = fit_decisions(posthoc, calibration, spec, training)
    for name, predictions in wanted.items():
        predictions.save(store / slug(name))
    if before is not None:
        before.save(store / slug(BEFORE))
    if training is not None:
        training.save(folder / TRAINING_FEATURES)
    lock = read_json(run.path / "recipe.lock.json")
    title = f"{recipe.method.name}, {recipe.method.members} member{'s' if recipe.method.members > 1 else ''}, on {recipe.data.name}"
    if "transferred_from" in lock:
        title += f", transferred from {lock['transferred_from']['data']}"
    others = [wanted[name] for name in ood]
    report = build_report(
        title, wanted["test"], others, spec, posthoc, before, recipe.seed, lock["notes"], training, list(ood.values())
    )
    report = replace(
        report,
        warnings=[
            *report.warnings,
            *ood_warnings(recipe, list(ood)),
            *_left_out(spec, wanted["validation"]),
            *cautions(posthoc),
            *_limited(lock["limit"]),
        ],
        history=run.history(),
        parameters=_parameters(run, lazy),
        spectrum=run_spectrum(run, lambda: lazy.ensemble),
        provenance={
            **_provenance(run, recipe, spec, lock, command, gap),
            "notes": lock["notes"],
            "intervals": report.provenance["intervals"],
        },
    )
    write_text(folder / "posthoc.json", posthoc.to_json())
    write_text(folder / "report.json", report.to_json())
    for view, file in VIEWS.items():
        write_text(folder / file, RENDERERS.resolve(view)(report))
    files = [str(p.relative_to(folder)) for p in sorted(folder.rglob("*")) if p.is_file()]
    seal(folder, files)
    return report


def _with_features(spec: EvaluateSpec) -> bool:
    return needs_features([*spec.ood_scores, *([spec.ood_decision] if spec.ood_decision else [])])


def _left_out(spec: EvaluateSpec, validation: Predictions) -> list[str]:
    if not spec.vector or not options_vary(validation):
        return []
    return ["Vector scaling is left out: it has one weight a class, and here the options vary between samples."]


def _limited(limit: int | None) -> list[str]:
    return [f"Limited to {limit} rows a split: not comparable with full runs."] if limit else []


@one_blas_thread()
def build_report(
    title: str,
    test: Predictions,
    ood: list[Predictions],
    spec: EvaluateSpec,
    posthoc: Posthoc,
    before: Predictions | None,
    seed: int,
    notes: list[str],
    training: TrainingFeatures | None = None,
    groups: Sequence[str] = (),
) -> Report:
    """Score predictions and put the result in words."""
    view = aggregate_members(test, spec.aggregate)
    members = aggregate_each(test, spec.aggregate) if test.n_members > 1 else []
    rows = score(
        test, spec, temperature=posthoc.temperature, vector=posthoc.vector, before=before, seed=seed, view=view, members=members
    )
    tables = score_ood(test, ood, spec, seed, training, groups)
    behind = break_down(test, spec, seed, view)
    named = dict(zip((table.name for table in tables), ood, strict=True))
    return Report(
        title=title,
        headline=[*headline(rows, tables), *behind.sentences],
        rows=rows,
        dataset=test.dataset,
        split=test.split,
        n=test.n_samples,
        classes=test.classes,
        ood=tables,
        decisions=measure_decisions(test, named, posthoc, spec, seed, training, view),
        bin_choices=behind.bin_choices,
        per_class=behind.per_class,
        slices=behind.slices,
        risk_curve=behind.risk_curve,
        answers=behind.answers,
        diagnosis=diagnose(
            test,
            list(named.items()),
            spec,
            view=view,
            members=members,
            before=before,
            training=training,
            seed=seed,
        ),
        warnings=data_warnings(test),
        provenance={
            "notes": notes,
            "aggregate": spec.aggregate,
            "confidence": spec.confidence,
            "intervals": how_resampled(test.n_samples, spec.bootstrap),
            "environment": environment(),
        },
    )


class _Lazy:
    """Predictions by split name: from earlier evaluations of the run, else made now, opening model and data only then."""

    def __init__(
        self, run: RunDir, recipe: Recipe, log: Log, session: Session | None = None, ensemble: Ensemble | None = None
    ) -> None:
        self.run, self.recipe, self.log = run, recipe, log
        self._session, self._ensemble = session, ensemble
        self.digest = file_digest(run.path / "ensemble.safetensors")

    @property
    def session(self) -> Session:
        if self._session is None:
            limit = read_json(self.run.path / "recipe.lock.json")["limit"]
            self._session = open_session(self.recipe, self.log, limit)
        return self._session

    @property
    def ensemble(self) -> Ensemble:
        if self._ensemble is None:
            self._ensemble = self.session.load_run(self.run)
        return self._ensemble

    def check_ood(self, names: list[str], features: bool = False) -> None:
        """Refuse or warn before any work: a set of another kind, the training set itself, one set written in two ways."""
        require_apart(names)
        new = [name for name in names if self._saved(name, features) is None]
        if new:
            self.session.check_ood(new)

    def predictions(self, name: str, features: bool = False) -> Predictions:
        """Predictions of the run's ensemble on a split or set, with or without features."""
        saved = self._saved(name, features)
        if saved is None:
            return self.session.predict(self.ensemble, name, self.digest, features)
        return saved if features else replace(saved, features_MNF=None)

    def training_features(self) -> TrainingFeatures:
        """The state of the scores in feature space: of an earlier evaluation of the run, else made now."""
        for folder in self.run.evaluations():
            if (folder / TRAINING_FEATURES).is_file():
                found = TrainingFeatures.load(folder / TRAINING_FEATURES)
                if found.model_digest == self.digest:
                    return found
        self.session.require_data(self.run, ["train"])
        return self.session.training_features(self.ensemble, self.digest)

    def before(self) -> Predictions | None:
        """Test predictions of the checkpoint as it was; None when it has no head for these classes."""
        for folder in self.run.evaluations():  # decided by the first evaluation
            stem = folder / "predictions" / slug(BEFORE)
            return Predictions.load(stem) if stem.with_name(stem.name + ".safetensors").is_file() else None
        base = self.session.base_ensemble()
        return None if base is None else self.session.predict(base, "test", self.session.digest())

    def _saved(self, name: str, features: bool = False) -> Predictions | None:
        return saved_predictions(self.run, name, self.digest, features, self.recipe.evaluate.batch_size)


def _parameters(run: RunDir, lazy: _Lazy) -> dict[str, Any]:
    for folder in run.evaluations():
        return dict(Report.load(folder / "report.json").parameters)
    table = lazy.ensemble.parameter_table()
    base = lazy.session.backbone.parameter_count()
    extra = sum(n for role, n in table.items() if role not in ("head", "backbone"))
    extra += max(table.get("backbone", 0) - base, 0)  # whole networks: what there is beyond one
    return {
        **table,
        "checkpoint": base,
        "extra_fraction": extra / base,
        "stored_bytes": (run.path / "ensemble.safetensors").stat().st_size,
        **lazy.ensemble.facts,
    }


def _provenance(
    run: RunDir, recipe: Recipe, spec: EvaluateSpec, lock: dict[str, Any], command: str, gap: float | None
) -> dict[str, Any]:
    training = read_json(run.path / "training.json")
    if gap is None:
        for folder in run.evaluations():
            gap = Report.load(folder / "report.json").provenance.get("training_path_gap")
            break
    return {
        "command": command or lock.get("command", ""), "model": recipe.model.name, "pooling": recipe.model.pooling,
        "method": recipe.method.name, "members": recipe.method.members, "seed": recipe.seed, "aggregate": spec.aggregate,
        "batch_size": spec.batch_size, "confidence": spec.confidence,
        "recipe_digest": digest(recipe), "checkpoint_digest": lock["checkpoint"], "data_digests": lock["data"],
        "training_path_gap": gap, "training": {k: v for k, v in training.items() if k != "command"},
        "environment": lock["environment"],
    }  # fmt: skip


def checkpoint_recipe(model: str, data: str, task: str | None, overrides: Sequence[str]) -> Recipe:
    """The recipe behind `evaluate --model NAME --data NAME`."""
    from sve_cli.backbone import locate
    from sve_cli.recipe import ModelSpec

    if task is None:
        task = "image_classification" if locate(ModelSpec(name=model)).library == "timm" else "text_classification"
    name, split = split_name(data)
    if not split:
        stored = list(local_splits(name))
        split = stored[0] if len(stored) == 1 else "test"  # a file, or a folder of images, is one split
    values: dict[str, Any] = {
        "model": {"name": model}, "data": {"name": name}, "task": {"name": task}, "method": {"name": "heads_only", "members": 1},
    }  # fmt: skip
    # Only the test split is read, and of a training split the classes; without one, those of the test split.
    values["data"]["splits"] = {"train": "-" if split == "train" else "train", "validation": None, "test": split}
    return resolve_dict(values, "command line", overrides)


def require_ood(names: Sequence[str]) -> None:
    """Refuse `sve ood` without sets.

    Raises:
        SveError: no set is named.
    """
    if not names:
        raise SveError("No out-of-distribution set is named, neither here nor in the recipe.", "Use --sets NAME.")
