"""`sve predict`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from sve_cli.commands.options import Json
from sve_cli.console import Console
from sve_cli.errors import SveError

OUT_SUFFIXES = (".csv", ".jsonl", ".parquet")
COLUMNS = ("id", "label", "decision", "confidence", "entropy", "aleatoric", "epistemic", "ood_score", "set", "choice")
SHOWN_ROWS, SHOWN_CLASSES = 50, 5


def predict(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [INPUT]",
            help="A run's folder (default: the newest complete run); an image, a folder of images, a csv, jsonl, parquet file, or "
            "a txt file with one text or image path a line.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text given literally; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write all rows to a .csv, .jsonl or .parquet file.")] = None,
    as_json: Json = False,
) -> None:
    """Apply a run to new inputs: label, probabilities, uncertainty, and whether to answer, abstain, or call it foreign."""
    from sve_cli.rundir import RunDir
    from sve_cli.workflows.predict import predict as predict_inputs

    console = Console(json_mode=as_json)
    if out is not None and out.suffix not in OUT_SUFFIXES:
        raise SveError(f"--out must end in {', '.join(OUT_SUFFIXES)}, not '{out.name}'.", "Rename it.")
    run, source = run_and_input(list(arguments or []), bool(text))
    found = RunDir.given(Path(run) if run is not None else None)
    console.say(f"Run: {found.path}")
    answers = predict_inputs(found, console, source=source, texts=text or [])
    for rule in answers.rules:
        (console.warn if rule in answers.missing else console.say)(rule)
    rows = answers.rows
    heads = ["Input", "Decision", "Label", "Probability", "Epistemic", "Conformal set"]
    console.table("", heads, [_line(row) for row in rows[:SHOWN_ROWS]])
    if len(rows) > SHOWN_ROWS:
        console.say(f"{len(rows) - SHOWN_ROWS:,} more inputs: write all with --out FILE.")
    if out is not None:
        write_rows(out, rows, answers.classes)
        console.say(f"Written: {out}")
    if as_json:
        console.json({"run": str(found.path), "classes": answers.classes, "rules": answers.rules, "rows": rows})


def run_and_input(given: list[str], has_text: bool) -> tuple[str | None, str | None]:
    """(run, input) of one or two arguments; a single one is the run when it is one, or when the input is --text.

    Raises:
        SveError: more than two.
    """
    if len(given) > 2:
        raise SveError(f"sve predict takes a run and one input, not {len(given)} arguments.", "Put several inputs into a file.")
    if len(given) == 2:
        return given[0], given[1]
    if not given:
        return None, None
    return (given[0], None) if has_text or (Path(given[0]) / "recipe.yaml").is_file() else (None, given[0])


def _line(row: dict[str, Any]) -> list[str]:
    if row["error"] is not None:
        return [row["id"], "not readable", "", "", "", ""]  # the warnings say why, and the rows of --out
    names = row["set"] or []
    shown = ", ".join(names[:SHOWN_CLASSES]) + (f", … ({len(names)})" if len(names) > SHOWN_CLASSES else "")
    of_set = "" if row["set"] is None else shown or "(none)"
    label = row["label"] if row["choice"] is None else f"{row['label']}: {row['choice']}"
    return [row["id"], row["decision"], label, f"{row['confidence']:.3f}", f"{row['epistemic']:.4f}", of_set]


def write_rows(path: Path, rows: list[dict[str, Any]], classes: list[str]) -> None:
    """Write rows: jsonl as they are; csv and parquet with a column `p:<class>` for every probability (a set is JSON in csv).

    Raises:
        SveError: the disk refuses.
    """
    from sve_cli.rundir import atomic_path, write_text

    if path.suffix == ".jsonl":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    flat = [
        {**{c: row[c] for c in COLUMNS}, **{f"p:{c}": (row["probabilities"] or {}).get(c) for c in classes}, "error": row["error"]}
        for row in rows
    ]
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, number = pa.string(), pa.float64()
        types = {"id": text, "label": text, "decision": text, "set": pa.list_(text), "choice": text, "error": text}
        schema = pa.schema([(name, types.get(name, number)) for name in flat[0]])
        with atomic_path(path) as temporary, temporary.open("wb") as file:  # arrow would take a path of ~ or x: for another one
            pq.write_table(pa.Table.from_pylist(flat, schema=schema), file)
        return
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    for row in flat:
        writer.writerow({**row, "set": None if row["set"] is None else json.dumps(row["set"], ensure_ascii=False)})
    write_text(path, buffer.getvalue())
