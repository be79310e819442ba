"""Gates: what may get how much worse, judged from both sides' predictions. Nothing here opens a model or prints."""

from sve_cli.gate.alike import Alike, alike
from sve_cli.gate.baseline import BASELINE_SCHEMA, Baseline, differing, load_baseline, make_baseline, metrics_by_key
from sve_cli.gate.calibrate import Learned, how_sure, learn, learn_all
from sve_cli.gate.condition import Condition, parse_condition
from sve_cli.gate.edit import new_gate_file, with_slacks
from sve_cli.gate.rule import (
    Against,
    Alone,
    Level,
    alone,
    alone_from,
    judge_condition,
    judge_limit,
    judge_worsening,
    share_level,
    unpaired,
    worst_check,
)
from sve_cli.gate.samples import Samples, changed_samples, missing_notes, pair, recomputable, samples_of
from sve_cli.gate.spec import GateFile, GateSettings, GateSpec, load_gates, parse_gates

__all__ = [
    "BASELINE_SCHEMA",
    "Against",
    "Alike",
    "Alone",
    "Baseline",
    "Condition",
    "GateFile",
    "GateSettings",
    "GateSpec",
    "Learned",
    "Level",
    "Samples",
    "alike",
    "alone",
    "alone_from",
    "changed_samples",
    "differing",
    "how_sure",
    "judge_condition",
    "judge_limit",
    "judge_worsening",
    "learn",
    "learn_all",
    "load_baseline",
    "load_gates",
    "make_baseline",
    "metrics_by_key",
    "missing_notes",
    "new_gate_file",
    "pair",
    "parse_condition",
    "parse_gates",
    "recomputable",
    "samples_of",
    "share_level",
    "unpaired",
    "with_slacks",
    "worst_check",
]
