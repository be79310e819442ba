"""Gates: an evaluated side and its baseline -> a verdict. Opens no model, no data and no GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sve_cli import gate as gates
from sve_cli.comparison import align, compare_predictions
from sve_cli.comparison.paired import Settings, Statistic, differences
from sve_cli.errors import SveError
from sve_cli.findings import Difference
from sve_cli.gate import Against, Alone, Condition, GateFile, GateSettings, GateSpec, Level, Samples
from sve_cli.gate.spec import Policy
from sve_cli.metrics.aggregate import Aggregated
from sve_cli.metrics.aggregate import aggregate as aggregate_members
from sve_cli.metrics.base import Metric
from sve_cli.metrics.slices import SMALLEST
from sve_cli.posthoc.temperature import Temperature
from sve_cli.predictions import Predictions
from sve_cli.render.gate import render_junit, render_markdown
from sve_cli.render.tables import metric_name
from sve_cli.report import Direction, MetricValue
from sve_cli.rundir import write_text
from sve_cli.statistics import one_blas_thread
from sve_cli.verdict import Check, Rule, Verdict
from sve_cli.workflows.compare import ways_of
from sve_cli.workflows.gate_sides import Judged, Reference, compared_by_default, open_reference, same_classes
from sve_cli.workflows.gate_slices import (
    is_slice,
    labelled_ids,
    lost_samples,
    missing_slice,
    slice_rows,
    small_slices,
    with_ids,
    worst_addresses,
)

FEW = 500  # resamples where only a standard error and a bias are asked for


@one_blas_thread()
def judge(
    judged: Judged, reference: Reference | None, file: GateFile | None, conditions: Sequence[Condition] = (), missing: str = ""
) -> Verdict:
    """Apply a gate file and conditions.

    Without a file but with a reference, accuracy, NLL, Brier and ECE are gated with slack 0.

    Args:
        missing: why there is no reference, for messages.

    Raises:
        SveError: something that cannot be evaluated: an unknown address, sides that do not fit, no baseline and no policy.
    """
    settings = file.settings if file is not None else GateSettings()
    if file is not None:
        wanted = dict(file.gates)
    else:
        wanted = {key: GateSpec(slack=0.0) for key in compared_by_default(judged)} if reference is not None else {}
    court = _Court(judged, reference, settings, wanted, missing)
    checks = [check for key, gate in wanted.items() for check in court.checks(key, gate)]
    checks += [court.condition(condition) for condition in conditions]
    if not checks:
        raise SveError("There is nothing to judge.", "Use --gate FILE, --baseline or --fail-if.")
    shown = {
        "confidence": settings.confidence, "confidence_of_each": court.level.confidence, "bootstrap": settings.bootstrap,
        "aggregate": judged.aggregate, "bins": judged.bins, "max_missing": settings.max_missing, "seed": settings.seed,
        "gate_file": file.source if file is not None else "",
    }  # fmt: skip
    notes = list(dict.fromkeys([*judged.notes, *(reference.notes if reference else []), *court.notes]))
    return Verdict(judged.name, reference.name if reference else "", judged.test.n_samples, checks, notes, shown)


def judge_options(
    judged: Judged, baseline: Path | None, gate: Path | None, fail_if: Sequence[str], prob_columns: Sequence[str] = ()
) -> Verdict:
    """`judge` with what the command line names.

    Args:
        baseline: wins over the gate file's own.

    Raises:
        SveError: something that cannot be read or evaluated.
    """
    conditions = [gates.parse_condition(text) for text in fail_if]
    file = gates.load_gates(gate) if gate is not None else None
    place = baseline
    if place is None and file is not None and gate is not None and file.settings.baseline is not None:
        place = gate.parent / file.settings.baseline
    reference = open_reference(place, prob_columns, judged.folder) if place is not None else None
    missing = f"there is nothing at '{place}'." if place is not None else ""
    if place is not None and reference is None and file is None:
        raise SveError(f"There is no baseline at '{place}'.", "Make one with: sve gate baseline RUN --out baseline.json")
    return judge(judged, reference, file, conditions, missing)


def write_verdict(verdict: Verdict, junit: Path | None, summary: Path | None) -> None:
    """Write the JUnit file, and append to the summary.

    Raises:
        SveError: one of them cannot be written.
    """
    if junit is not None:
        write_text(junit, render_junit(verdict))
    if summary is not None:
        try:
            summary.parent.mkdir(parents=True, exist_ok=True)
            with summary.open("a", encoding="utf-8") as file:
                file.write(render_markdown(verdict))
        except OSError as error:
            raise SveError(f"The summary '{summary}' cannot be written ({error.strerror}).", "Name another file.") from error


class _Court:
    """Measures what the gates ask for; each bootstrap is made once."""

    def __init__(
        self, judged: Judged, reference: Reference | None, settings: GateSettings, wanted: Mapping[str, GateSpec], missing: str
    ) -> None:
        self.judged, self.reference, self.settings, self.missing = judged, reference, settings, missing
        self.wanted, self.notes = wanted, list[str]()
        rules = sum((gate.limit is not None) + gate.compares for gate in wanted.values())
        self.level = gates.share_level(settings.confidence, rules if settings.share_level else 1)
        self.values = judged.report.addresses()
        self.metrics = gates.metrics_by_key(judged.bins)
        self._against: dict[str, dict[str, Against]] = {}
        self._alone: dict[tuple[str, str], Alone] = {}
        self._views: dict[str, Aggregated] = {}

    def value(self, key: str) -> MetricValue:
        """The value at an address; a mistyped one is refused with what there is."""
        return self.judged.report.metric(key)

    def checks(self, key: str, gate: GateSpec) -> list[Check]:
        if is_slice(key) and key not in self.values:
            return self._worst(key, gate) or self._missing_slice(key, gate)
        direction = self.value(key).direction
        if direction == "none":
            raise SveError(f"'{key}' has no better side, so it cannot be gated.", "Use --fail-if, or gate another metric.")
        found = []
        if gate.limit is not None:
            found.append(gates.judge_limit(key, direction, gate, self.alone(key), self.level))
        if gate.compares:
            against = self.against(key)
            if isinstance(against, str):
                found.append(self._without(key, direction, against))
            else:
                found.append(gates.judge_worsening(key, direction, gate, against, self.level))
        return found

    def _worst(self, key: str, gate: GateSpec) -> list[Check]:
        """The checks of all slices that `slice.worst` stands for, each at its share of the level, and of them the worst."""
        addresses = worst_addresses(self.judged.report, key)
        if not addresses:
            return []
        court = _Court(self.judged, self.reference, self.settings, dict.fromkeys(addresses, gate), self.missing)
        court.level = gates.share_level(self.level.confidence, len(addresses))
        found = [court.checks(address, gate) for address in addresses]
        self.notes += court.notes
        worst = [gates.worst_check(key, rule) for rule in zip(*found, strict=True)]
        if not (small := small_slices(self.judged.report, key)):
            return worst
        why = f"{'; '.join(small)}, and at least {SMALLEST} are needed."
        if self.settings.on_missing_slice is None:
            self.notes.append(f"'{key}' leaves out slices that are too small: {why}")
            return worst
        return [*worst, *self._not_judged(key, gate, why, self.settings.on_missing_slice)]

    def _missing_slice(self, key: str, gate: GateSpec) -> list[Check]:
        why, policy = missing_slice(self.judged.report, key), self.settings.on_missing_slice
        if policy is None:
            hint = "Correct the address, or write on_missing_slice: fail, warn or pass in the gate file."
            raise SveError(f"'{key}' cannot be judged: {why}", hint)
        return self._not_judged(key, gate, why, policy)

    @staticmethod
    def _not_judged(key: str, gate: GateSpec, why: str, policy: Policy) -> list[Check]:
        """One check of each rule, whose outcome is the policy."""
        name = metric_name(key.rpartition(".")[2])
        sentence = f"{name} was not judged: {why} The policy is on_missing_slice: {policy}."
        asked: dict[Rule, bool] = {"limit": gate.limit is not None, "worsening": gate.compares}
        rules = [rule for rule, wanted in asked.items() if wanted]
        return [Check(key, name, rule, policy, sentence) for rule in rules]

    def condition(self, condition: Condition) -> Check:
        if is_slice(condition.key) and condition.key not in self.values:
            found = [self.condition(replace(condition, key=key)) for key in worst_addresses(self.judged.report, condition.key)]
            if found:
                return replace(gates.worst_check(condition.key, found), key=condition.text)
            why = missing_slice(self.judged.report, condition.key)
            raise SveError(f"'{condition.key}' cannot be judged: {why}", "Correct the address; it begins with slice.")
        value = self.value(condition.key)
        return gates.judge_condition(condition, value.value, value.direction, value.n)

    def _without(self, key: str, direction: Direction, why: str) -> Check:
        policy = self.settings.on_missing_baseline
        if policy is None:
            hint = "Name one with --baseline, or write on_missing_baseline: fail, warn or pass in the gate file."
            raise SveError(f"'{key}' cannot be compared: {why}", hint)
        value = self.value(key)
        sentence = f"{metric_name(key.rpartition('.')[2])} was not compared: {why} The policy is on_missing_baseline: {policy}."
        return Check(key, metric_name(key), "worsening", policy, sentence, direction, value.value, n=value.n)

    def alone(self, key: str) -> Alone:
        """The value's own interval: by bootstrap where the predictions give the metric, else from the report."""
        prefix, name = _split(key)
        value = self.value(key)
        test = self._side(prefix)
        if test is not None and name in self.metrics:
            return self._alone_of(prefix, name, self._view(prefix, test))
        if value.low is None or value.high is None:
            hint = "Evaluate with bootstrap resamples, or use --fail-if."
            raise SveError(f"'{key}' has no interval in the report, so it cannot be gated.", hint)
        half = (value.high - value.low) / 2.0
        error = half / Level(self.judged.confidence).quantile()
        reach = self.level.quantile() * error
        return Alone(value.value, error, 0.0, value.value - reach, value.value + reach, value.n)

    def _alone_of(self, prefix: str, name: str, view: Aggregated) -> Alone:
        if (prefix, name) not in self._alone:
            metric: Metric = self.metrics[name]
            rows = metric.rows(view)
            function = metric.prepare(rows, self.judged.bins)
            resamples, limit = self.settings.bootstrap, metric.max_resamples
            self._alone[prefix, name] = gates.alone(function, rows.n, resamples, self.level, self.settings.seed, limit)
        return self._alone[prefix, name]

    def _view(self, prefix: str, test: Predictions) -> Aggregated:
        if prefix not in self._views:
            self._views[prefix] = aggregate_members(test, self.judged.aggregate)
        return self._views[prefix]

    @cached_property
    def slice_rows(self) -> dict[str, np.ndarray]:
        """Address of a slice -> its rows of the test predictions."""
        return slice_rows(self._view("", self.judged.test), self.judged.test)

    def _slice_ids(self, prefix: str) -> set[str]:
        """The samples of a slice, as a baseline knows them; none for any other prefix."""
        if not is_slice(f"{prefix}."):
            return set()
        return {self.judged.test.ids_N[i] for i in self.slice_rows.get(prefix, ())}

    def _side(self, prefix: str) -> Predictions | None:
        """The judged predictions that the addresses below `prefix` are about."""
        if is_slice(f"{prefix}."):
            rows = self.slice_rows.get(prefix)
            return None if rows is None else self.judged.test.subset(rows)
        return self._variant(self.judged.test, self.judged.temperature, prefix)

    @staticmethod
    def _variant(test: Predictions, temperature: Temperature | None, prefix: str) -> Predictions | None:
        """The predictions that the addresses below `prefix` are about."""
        if prefix == "":
            return test
        if prefix == "temperature" and temperature is not None:
            return temperature.apply(test)
        if (member := re.fullmatch(r"members\.(\d+)", prefix)) and int(member[1]) < test.n_members:
            return test.member(int(member[1]))
        return None

    def against(self, key: str) -> Against | str:
        """Both sides' values of an address; or why there is no baseline for it."""
        reference = self.reference
        if reference is None:
            return self.missing or "no baseline is named."
        prefix, name = _split(key)
        if name in self.metrics:
            if prefix not in self._against:
                self._against[prefix] = self._paired(reference, prefix)
            if name in self._against[prefix]:
                return self._against[prefix][name]
        if key not in reference.values:
            return f"the baseline '{reference.name}' has no value at this address."
        stored = reference.values[key]
        if stored.low is None or stored.high is None:
            return f"the baseline '{reference.name}' has no interval for it."
        if reference.test is not None or reference.samples is not None:
            self.notes.append(f"'{key}' cannot be paired with this baseline: its interval is unpaired and wider.")
        return gates.unpaired(self.alone(key), stored.value, stored.low, stored.high, reference.confidence, self.level)

    def _paired(self, reference: Reference, prefix: str) -> dict[str, Against]:
        """All wanted metrics below `prefix` that can be paired, in one pass over the resamples."""
        names = [name for key, gate in self.wanted.items() if gate.compares and (name := self._below(prefix, key))]
        test, part = self._side(prefix), is_slice(f"{prefix}.")
        if test is None:
            return {}
        ids = self._slice_ids(prefix)
        if part:  # the baseline is cut to the samples that are here, which must not hide those that are not
            self.notes += lost_samples(reference, labelled_ids(self.judged.test), prefix, self.settings.max_missing)
        if reference.test is not None:
            # A slice is the same samples on both sides, whatever columns the baseline has.
            other = with_ids(reference.test, ids) if part else self._variant(reference.test, reference.temperature, prefix)
            return {} if other is None else self._from_predictions(other, test, names, prefix)
        samples = reference.samples
        if samples is None or not (part or prefix == ""):
            return {}
        if part:
            rows = [i for i, sample in enumerate(samples.ids_N) if sample in ids]
            samples = samples.take(np.array(rows, dtype=np.int64))
        return self._from_samples(reference, samples, test, names, prefix)

    def _below(self, prefix: str, key: str) -> str:
        above, name = _split(key)
        return name if above == prefix and name in self.metrics else ""

    def _from_predictions(self, baseline: Predictions, test: Predictions, names: Sequence[str], prefix: str) -> dict[str, Against]:
        baseline, test = same_classes(baseline, test)
        shared = len(set(baseline.ids_N) & set(test.ids_N))
        where = f" ({prefix})" if prefix else ""
        sizes = {f"the baseline{where}": baseline.n_samples, f"these predictions{where}": test.n_samples}
        self.notes += gates.missing_notes(shared, sizes, self.settings.max_missing)
        one, other = align([baseline, test], ["the baseline", "these predictions"]).predictions
        assert self.reference is not None
        ways = ways_of(self.judged.aggregate, self.reference.aggregate)[::-1]
        views = [aggregate_members(side, way) for side, way in zip((one, other), ways, strict=True)]
        samples = [gates.samples_of(view, one.ids_N, one.classes) for view in views]
        registered = {self.metrics[name].key(): name for name in names}
        rows = compare_predictions(
            one, other, ways, self.judged.bins, list(registered), self.settings.bootstrap, 0,
            self.level.confidence, self.settings.seed,
        )  # fmt: skip
        return {
            row.key: _against(
                row, self.metrics[row.key], views, gates.changed_samples(samples[0], samples[1], row.key), self.judged.bins,
                self.settings, self.level,
            )
            for row in rows
        }  # fmt: skip

    def _from_samples(
        self, reference: Reference, baseline: Samples, test: Predictions, names: Sequence[str], prefix: str
    ) -> dict[str, Against]:
        view = self._view(prefix, test)
        here = gates.samples_of(view, test.ids_N, test.classes)
        exact = gates.recomputable(here, view, self.judged.bins)
        chosen = {name: exact[name] for name in names if name in exact and name in reference.exact}
        one, other, notes = gates.pair(baseline, here, self.settings.max_missing)
        self.notes += notes
        return compare_samples(one, other, chosen, self.judged.bins, self.settings, self.level)


def compare_samples(
    baseline: Samples, other: Samples, metrics: Mapping[str, Metric], bins: int, settings: GateSettings, level: Level
) -> dict[str, Against]:
    """Both sides' values of metrics that samples give, by report key; the sides hold the same samples in one order."""
    views = [baseline.view(), other.view()]
    statistics = [
        Statistic(
            name, name, "", name, metric.direction, metric.sentence, [metric.prepare(views[0], bins)],
            [metric.prepare(views[1], bins)], [], metric.max_resamples,
        )
        for name, metric in metrics.items()
    ]  # fmt: skip
    how = Settings("probs", bins, settings.bootstrap, 0, level.confidence, settings.seed)
    rows = differences(statistics, [baseline.n], how) if statistics else []
    return {
        row.key: _against(row, metrics[row.key], views, gates.changed_samples(baseline, other, row.key), bins, settings, level)
        for row in rows
    }


def _against(
    row: Difference, metric: Metric, views: Sequence[Aggregated], changed: int, bins: int, settings: GateSettings, level: Level
) -> Against:
    """A paired difference, with what resampling the baseline alone says. `views`: the baseline's and the other's."""
    rows, other = (metric.rows(view) for view in views)
    few, prepared, alike = min(settings.bootstrap, FEW, metric.max_resamples or FEW), metric.prepare(rows, bins), None
    if metric.parts is not None and metric.norm == "sum" and changed:
        gaps = metric.parts(rows, bins), metric.parts(other, bins)
        alike, values_R = gates.alike(*gaps, rows.n, few, settings.seed)
        alone = gates.alone_from(prepared, values_R, rows.n, level)
    else:
        alone = gates.alone(prepared, rows.n, few, level, settings.seed)
    return Against(
        row.other, row.reference, row.low, row.high, row.standard_error, row.n, changed, alone.error, alone.bias, alike
    )  # fmt: skip


def _split(key: str) -> tuple[str, str]:
    prefix, _, name = key.rpartition(".")
    return prefix, name
