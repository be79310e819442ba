"""Predictions made elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sve_cli.errors import SveError
from sve_cli.foreign import open_predictions, read_foreign
from sve_cli.metrics.aggregate import aggregate
from sve_cli.ood.detection import auroc_ood
from sve_cli.registry import METRICS, OOD_SCORES

PROBS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]])
LABELS = [0, 1, 1, 2]


def test_every_form_gives_the_same_distribution(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", probs=PROBS, labels=LABELS, ids=list("wxyz"), classes=["u", "v", "w"])
    np.savez(tmp_path / "m.npz", logits=np.log(np.maximum(PROBS, 1e-38))[None] + 3.0, labels=LABELS)
    with np.errstate(divide="ignore"):
        np.savez(tmp_path / "l.npz", log_probs=np.log(PROBS), labels=LABELS)
    columns = {"probs": PROBS.tolist(), "label": LABELS, "id": list("wxyz"), "place": list("aabb")}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    lines = [f'"[{", ".join(map(str, row))}]",{label}' for row, label in zip(PROBS, LABELS, strict=True)]
    (tmp_path / "c.csv").write_text("probs,label\n" + "\n".join(lines) + "\n")
    rows = [f"{','.join(map(str, row))},{'uvw'[label]}" for row, label in zip(PROBS, LABELS, strict=True)]
    (tmp_path / "d.csv").write_text("u,v,w,label\n" + "\n".join(rows) + "\n")
    for name in ("a.npz", "m.npz", "l.npz", "p.parquet", "c.csv", "d.csv"):
        found, notes = open_predictions(tmp_path / name, ["u", "v", "w"] if name == "d.csv" else [])
        np.testing.assert_allclose(aggregate(found).probs_NC, PROBS, atol=1e-7)
        assert found.labels_N.tolist() == LABELS and found.n_members == 1
        assert any("has no ids" in note for note in notes) == (name not in ("a.npz", "p.parquet"))
        assert any("exactly 0" in note for note in notes) == (name not in ("m.npz", "l.npz"))
        assert found.classes == (["u", "v", "w"] if name in ("a.npz", "d.csv") else ["0", "1", "2"])
        assert found.columns == ({"place": list("aabb")} if name == "p.parquet" else {})


def test_rows_are_renormalised_up_to_a_thousandth(tmp_path: Path) -> None:
    probs = PROBS.copy()
    probs[1] *= 1.0009
    np.savez(tmp_path / "a.npz", probs=probs, labels=LABELS)
    np.testing.assert_allclose(aggregate(read_foreign(tmp_path / "a.npz")[0]).probs_NC, PROBS, atol=1e-7)
    probs[1] *= 1.0002
    np.savez(tmp_path / "a.npz", probs=probs, labels=LABELS)
    with pytest.raises(SveError, match="Row 2 of .* sum to 1.0011"):
        read_foreign(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"probs": np.where(PROBS == 0.8, np.nan, PROBS)}, "Row 2 of .* NaN"),
        ({"probs": np.stack([PROBS, np.where(PROBS == 0.5, np.inf, PROBS)])}, "Row 3 of .* infinite"),
        ({"probs": PROBS - np.array([0.2, 0.0, -0.2])}, "Row 2 of .* no distribution"),
        ({"labels": [0, 1, 1, 3]}, "label of row 4 .* is '3'"),
        ({"labels": [0, 1, 1]}, "do not match"),
        ({"probs": PROBS[0]}, "has shape"),
        ({"ids": ["a"]}, "1 ids for 4 rows"),
        ({"other": PROBS, "probs": None}, "holds labels, other"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, object], part: str) -> None:
    arrays = {"probs": PROBS, "labels": LABELS} | change
    np.savez(tmp_path / "a.npz", **{k: np.asarray(v) for k, v in arrays.items() if v is not None})
    with pytest.raises(SveError, match=part) as caught:
        read_foreign(tmp_path / "a.npz")
    assert caught.value.exit_code == 2


def test_pickles_and_missing_columns_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", probs=np.array([object()] * 2), labels=LABELS)
    with pytest.raises(SveError, match="Cannot read"):
        read_foreign(tmp_path / "a.npz")
    (tmp_path / "a.csv").write_text("u,v,label\n0.5,,0\n")
    with pytest.raises(SveError, match="Row 1 of .* 'v' .* missing"):
        read_foreign(tmp_path / "a.csv", ["u", "v"])
    with pytest.raises(SveError, match="no column 'w'"):
        read_foreign(tmp_path / "a.csv", ["u", "w"])
    with pytest.raises(SveError, match="no single column"):
        read_foreign(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("header", "labels", "expected"),
    [
        ("1,0", ["0", "1", "0"], [1, 0, 1]),  # names, though each is a number of a class too
        ("3,8", ["8", "3", ""], [1, 0, -1]),
        ("true,false", ["true", "false", "true"], [0, 1, 0]),
        ("cat,dog", ["1", "0", "-1"], [1, 0, -1]),
        ("cat,dog", ["dog", "1.0", "NA"], [1, 1, -1]),
        ("-1,1", ["-1", "1", "-1"], [0, 1, 0]),
    ],
)
def test_labels_are_names_where_they_can_be(tmp_path: Path, header: str, labels: list[str], expected: list[int]) -> None:
    rows = [f"0.3,0.7,{label}" for label in labels]
    (tmp_path / "a.csv").write_text(f"{header},label\n" + "\n".join(rows) + "\n")
    assert open_predictions(tmp_path / "a.csv", header.split(","))[0].labels_N.tolist() == expected


def test_numbers_are_numbers_of_classes_where_they_can_be(tmp_path: Path) -> None:
    for classes, labels, expected in (
        (["1", "0"], np.array([0, 1]), [0, 1]), (["3", "8"], np.array([3, 8]), [0, 1]),
        (["a", "b"], np.array([False, True]), [0, 1]),
        (["True", "False"], np.array([False, True]), [1, 0]), (["a", "b"], np.array([-1.0, 1.0]), [-1, 1]),
    ):  # fmt: skip
        np.savez(tmp_path / "a.npz", probs=[[0.3, 0.7]] * 2, labels=labels, classes=classes)
        assert open_predictions(tmp_path / "a.npz")[0].labels_N.tolist() == expected, (classes, labels)
    for wrong in ("\N{SUPERSCRIPT TWO}", "--1", "2", "1.5"):
        (tmp_path / "b.csv").write_text(f"cat,dog,label\n0.3,0.7,{wrong}\n", encoding="utf-8")
        with pytest.raises(SveError, match="which is none of its 2 classes"):
            open_predictions(tmp_path / "b.csv", ["cat", "dog"])


def test_log_probabilities_below_the_smallest_float_count_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", log_probs=[[-200.0, 0.0], [np.log(0.25), np.log(0.75)]], labels=[0, 1])
    found = aggregate(open_predictions(tmp_path / "a.npz")[0])
    np.testing.assert_allclose(-found.log_label_N, [200.0, -np.log(0.75)], rtol=1e-6)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", probs=np.full((500, 4), 0.25), labels=[0] * 500)
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    start = raw.index(b"probs.npy") + len(b"probs.npy") + 30
    raw[start : start + 20] = bytes(255 - b for b in raw[start : start + 20])
    (tmp_path / "a.npz").write_bytes(bytes(raw))
    with pytest.raises(SveError, match="Cannot read"):
        open_predictions(tmp_path / "a.npz")


def test_probabilities_that_are_stated_as_equal_stay_equal(tmp_path: Path) -> None:
    rest = np.array([[0.4, 0.0, 0.0], [0.3, 0.1, 0.0], [0.2, 0.1, 0.1], [0.13, 0.13, 0.14], [0.39, 0.005, 0.005]])
    probs = np.concatenate([np.full((5, 1), 0.6), rest], axis=1)
    np.savez(tmp_path / "a.npz", probs=probs, labels=[0, 0, 0, 1, 1])
    np.savez(tmp_path / "o.npz", probs=probs[::-1].copy(), labels=[-1] * 5)
    found, other = read_foreign(tmp_path / "a.npz")[0], read_foreign(tmp_path / "o.npz")[0]
    view = aggregate(found)
    assert set(view.confidence_N) == {0.6}, "one value, which lies on the edge of two of 15 bins"
    assert METRICS.resolve("ece_top1_w15").compute(view) == pytest.approx(0.0, abs=1e-12)
    scores = [OOD_SCORES.resolve("max_probability")().score(side) for side in (found, other)]
    assert auroc_ood(*scores) == 0.5 and len(set(np.concatenate(scores))) == 1
