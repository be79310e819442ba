"""A run under shift: what the command measures and writes, what it keeps for a second time, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sve_cli.metrics.aggregate import aggregate
from sve_cli.predictions import Predictions
from sve_cli.statistics import bootstrap_counts, seeded
from sve_cli.workflows import shift_cells

TINY = ["--corruptions", "gaussian_noise,jpeg", "--severities", "1,5"]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs" / "digits"))


def predicted(found: Any) -> dict[str, Predictions]:
    """The predictions that the command kept, by cell."""
    kept = sorted(Path(found["provenance"]["predictions"]).glob("*/*.safetensors"))
    return {path.stem.rpartition("-")[0]: Predictions.load(path.with_suffix("")) for path in kept}


def test_the_command_measures_a_run(sve: Any, run: Path) -> None:
    before = sve.digests(run)
    answer = sve.json("shift", run, *TINY, "--sets", "digits:validation")
    found = answer["shift"]
    assert found["schema"] == "sve-shift/2" and found["severities"] == [1, 5] and "48 test rows" in found["rows"]
    assert {name: digest for name, digest in sve.digests(run).items() if name in before} == before
    folder = Path(answer["folder"])
    assert {path.name for path in folder.iterdir()} == {"shift.json", "shift.md", "shift.html"} and folder.parent == run / "shift"
    assert json.loads((folder / "shift.json").read_text(encoding="utf-8")) == found

    # The clean row is what the run's own evaluation says, before and after its own temperature.
    (evaluation,) = (run / "evaluations").iterdir()
    report = json.loads((evaluation / "report.json").read_text(encoding="utf-8"))
    rows = {row["key"]: row["metrics"] for row in report["rows"]}
    for side, key in (("ensemble", "ensemble"), ("temperature", "temperature")):
        for name in ("accuracy", "nll", "ece_top1_w15", "entropy_mean", "mutual_information_mean"):
            stored = {end: rows[key][name][end] for end in ("value", "low", "high")}
            assert found["clean"]["scores"][side][name] == pytest.approx(stored, rel=1e-12)

    # Every cell is what its predictions say, over the same samples.
    kept = predicted(found)
    assert set(kept) >= {"clean", "gaussian_noise-1", "gaussian_noise-5", "jpeg-1", "jpeg-5"} and len(kept) == 6
    test = kept["clean"]
    assert [(cell["corruption"], cell["severity"]) for cell in found["cells"]] == [
        ("gaussian_noise", 1), ("gaussian_noise", 5), ("jpeg", 1), ("jpeg", 5),
    ]  # fmt: skip
    for cell in found["cells"]:
        mine = kept[f"{cell['corruption']}-{cell['severity']}"]
        assert mine.ids_N == test.ids_N and (mine.labels_N == test.labels_N).all() and cell["n"] == 48
        assert not np.array_equal(mine.logits_MNC, test.logits_MNC)
        view, scores = aggregate(mine, "probs"), cell["scores"]["ensemble"]
        right = float((view.predicted_N == mine.labels_N).mean())
        assert scores["accuracy"]["value"] == pytest.approx(right)
        assert scores["confidence_mean"]["value"] == pytest.approx(float(view.confidence_N.mean()))
        change = right - found["clean"]["scores"]["ensemble"]["accuracy"]["value"]
        moved = cell["change"]["ensemble"]
        assert moved["accuracy"]["value"] == pytest.approx(change)
        assert set(moved) == set(scores)
        for one in moved.values():  # what is the same in every resample has no interval
            assert one["low"] <= one["value"] <= one["high"] if one["low"] is not None else one["value"] == 0.0
        assert moved["nll"]["low"] is not None
        assert set(cell["change"]["temperature"]) == set(scores)
    # The interval of a change by hand: differences of the same samples, resampled together.
    moved_N = aggregate(test, "probs").log_label_N - aggregate(kept["jpeg-5"], "probs").log_label_N
    (weights_NR,) = bootstrap_counts(48, 50, seeded(found["provenance"]["seed"], "bootstrap"))
    values_R = moved_N @ weights_NR / 48
    assert abs(values_R.mean() - moved_N.mean()) < 3 * values_R.std() / np.sqrt(50)  # chance: moves nothing
    low, high = np.quantile(values_R, [0.025, 0.975])
    nll = found["cells"][3]["change"]["ensemble"]["nll"]
    assert nll == pytest.approx({"value": moved_N.mean(), "low": low, "high": high})
    by_hand = np.mean([c["scores"]["temperature"]["nll"]["value"] for c in found["cells"] if c["severity"] == 5])
    assert [mean["severity"] for mean in found["means"]] == [0, 1, 5]
    assert found["means"][2]["temperature"]["nll"] == pytest.approx(by_hand) and found["means"][2]["corruptions"] == 2
    (other,) = found["sets"]
    assert other["name"] == "digits:validation" and other["n"] > 0 and found["clean"]["change"] is None
    assert other["change"]["ensemble"]["accuracy"]["low"] is None  # other samples: nothing to pair
    assert "digits:validation: " in " ".join(found["notes"]) and other["left_out"] > 0  # eights and nines
    assert any("is the data this run was trained or tested on" in warning for warning in found["warnings"])


def test_a_person_reads_means_the_worst_and_the_rows(sve: Any, run: Path) -> None:
    shown = sve("shift", run, *TINY, "--limit", 24)
    assert "0 (clean)" in shown and "mean over 2 corruptions" in shown
    told = ("At severity 5, mean over 2 corruptions, accuracy is", "The worst corruption is", "24 of 48 test rows", "Report:",
            "Of 4 cells (a corruption at a severity), accuracy fell by more than chance in ")  # fmt: skip
    for part in told:
        assert part in sve.err, sve.err
    assert "Change from the clean rows at severity 5 (interval)" in shown and re.search(r"[+−]\d+\.\d \([+−]?\d", shown), shown
    (page,) = (run / "shift").glob("*/shift.html")
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 6 and "24 of 48 test rows" in html and "<script" not in html
    written = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "## Accuracy by corruption" in written
    for text in (written, html):
        assert "Change from the clean rows" in text and "Accuracy, points" in text and "paired bootstrap" in text


def test_a_stopped_command_goes_on_to_the_same_bits(sve: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sve.json("shift", run, *TINY, "--limit", 16, "--out", tmp_path / "whole")["shift"]
    calls = 0
    real = shift_cells.predict_logits

    def counted(*arguments: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(shift_cells, "predict_logits", counted)
    sve("shift", run, *TINY, "--limit", 16, code=130)
    assert "What is finished is kept" in sve.err
    again = sve.json("shift", run, *TINY, "--limit", 16)["shift"]
    assert calls == 6 and "3 of 5 sets of predictions were there already" in sve.err  # the fourth again, and the fifth
    for part in ("clean", "cells", "means", "headline"):
        assert again[part] == whole[part]
    kept, other = predicted(again), predicted(whole)
    assert all(np.array_equal(kept[name].logits_MNC, other[name].logits_MNC) for name in other) and len(kept) == 5
    # Another choice of corruptions finds what is there for the same rows.
    sve("shift", run, "--corruptions", "jpeg", "--severities", "5", "--limit", 16)
    assert calls == 6


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["--corruptions", "gausian_blur"], "Did you mean 'gaussian_blur'?"),
        (["--corruptions", "typos"], "'typos' corrupts texts, and this run reads images."),
        (["--severities", "0"], "There is no severity 0"),
        (["--severities", "1,9"], "There is no severity 9"),
        (["--severities", "high"], "'high' is no severity"),
        (["--limit", "0"], "'--limit'"),
        (["--corruptions", "none"], "There is nothing to measure"),
        (["--corruptions", "none", "--sets", "digits:ood"], "'digits:ood' has other classes than this run: '8' is none of its 8"),
        (["--corruptions", "none", "--sets", "digits:tset"], "digits:tset"),
    ],
)
def test_what_cannot_be_measured_is_refused(sve: Any, trained: Path, arguments: list[str], saying: str) -> None:
    sve.check_refuses("shift", trained, *arguments, saying=saying)
    assert not (trained / "shift").exists()


def test_no_run_is_refused(sve: Any, tmp_path: Path) -> None:
    sve.check_refuses("shift", saying="There is no complete run")
    sve.check_refuses("shift", tmp_path, saying="There is no run at")


def trained_on(sve: Any, model: Path, data: Path, task: str, folder: Path) -> Path:
    """A run of two members, without a temperature."""
    (folder / "r.yaml").write_text(
        f"model: {{name: {model}}}\ndata: {{name: {data}}}\ntask: {{name: {task}}}\n"
        "method: {name: sve, members: 2}\ntrain: {epochs: 1, precision: float32}\n"
        "evaluate: {bootstrap: 0, temperature: false}\n",
        encoding="utf-8",
    )
    sve("train", "r.yaml", "--out", folder / "run")
    return folder / "run"


def text_run(sve: Any, lab: Any, folder: Path) -> Path:
    """A run of two members on a small BERT, whose tokenizer knows no capitals."""
    data = folder / "texts"
    data.mkdir()
    for split, n in (("train", 30), ("test", 12)):
        lines = [{"text": f"the sky is {'very ' * (i % 4)}{c}", "label": c} for i, c in enumerate(["red", "green", "blue"] * n)]
        (data / f"{split}.jsonl").write_text("\n".join(json.dumps(line) for line in lines[:n]), encoding="utf-8")
    return trained_on(sve, lab.root / "bert", data, "text_classification", folder)


@pytest.mark.slow
def test_what_a_network_does_not_see_is_said(sve: Any, lab: Any, tmp_path: Path) -> None:
    run = text_run(sve, lab, tmp_path)
    found = sve.json("shift", run, "--corruptions", "keyboard,upper_case", "--severities", "5")["shift"]
    touched = {cell["corruption"]: cell["untouched"] for cell in found["cells"]}
    assert touched == {"keyboard": False, "upper_case": True}
    (upper,) = [cell for cell in found["cells"] if cell["corruption"] == "upper_case"]
    assert upper["scores"] == found["clean"]["scores"]
    assert all(one == {"value": 0.0, "low": None, "high": None} for one in upper["change"]["ensemble"].values())
    assert any("stays what it was, to the bit, under: upper case (upper_case)" in note for note in found["notes"])
    assert found["temperature"] is None and found["clean"]["scores"]["temperature"] == {}
    assert any("no fitted temperature" in note for note in found["notes"])
    sve.check_refuses("shift", run, "--corruptions", "snow", saying="'snow' corrupts images, and this run reads texts.")
    (tmp_path / "bare.jsonl").write_text('{"text": "a sky"}\n', encoding="utf-8")
    sve.check_refuses(
        "shift", run, "--corruptions", "none", "--sets", "bare.jsonl", saying="No row of the set 'bare.jsonl' has a label"
    )


def test_weights_of_the_members_hold_under_shift(sve: Any, run: Path) -> None:
    """A run that was evaluated with fitted weights is measured with them, and at the temperature fitted with them."""
    plain = sve.json("shift", run, "--corruptions", "jpeg", "--severities", "5")["shift"]
    sve("evaluate", run, "--aggregate", "weighted")
    report = max(run.glob("evaluations/*/report.json"), key=lambda path: path.stat().st_mtime)
    rows = {row["key"]: row["metrics"] for row in json.loads(report.read_text(encoding="utf-8"))["rows"]}
    found = sve.json("shift", run, "--corruptions", "jpeg", "--severities", "5")["shift"]
    assert found["provenance"]["aggregate"].startswith("weighted:")
    for side, key in (("ensemble", "ensemble"), ("temperature", "temperature")):
        here = found["clean"]["scores"][side]["nll"]["value"]
        assert here == pytest.approx(rows[key]["nll"]["value"]) != plain["clean"]["scores"][side]["nll"]["value"]


def question_run(sve: Any, lab: Any, folder: Path) -> Path:
    """A run of two members on questions, one of twelve with three options and the others with four; a set of four each."""
    data = folder / "questions"
    data.mkdir()
    words = ["red", "green", "blue", "yes"]
    for split, n in (("train", 8), ("validation", 8), ("test", 12), ("four", 12)):
        counts = [3 if i == 0 and split != "four" else 4 for i in range(n)]
        rows = [{"question": f"what is {split} {i}", "choices": words[:k], "label": i % 3} for i, k in enumerate(counts)]
        (data / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    (data / "four.jsonl").rename(folder / "four.jsonl")
    return trained_on(sve, lab.root / "llama", data, "multiple_choice", folder)


def test_entropies_of_all_sets_are_in_one_unit(sve: Any, lab: Any, tmp_path: Path) -> None:
    """Options vary among the clean rows alone, and neither there nor in the set under the limit that drops the odd question."""
    run = question_run(sve, lab, tmp_path)
    command = ("shift", run, "--corruptions", "drop_words", "--severities", "5", "--sets", "four.jsonl")
    for limit in (12, 6):
        found = sve.json(*command, "--limit", limit, "--out", tmp_path / f"out{limit}")["shift"]
        shares = {}
        for name, made in predicted(found).items():
            assert made.mask_NC is not None and made.n_samples == limit
            view, log_options_N = aggregate(made, "probs", per_option=False), np.log(made.mask_NC.sum(axis=1))
            parts = [(values_N / log_options_N).mean() for values_N in (view.entropy_N, view.mutual_information_N)]
            shares[name.partition("-")[0]] = parts
            assert name != "clean" or made.mask_NC.all() == (limit == 6)
        rows = {"clean": found["clean"], "drop_words": found["cells"][0], "four": found["sets"][0]}
        for name, row in rows.items():
            for key, share, clean in zip(("entropy_mean", "mutual_information_mean"), shares[name], shares["clean"], strict=True):
                assert row["scores"]["ensemble"][key]["value"] == pytest.approx(share)
                if name != "clean":
                    assert row["change"]["ensemble"][key]["value"] == pytest.approx(share - clean)
        assert any("The number of options varies" in note for note in found["notes"])
