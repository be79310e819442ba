"""The only place that prints: data on stdout, talk on stderr. `rich` is imported when something is shown, and not before."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table as RichTable
    from rich.text import Text

    from sve_cli.report import Report

REPORT_WIDTH = 80
PLAIN_SECONDS = 10.0
# A pipe has no width: tables there keep their natural one instead of being cut.
PIPE_WIDTH = 1000
GAP = 3  # spaces between the columns of a table
INTERVAL = 13  # what an interval of a report's table needs: '(0.012-0.345)'
NAME = 16  # what a column of names needs at least: it wraps
MANY_MEMBERS = 8


class Advance(Protocol):
    """What `Console.progress` yields: `n` more steps are done; `text` says how it goes."""

    def __call__(self, n: int = 1, text: str = "") -> None: ...


class Console:
    """Tables, messages and progress for people; one JSON document for programs.

    Attributes:
        json_mode: stdout carries one JSON document and nothing else; `table` and `report` stay silent.
    """

    def __init__(self, json_mode: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.json_mode = json_mode
        self._clock = clock

    def say(self, text: str) -> None:
        """A line of talk, on stderr."""
        self._talk(text)

    def warn(self, text: str) -> None:
        """A warning, on stderr."""
        self._talk(text, "warning: ", "yellow")

    def error(self, message: str, hint: str = "") -> None:
        """What went wrong and what to do next, on stderr."""
        self._talk(message, "error: ", "bold red")
        if hint:
            self._talk(hint, "  hint: ", "cyan")

    def json(self, document: object) -> None:
        """One JSON document on stdout. Numbers that are not finite become null; paths become strings."""
        ascii_only = "utf" not in (sys.stdout.encoding or "").lower()
        try:
            sys.stdout.write(json.dumps(_plain(document), indent=1, ensure_ascii=ascii_only, allow_nan=False) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            nobody_reads(sys.stdout)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table on stdout; columns that hold only numbers are set right."""
        if self.json_mode:
            return
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        numeric = {i for i in range(len(columns)) if rows and _are_numbers([row[i] for row in rows])}
        # Not rich's own table title: that one is wrapped to the width of the table.
        if title:
            self._out.print(_text(title, "bold"))
        for part in _fitted(columns, cells, numeric, self._out.width):
            self._out.print(_rich_table(*part))

    def report(self, report: Report) -> None:
        """A compact summary on stdout, at most 80 columns wide: headline, predictors, OOD sets."""
        if self.json_mode:
            return
        from sve_cli.render import decisions, diagnosis, sparkline, tables  # not at the top: `sve --help` shows no report

        width = min(self._out.width, REPORT_WIDTH)
        self._out.print(_text(report.title, "bold"), width=width)
        self._out.print(_text(tables.subtitle(report), "dim"), width=width)
        for i, sentence in enumerate(report.headline):
            self._out.print(_text(sentence, "" if i else "bold"), width=width)
        for warning in report.warnings:
            self._out.print(_text(f"warning: {warning}", "yellow"), width=width)
        failed = any(signature.found for signature in report.diagnosis)
        for sentence in diagnosis.found_sentences(report):
            self._out.print(_text(f"diagnosis: {sentence}", "yellow" if failed else "dim"), width=width)
        self._out.print()
        self._out.print(_summary_table(report, width), width=width)
        for line in sparkline.spark_lines(report) if _draws_blocks() else []:
            self._out.print(_text(line, "dim"), width=width)
        for ood in report.ood:
            shown = tables.ood_table(ood)
            # Values only: with their intervals five columns do not fit. The Markdown and HTML views have them.
            rows = [[cell.partition(" (")[0] for cell in row] for row in shown.rows]
            title = f"OOD: {ood.name} ({ood.n_id:,} in, {ood.n_ood:,} out)"
            self._out.print()
            self._out.print(_text(title, "bold"), width=width)
            self._out.print(_rich_table([_two_lines(head) for head in shown.columns], rows, shown.numeric), width=width)
        for decision in report.decisions:
            done = decisions.decision_table(decision)
            self._out.print()
            self._out.print(_text(decision.title, "bold"), width=width)
            self._out.print(_text(decision.rule), width=width)
            if not decision.guarantee.startswith("None:"):  # then a warning has said so
                self._out.print(_text(decision.guarantee, "dim"), width=width)
            self._out.print(_rich_table(done.columns, done.rows, done.numeric), width=width)

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Advance]:
        """Progress on stderr: a bar on a terminal, else a plain line about every 10 seconds and one at the end.

        Yields a callable `advance(n=1, text="")`.
        """
        shown = self._bar(total, description) if _wants_bar() else self._lines(total, description)
        yield from shown

    def _bar(self, total: int, description: str) -> Iterator[Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        # stdout stays what it is: redirecting it here would move data to stderr.
        with Progress(*columns, console=self._err, redirect_stdout=False) as progress:
            task = progress.add_task(_clean(description), total=total, text="")

            def advance(n: int = 1, text: str = "") -> None:
                progress.update(task, advance=n)
                if text:
                    progress.update(task, text=_clean(text))

            yield advance

    def _lines(self, total: int, description: str) -> Iterator[Advance]:
        done, last_done, last_text, last_time = 0, -1, "", self._clock()
        begun: tuple[int, float] | None = None  # after the first advance: a resumed run begins with a jump

        def line() -> None:
            nonlocal last_done
            last_done = done
            percent = 100 * done // total if total > 0 else 100
            left = ""
            if begun and begun[0] < done < total:
                minutes = (self._clock() - begun[1]) / (done - begun[0]) * (total - done) / 60.0
                left = f"(about {minutes:.0f} min left)" if minutes >= 1.0 else ""
            self._talk(" ".join(part for part in (f"{description} {done}/{total} {percent} %", last_text, left) if part))

        def advance(n: int = 1, text: str = "") -> None:
            nonlocal done, last_text, last_time, begun
            done, last_text = done + n, text or last_text
            begun = begun or (done, self._clock())
            if self._clock() - last_time >= PLAIN_SECONDS:
                last_time = self._clock()
                line()

        yield advance
        if done != last_done:
            line()

    @cached_property
    def _out(self) -> RichConsole:
        return _rich_console(to_stderr=False)

    @cached_property
    def _err(self) -> RichConsole:
        return _rich_console(to_stderr=True)

    def _talk(self, message: str, label: str = "", style: str = "") -> None:
        line = _text(label, style).append(_clean(message), "")
        # Whole lines, so that a path can be copied; through rich, so that a running bar stays below.
        self._err.print(line, soft_wrap=True)


def _wants_bar() -> bool:
    """A bar only where it can be redrawn and somebody looks."""
    quiet = os.environ.get("CI") or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stderr.isatty() and not quiet


def _draws_blocks() -> bool:
    """Small charts only where somebody looks and the stream can write them."""
    return sys.stdout.isatty() and "utf" in (sys.stdout.encoding or "").lower()


def nobody_reads(stream: TextIO) -> None:
    """Send what is still written to a pipe that its reader has closed into nothing."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def _rich_console(to_stderr: bool) -> RichConsole:
    from rich.console import Console as RichConsole

    stream = sys.stderr if to_stderr else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        # An arrow in a table must not end a run on a stream that cannot write it (a pipe on Windows, LC_ALL=C).
        stream.reconfigure(errors="replace")
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH

    class OpenEnded(RichConsole):
        """A reader that has enough (`| head`) ends the output, and not the work or its exit code."""

        def on_broken_pipe(self) -> None:
            self.quiet = True
            nobody_reads(stream)

    return OpenEnded(stderr=to_stderr, markup=False, emoji=False, highlight=False, width=width)


def _clean(text: str) -> str:
    """Control characters made visible: a class name must not steer the terminal."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\ufffd", text)


def _text(text: str, style: str = "") -> Text:
    """Text that rich shows as it is, without reading markup."""
    from rich.text import Text

    return Text(_clean(text), style=style)


def _fitted(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int], width: int
) -> list[tuple[list[str], list[list[str]], set[int]]]:
    """A table so that no number is cut: as it is, else with its heads and then its intervals on two lines, else in several parts.

    Names wrap, so a column of them needs little; every part begins with the first column.
    """

    def widths(heads: Sequence[str], cells: Sequence[Sequence[str]], most: int) -> list[int]:
        found = [max(len(line) for text in column for line in text.split("\n")) for column in zip(heads, *cells, strict=True)]
        return [size if i in numeric else min(size, most) for i, size in enumerate(found)]

    def fits(sizes: Sequence[int]) -> bool:
        return sum(sizes) + GAP * (len(sizes) - 1) <= width

    heads, cells = list(columns), [list(row) for row in rows]
    if fits(widths(heads, cells, width)):
        return [(heads, cells, numeric)]
    heads = [_two_lines(head) for head in heads]
    if not fits(widths(heads, cells, NAME)):
        cells = [[re.sub(r" \((?=[-+−]?\d)", "\n(", cell) if i in numeric else cell for i, cell in enumerate(row)] for row in cells]
    sizes, parts = widths(heads, cells, NAME), [[0]]
    for i in range(1, len(heads)):
        if len(parts[-1]) > 1 and not fits([sizes[k] for k in (*parts[-1], i)]):
            parts.append([0])
        parts[-1].append(i)
    return [
        ([heads[i] for i in part], [[row[i] for i in part] for row in cells], {k for k, i in enumerate(part) if i in numeric})
        for part in parts
    ]


def _two_lines(head: str) -> str:
    """A long head broken once, where it becomes narrowest; its unit and its arrow stay together."""
    words = re.sub(" (?=[%↑↓])", "\N{NO-BREAK SPACE}", head).split(" ")
    if len(words) == 1:  # one word and its unit
        return head.replace(" ", "\n", 1)
    lines = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return "\n".join(min(lines, key=lambda pair: max(map(len, pair))))


def _rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: set[int] | frozenset[int]) -> RichTable:
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, name in enumerate(columns):
        right = i in numeric
        # Numbers keep their line, and names wrap.
        shown.add_column(_text(name), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in rows:
        shown.add_row(*(_text(cell) for cell in row))
    return shown


def _summary_table(report: Report, width: int) -> RichTable:
    """Predictors with accuracy, NLL, ECE and Brier; intervals beneath the values; many members in one row of ranges."""
    from rich.text import Text

    from sve_cli.render import tables

    keys, rows = tables.main_keys(report), tables.ordered_rows(report)
    members = [row for row in rows if row.key.startswith("members.")]
    shown = _rich_table(["Predictor", *tables.score_table(report).columns[1:]], [], frozenset(range(1, len(keys) + 1)))
    wide = width >= NAME + len(keys) * (INTERVAL + GAP)  # else the values only; the other views have the intervals
    for row in rows:
        if row in members and len(members) > MANY_MEMBERS:
            continue
        cells = []
        for key in keys:
            metric = row.metrics.get(key)
            interval = tables.format_interval(key, metric) if wide and metric and row not in members else ""
            value = _text(tables.format_number(key, metric.value if metric else None), "bold" if row.key == "ensemble" else "")
            cells.append(Text.assemble(value, ("\n" + interval, "dim")) if interval else value)
        shown.add_row(_text(row.title, "bold" if row.key == "ensemble" else ""), *cells)
    if len(members) > MANY_MEMBERS:
        ranges = []
        for key in keys:
            found = [row.metrics[key].value for row in members if key in row.metrics]
            values = [value for value in found if math.isfinite(value)]
            ends = [tables.format_number(key, end(values)) for end in (min, max)] if values else [tables.MISSING]
            ranges.append(_text("-".join(ends)))
        shown.add_row(_text(f"{len(members)} members, range"), *ranges)
    return shown


def _are_numbers(cells: Sequence[object]) -> bool:
    """Nothing but numbers and empty cells."""
    return any(map(_is_number, cells)) and all(_is_number(cell) or cell in ("", None) for cell in cells)


def _is_number(cell: object) -> bool:
    """A number, or text that starts like one: `1,024`, `95.3 (94.7-95.9)`, `12 MB`."""
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        return True
    unit = r"( ?%| \([^()]*\)| [kMGT]?i?B| m?s| min| h)?"
    return isinstance(cell, str) and re.fullmatch(r"[-+−]?\d[\d.,]*(e[-+]?\d+)?" + unit, cell) is not None


def _plain(value: object) -> object:
    """What JSON can say: no NaN, no paths, no dataclasses, no tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
