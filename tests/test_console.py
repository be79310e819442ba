from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sve_cli.console import Console
from sve_cli.report import MetricValue, OodSet, Report, Row


@pytest.fixture(autouse=True)
def _pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def _value(value: float) -> MetricValue:
    return MetricValue(value, 100, "higher", "d", value - 0.01, value + 0.01)


def _report(members: int) -> Report:
    keys = ("accuracy", "nll", "ece_top1_w15", "brier")
    rows = [Row("ensemble", "Ensemble of " + "very " * 12 + "many", {key: _value(0.5) for key in keys})]
    rows += [Row(f"members.{m}", f"Member {m}", {key: _value(0.3 + m / 100) for key in keys}) for m in range(members)]
    scores = {"mutual_information": {key: _value(0.9) for key in ("auroc_ood", "aupr_ood", "aupr_id", "fpr95_ood_positive")}}
    ood = [OodSet("o" * 90, 9, 9, scores)]
    return Report("t [bold]x[/bold]", ["It is " + "good " * 30], rows, "d" * 100, "test", 9, ["a"], ood)


def test_talk_goes_to_stderr_and_data_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("talk")
    console.warn("careful")
    console.error("broken", "mend it")
    console.table("Layers", ["layer", "rank"], [["a", 3]])
    out, err = capsys.readouterr()
    assert err == "talk\nwarning: careful\nerror: broken\n  hint: mend it\n"
    assert out.startswith("Layers") and "talk" not in out and "rank" in out


def test_markup_and_control_characters_are_shown_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("[red]x[/red] [/nope] :smile: \x1b[31m")
    console.table("[b]t[/b]", ["[i]c"], [["[/x] \x07"]])
    out, err = capsys.readouterr()
    assert err == "[red]x[/red] [/nope] :smile: \ufffd[31m\n"
    assert "[b]t[/b]" in out and "[i]c" in out and "[/x] \ufffd" in out


def test_long_lines_and_cells_are_not_cut_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/a" * 150
    console = Console()
    console.say(path)
    console.table("t", ["path"], [[path]])
    out, err = capsys.readouterr()
    assert err == path + "\n" and path in out


def test_json_mode_prints_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json_mode=True)
    console.say("talk")
    console.table("t", ["c"], [["x"]])
    console.report(_report(2))
    with console.progress(2, "work") as advance:
        advance(2)
    console.json({"nll": math.nan, "path": Path("a/b"), "row": _value(0.5), "pair": (1, "é")})
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["nll"] is None and document["path"] == "a/b" and document["pair"] == [1, "é"]
    assert document["row"]["definition"] == "d"
    assert "talk" in err and "work 2/2 100 %" in err


@pytest.mark.parametrize("members", [2, 40])
def test_report_fits_80_columns_and_says_everything(members: int, capsys: pytest.CaptureFixture[str]) -> None:
    Console().report(_report(members))
    out, err = capsys.readouterr()
    assert err == "" and max(len(line) for line in out.splitlines()) <= 80
    for part in ("t [bold]x[/bold]", "It is good", "Accuracy % ↑", "50.0", "49.0-51.0", "Mutual information", "90.0"):
        assert part in out
    assert ("Member 1" in out) == (members == 2)
    assert ("40 members, range" in out and "30.0-69.0" in out) == (members == 40)


def test_a_narrow_terminal_shows_values_instead_of_names_in_pieces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    Console().report(_report(2))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60 and not any("49.0-51.0" in line for line in lines)
    assert any(re.match(r"Member 1 +31\.0 +0\.310 ", line) for line in lines) and any("Ensemble of very" in line for line in lines)


def test_a_reader_that_has_enough_ends_neither_the_work_nor_its_exit_code(tmp_path: Path) -> None:
    code = """if True:
        import sys, time
        from sve_cli.console import Console
        console = Console(json_mode=len(sys.argv) > 2)
        for i in range(300):
            console.json({"x": "y" * 1000}) if console.json_mode else console.table("t", ["x"], [["y" * 1000]])
            time.sleep(0.001)
        open(sys.argv[1], "w").write("done")
        sys.exit(3)"""
    for mode in ([], ["json"]):
        out = tmp_path / f"done{len(mode)}"
        with subprocess.Popen(
            [sys.executable, "-c", code, str(out), *mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as work:
            assert work.stdout is not None and work.stderr is not None
            work.stdout.read(10)
            work.stdout.close()
            assert work.wait(60) == 3 and work.stderr.read() == b"" and out.read_text() == "done"


def test_heads_break_once_where_a_table_is_too_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At 80 columns: no head in pieces of one word, and units stay with their arrows."""
    columns = ["Score", "AUROC % ↑", "AUPR, OOD % ↑", "AUPR, ID % ↑", "FPR95, OOD caught % ↓", "FPR95, ID kept % ↓"]
    row = ["Energy of the mean log-probability", "87.8 (86.6-88.9)", "57.6", "96.8", "42.5", "61.3"]
    monkeypatch.setenv("COLUMNS", "80")
    Console().table("", columns, [row])
    first, second, rule, *_ = capsys.readouterr().out.splitlines()
    assert first.split("  ")[-1].strip() == "FPR95, ID" and "FPR95, OOD" in first and "AUROC" in first and len(rule) <= 80
    assert [part.strip() for part in re.split(" {2,}", second)[1:]] == [
        "% ↑", "OOD\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}↑", "ID\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}↑",
        "caught\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}↓", "kept\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}↓",
    ]  # fmt: skip
    # Intervals come below their values where that helps, and what is still too wide becomes several tables: no number is cut.
    many = ["Name", *(f"Metric {i} % ↑" for i in range(8))]
    Console().table("", many, [["a", *(f"{10 * i}.5 ({10 * i}.1-{10 * i}.9)" for i in range(8))]])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and shown.count("Name") == 2, shown
    assert all(f"{10 * i}.5" in shown and f"({10 * i}.1-{10 * i}.9)" in shown for i in range(8)) and shown.count("Metric") == 8
    monkeypatch.setenv("COLUMNS", "160")
    Console().table("", columns, [row])
    assert "FPR95, OOD caught % ↓" in capsys.readouterr().out.splitlines()[0], "where there is room it stays on one line"


def test_progress_in_a_pipe_is_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    console = Console(clock=lambda: now)
    with console.progress(3000, "train [0]") as advance:
        for step in range(30):
            now += 1.0
            advance(10, f"loss {step}")
    out, err = capsys.readouterr()
    assert out == ""
    left = {100: "(about 5 min left)", 200: "(about 5 min left)", 300: "(about 4 min left)"}  # a tenth of a second a step
    assert err.splitlines() == [f"train [0] {n}/3000 {n // 30} % loss {n // 10 - 1} {left[n]}" for n in left]
    with console.progress(3000, "resumed") as advance:  # what was done before says nothing of the pace
        advance(2000)
        for _ in range(3):
            now += 20.0
            advance(40)
        advance(880)
    assert capsys.readouterr().err.splitlines() == [
        "resumed 2040/3000 68 % (about 8 min left)", "resumed 2080/3000 69 % (about 8 min left)",
        "resumed 2120/3000 70 % (about 7 min left)", "resumed 3000/3000 100 %",
    ]  # fmt: skip


def test_progress_ends_with_where_it_stands_unless_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(clock=lambda: 0.0)
    with console.progress(0, "empty"):
        pass
    with pytest.raises(ValueError, match="stop"), console.progress(5, "failed") as advance:
        advance(2)
        raise ValueError("stop")
    assert capsys.readouterr().err == "empty 0/0 100 %\n"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("name", "value"), [("CI", "1"), ("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")])
def test_a_bar_only_on_a_terminal_that_can_redraw(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in ("CI", "NO_COLOR"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console()
    with console.progress(2, "work [0]") as advance:
        console.json({"data": "stays on stdout"})
        advance(2, "[done]")
    assert json.loads(capsys.readouterr().out) == {"data": "stays on stdout"}
    if value == "xterm":
        assert "\x1b[" in stream.getvalue() and "work [0]" in stream.getvalue() and "[done]" in stream.getvalue()
    else:
        assert stream.getvalue() == "work [0] 2/2 100 % [done]\n"


def test_a_stream_that_cannot_write_arrows_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    console = Console()
    console.report(_report(2))
    console.json({"name": "é"})
    sys.stdout.flush()
    assert b"Accuracy % ?" in raw.getvalue() and b'"\\u00e9"' in raw.getvalue()


def test_importing_the_console_loads_neither_torch_nor_rich() -> None:
    code = "import sys, sve_cli.console; sys.exit(bool({'torch', 'numpy', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("terminal", "encoding", "drawn"), [(True, "utf-8", True), (False, "utf-8", False), (True, "ascii", False)]
)
def test_small_charts_only_on_a_terminal_that_can_show_them(
    terminal: bool, encoding: str, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return terminal

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Stream(raw, encoding=encoding))
    report = replace(_report(2), history=[{"validation_nll": 0.5}, {"validation_nll": 0.25}])
    Console().report(report)
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert ("Validation NLL by epoch" in text) == drawn and ("█▁" in text) == drawn and "Predictor" in text
