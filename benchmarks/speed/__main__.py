"""Measure speed and memory against strong contenders.

    python -m benchmarks.speed [--short] [--out DIR] [--only NAME,...]     measure; add to DIR/speed.json, write DIR/speed.md
    python -m benchmarks.speed --check FILE                                compare a very short run's ratios with FILE's

NAME is a workload or the beginning of one (`train`, `train.vit`, `growth`). Exit codes: 0 measured, 1 a workload failed, 2 not
understood, 3 the check found a ratio that is worse.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.speed import document, machine, page
from benchmarks.speed.child import ROOT
from benchmarks.speed.clock import TIMERS, clock_for
from benchmarks.speed.tiers import Tier, context_of
from benchmarks.speed.workloads import WORKLOADS, title, workload
from sve_cli.allocator import kept_pages
from sve_cli.rundir import read_json, write_json, write_text

Results = Iterator[tuple[str, dict[str, Any]]]  # name of a workload, what it found


def say(text: str) -> None:
    """A line for a person, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_one(name: str, tier: Tier, store: Path, clock: str | None, seconds: float | None = None) -> dict[str, Any]:
    """One workload in this process, with the machine's load and what others took of it."""
    start, used = machine.load(), machine.processor_time()
    busy = machine.is_busy(start, machine.describe()["cores"])
    context = context_of(tier, store, "cpu" if clock == "cpu" else "wall" if clock == "wall" else clock_for(busy))
    context = context if seconds is None else replace(context, seconds=seconds)
    if name == "roofline":
        found = machine.roofline(context.pick(0.01, 0.5, 2.0), context.clock, context.pick((64,), *[machine.SIDES] * 2))
        return {**found, "load": {"start": start, "end": machine.load()}, "clock": context.clock}
    began = time.perf_counter()
    try:
        with kept_pages():  # for every contender, as `sve train` has it
            found = workload(name)(context)
    except (RuntimeError, MemoryError) as error:
        traceback.print_exc()
        found = {"failed": str(error).splitlines()[0] if str(error) else type(error).__name__}
    took = round(time.perf_counter() - began, 1)
    others = machine.others_share(used)
    busy = busy if others is None else others > machine.OTHERS_ABOVE
    facts = {"load": {"start": start, "end": machine.load()}, "others": others, "busy": busy, "clock": context.clock, "took": took}
    return {**found, **facts, "measured": datetime.now(UTC).isoformat(timespec="seconds")}


def one_by_one(names: list[str], tier: Tier, store: Path, clock: str | None, seconds: float | None) -> Results:
    """Workloads in this process."""
    return ((name, run_one(name, tier, store, clock, seconds)) for name in names)


def in_processes(names: list[str], tier: Tier, store: Path, clock: str | None, seconds: float | None) -> Results:
    """Workloads in processes of their own, one for each family (`train`, `growth`): its libraries are imported once."""
    for _, family in groupby(names, key=lambda name: name.partition(".")[0]):
        yield from _in_process(list(family), tier, store, clock, seconds)


def _in_process(names: list[str], tier: Tier, store: Path, clock: str | None, seconds: float | None) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.speed", "--one", ",".join(names), "--tier", tier, "--store", str(store)]
        words += ["--result", folder, *(["--clock", clock] if clock else [])]
        words += ["--seconds", str(seconds)] if seconds is not None else []
        with subprocess.Popen(words, cwd=ROOT) as child:
            try:
                for name in names:
                    path = Path(folder) / f"{name}.json"
                    while not path.is_file() and child.poll() is None:
                        time.sleep(0.1)
                    lost = {"failed": f"its process ended with {child.returncode}", "took": 0.0}
                    yield name, read_json(path) if path.is_file() else lost
            finally:
                child.kill()  # every result is there, or nobody waits for it


def chosen(only: str | None) -> list[str]:
    """The workloads that begin with one of the given names, in the order given; all without."""
    wanted = [w for w in (only or "").split(",") if w]
    found = [n for w in wanted for n in WORKLOADS if n == w or n.startswith(w + ".")]
    return list(dict.fromkeys(found)) if wanted else list(WORKLOADS)


def shown(name: str, found: dict[str, Any]) -> str:
    """A workload's result in one or several lines."""
    why = found.get("skipped") or found.get("failed")
    if why:
        return f"{name}: {'skipped' if 'skipped' in found else 'FAILED'}: {why}"
    lines = [f"{name} ({title(name)}), {found['took']:.0f} s"]
    for r in found["ratios"]:
        verdict = "" if r["target"] is None else f", target {r['target']:g}: {'reached' if r['reached'] else 'missed'}"
        lines.append(f"    {r['title']}: {r['median']:.3g} ({r['q1']:.3g} to {r['q3']:.3g}, {r['n']} turns){verdict}")
    return "\n".join(lines)


def measure(
    names: list[str], tier: Tier, out: Path, clock: str | None = None, seconds: float | None = None, together: bool = False
) -> int:
    """Run the workloads one after another; the document is stored after each. `together`: all in this process."""
    run = one_by_one if together else in_processes
    path = out / "speed.json"
    try:
        found = document.started(path, tier, machine.describe())
    except document.BadDocument as error:
        sys.stderr.write(f"{error}\n")
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        if "gemm" not in found["roofline"] or set(names) == set(WORKLOADS):
            found["roofline"] = dict(run(["roofline"], tier, store, clock, seconds))["roofline"]
        for name, result in run(names, tier, store, clock, seconds):
            failed += "failed" in result
            found["workloads"][name] = result
            document.store(path, found)
            say(shown(name, result))
    write_text(out / "speed.md", page.whole(found))
    say(f"Written: {path} and {out / 'speed.md'}")
    return int(bool(failed))


def check(stored: Path) -> int:
    """Compare a very short run with a stored document."""
    try:
        old = document.read(stored)
        with tempfile.TemporaryDirectory() as folder:
            start = machine.load()
            clock = clock_for(machine.is_busy(start, machine.describe()["cores"]))
            context = replace(context_of("short", Path(folder), clock), seconds=5.0)
            with kept_pages():
                found = workload("check")(context)
        worse = document.compare(found, old)
    except document.BadDocument as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for line in found["ratios"]:
        say(f"{line['title']}: {line['median']:.2f}")
    for sentence in worse:
        say(sentence)
    say("Worse than stored." if worse else "Not worse than stored.")
    return 3 if worse else 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--short", action="store_true", help="under 10 minutes on 2 idle cores")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder of speed.json and speed.md")
    parser.add_argument("--only", help="workloads, or beginnings of their names, with commas between")
    parser.add_argument("--check", type=Path, metavar="FILE", help="a stored speed.json")
    parser.add_argument("--clock", choices=list(TIMERS), help="default: wall; cpu on one thread of a busy machine")
    parser.add_argument("--seconds", type=float, help="about how long a workload's turns may take; two turns are always taken")
    parser.add_argument("--together", action="store_true", help="all workloads in one process, which saves importing again")
    for hidden in ("--one", "--tier", "--store", "--result"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        for name, found in one_by_one(given.one.split(","), given.tier, Path(given.store), given.clock, given.seconds):
            write_json(Path(given.result) / f"{name}.json", found)
        return 0
    if given.check:
        return check(given.check)
    names = chosen(given.only)
    if not names:
        sys.stderr.write(f"No workload begins with '{given.only}'. There are: {', '.join(WORKLOADS)}\n")
        return 2
    return measure(names, "short" if given.short else "long", given.out, given.clock, given.seconds, given.together)


if __name__ == "__main__":
    sys.exit(main())
