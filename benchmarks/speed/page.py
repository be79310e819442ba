"""Tables from a document, and the regions of docs/performance.md that are made of them.

    python -m benchmarks.speed.page write     renew every marked region of docs/performance.md
    python -m benchmarks.speed.page check     exit code 1 when a region does not say what the file says

A region begins with `<!-- speed: NAME -->`, NAME one of machine, targets, contenders, where, growth, accuracy, and ends with
`<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed import document
from benchmarks.speed.child import ROOT
from benchmarks.speed.workloads import WORKLOADS, title
from sve_cli.render import markdown
from sve_cli.render.tables import Table
from sve_cli.rundir import write_text

STORED = ROOT / "benchmarks" / "results" / "speed.json"
PAGE = ROOT / "docs" / "performance.md"
REGION = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_RUN = "not measured"


def _shown(value: float, target: float | None) -> str:
    return f"{value:.1e}" if target is not None and target < 1e-3 else f"{value:.2f}"


def _line(name: str, found: dict[str, Any], line: dict[str, Any]) -> list[str]:
    target = line["target"]
    sign = "≥" if line["at_least"] else "≤"
    spread = "" if line["n"] == 1 else f" ({_shown(line['q1'], target)} to {_shown(line['q3'], target)})"
    verdict = "" if target is None else "reached" if line["reached"] else "missed"
    goal = "" if target is None else f"{sign} {_shown(target, target)}"
    return [name, line["title"], f"{_shown(line['median'], target)}{spread}", str(line["n"]), goal, verdict]


def _measured(found: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    return [(n, found["workloads"][n]) for n in WORKLOADS if n in found["workloads"] and n.startswith(prefix)]


def targets(found: dict[str, Any]) -> str:
    """Every ratio but the curves', with its target and whether it is reached; then what each workload is."""
    rows, notes = [], []
    for name in WORKLOADS:
        if name.startswith("growth."):
            continue
        workload = found["workloads"].get(name)
        why = NOT_RUN if workload is None else workload.get("skipped") or workload.get("failed")
        if workload is None or why:
            rows.append([name, title(name), str(why), "", "", ""])
            continue
        rows += [_line(name, workload, line) for line in workload["ratios"]]
        notes.append(f"`{name}`: {workload['setting']['words']}")
    heads = ["workload", "what", "median (quartiles)", "turns", "target", ""]
    return f"{markdown.table(Table(heads, rows))}\n\n{markdown.bullets(notes)}\n"


def contenders(found: dict[str, Any]) -> str:
    """Seconds and FLOPs of every contender, and its share of the measured GEMM peak."""
    rows = []
    for name, workload in _measured(found):
        for who, c in workload.get("contenders", {}).items():
            if "seconds" not in c or name.startswith("growth."):
                continue
            s, peak = c["seconds"], c.get("gemm_peak_share", {})
            rows.append([name, who, f"{s['median']:.3g} ({s['q1']:.3g} to {s['q3']:.3g})", *(_number(c, k) for k in
                        ("gflop_needed", "gflop_done")), *(_number(peak, k) for k in ("of_products", "of_step"))])  # fmt: skip
    heads = [
        "workload",
        "contender",
        "seconds (quartiles)",
        "GFLOP needed",
        "GFLOP done",
        "GEMM peak, products",
        "GEMM peak, whole step",
    ]
    return f"{markdown.table(Table(heads, rows))}\n"


def _number(values: dict[str, Any], key: str) -> str:
    return f"{values[key]:.3g}" if key in values else ""


def where(found: dict[str, Any]) -> str:
    """Percent of a step by kind of operation, SVE beside full fine-tuning."""
    profiles: dict[str, dict[str, float]] = {}
    for name, workload in _measured(found, "train."):
        for who, c in workload.get("contenders", {}).items():
            if "profile" in c:
                profiles[f"{name.removeprefix('train.')}, {who}"] = c["profile"]["shares"]
    sums = {k: sum(p.get(k, 0.0) for p in profiles.values()) for p in profiles.values() for k in p}
    kinds = sorted(sums, key=lambda k: -sums[k])
    rows = [[kind, *(f"{100 * p.get(kind, 0.0):.1f}" for p in profiles.values())] for kind in kinds]
    return f"{markdown.table(Table(['percent of the step', *profiles], rows))}\n"


def growth(found: dict[str, Any]) -> str:
    """The curves."""
    rows = []
    for name, workload in _measured(found, "growth."):
        if "ratios" not in workload:
            continue
        points = [(n, c["seconds"]["median"] if "seconds" in c else c["peak_mb"]) for n, c in workload["contenders"].items()]
        shown = ", ".join(f"{n}: {v:.3g}" for n, v in points) + (" MB" if name == "growth.memory" else " s")
        rows.append([name, shown, "; ".join(f"{r['title']}: {r['median']:.2f}" for r in workload["ratios"])])
    return f"{markdown.table(Table(['curve', 'points', 'what it says'], rows))}\n"


def accuracy(found: dict[str, Any]) -> str:
    """Figures of the decomposition of hard matrices."""
    workload = found["workloads"].get("decompose.accuracy", {})
    keys = ("s", "orthogonality", "diagonality", "reconstruction")
    rows = [[name, *(f"{v[k]:.1e}" for k in keys)] for name, v in workload.get("contenders", {}).items()]
    return f"{markdown.table(Table(['matrix', *keys], rows))}\n"


def machine(found: dict[str, Any]) -> str:
    """What it was measured on, how busy that was, and its roofline."""
    m = found["machine"]
    lines = [f"{m['processor']}, {m['cores']} cores, {m['threads']} threads, {m['instructions']}, torch {m['torch']}; "
             f"device: {m['device']}{'' if m['device'] != 'cpu' else '; not measured on a GPU'}"]  # fmt: skip
    for kind, g in found.get("roofline", {}).get("gemm", {}).items():
        sizes = ", ".join(f"{side}: {v:.3g}" for side, v in g["gflops_by_side"].items())
        lines.append(f"matrix products in {kind}: {g['peak_gflops']:.3g} GFLOP/s at best (by side: {sizes})")
    if "triad_gb_per_s" in found.get("roofline", {}):
        lines.append(f"memory (triad): {found['roofline']['triad_gb_per_s']:.3g} GB/s")
    runs = [w for _, w in _measured(found)]
    if runs:
        clocks = ", ".join(sorted({w["clock"] for w in runs}))
        busy = sum(bool(w["busy"]) for w in runs)
        shares = [w["others"] for w in runs if w.get("others") is not None]
        range_ = f" (they took {min(shares):.0%} to {max(shares):.0%})" if shares else ""
        lines.append(f"{busy} of {len(runs)} workloads were disturbed by other work on the processor{range_}; clock: {clocks}; "
                     f"{sum(w['took'] for w in runs) / 60:.1f} minutes of measuring")  # fmt: skip
    return f"{markdown.bullets(lines)}\n"


REGIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine, "targets": targets, "contenders": contenders, "where": where, "growth": growth, "accuracy": accuracy,
}  # fmt: skip


def whole(found: dict[str, Any]) -> str:
    """Every table: what is written beside the JSON."""
    return "# Speed\n\n" + "\n".join(f"## {name.capitalize()}\n\n{make(found)}" for name, make in REGIONS.items())


def renewed(text: str, found: dict[str, Any]) -> str:
    """The page with every region made anew."""
    return REGION.sub(lambda m: f"{m.group(1)}\n{REGIONS[m.group(2)](found)}\n{m.group(3)}", text)


def main(words: list[str]) -> int:
    """See the module's docstring."""
    text, found = Path(PAGE).read_text(encoding="utf-8"), document.read(STORED)
    if words == ["write"]:
        write_text(PAGE, renewed(text, found))
        return 0
    return 0 if renewed(text, found) == text else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
