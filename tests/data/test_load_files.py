"""Local files of every format, and what goes wrong with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sve_cli.data import decode_image, limited, load_data, load_samples
from sve_cli.errors import DataError
from sve_cli.recipe.spec import DataSpec, SplitSpec
from sve_cli.samples import LazyImages

ROWS = [('good, "really"\nfine', "pos"), ("2024-01-01", "neg"), ("", "neg"), ("great", "pos")] * 10


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    columns = {"text": [r[0] for r in rows], "label": [r[1] for r in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": t, "label": y} for t, y in rows]), encoding="utf-8")
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        quoted = [mark.join('"' + v.replace('"', '""') + '"' for v in row) for row in rows]
        path.write_text("\n".join([mark.join(("text", "label")), *quoted]) + "\n", encoding="utf-8")


def splits(folder: Path, suffix: str = ".csv") -> str:
    for name in ("train", "validation", "test"):
        write(folder / f"{name}{suffix}", ROWS)
    return str(folder)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_samples(tmp_path: Path, suffix: str) -> None:
    data = load_data(DataSpec(splits(tmp_path, suffix)), "text", seed=0)
    assert data.train is not None and data.test is not None
    assert list(data.train.inputs["text"]) == [t for t, _ in ROWS]
    assert data.train.classes == ["neg", "pos"]
    assert data.train.labels_N.tolist() == [1, 0, 0, 1] * 10
    assert data.test.ids_N[:2] == ["test-0", "test-1"]
    assert data.notes == [f"{s}: 10 empty texts are kept." for s in ("train", "validation", "test")]


def test_one_file_is_a_training_split_and_other_files_can_be_named(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ROWS)
    write(tmp_path / "b.jsonl", ROWS[:4])
    spec = DataSpec(str(tmp_path / "a.csv"), splits=SplitSpec(validation=None, test=str(tmp_path / "b.jsonl")))
    data = load_data(spec, "text", seed=0)
    assert data.train is not None and data.validation is not None and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 4)
    assert len(load_samples(str(tmp_path / "b.jsonl"), spec, "text")) == 4


def test_a_single_file_has_no_test_split(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", ROWS)
    with pytest.raises(DataError, match="no test split.*data.splits.test"):
        load_data(DataSpec(str(tmp_path / "a.csv")), "text", seed=0)


def test_shards_are_joined_and_two_formats_of_a_split_are_refused(tmp_path: Path) -> None:
    splits(tmp_path, ".parquet")
    (tmp_path / "train.parquet").unlink()
    for i in range(2):
        write(tmp_path / f"train-0000{i}-of-00002.parquet", ROWS)
    data = load_data(DataSpec(str(tmp_path)), "text", seed=0)
    assert data.train is not None and len(data.train) == 2 * len(ROWS)
    write(tmp_path / "test.csv", ROWS)
    with pytest.raises(DataError, match="'test'.*more than once: test.csv, test.parquet"):
        load_data(DataSpec(str(tmp_path)), "text", seed=0)


def png(path: Path, gray: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 3), gray).save(path)


def test_image_folder_with_splits_and_without(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("test", 2)):
        for gray, name in ((0, "dark"), (255, "light")):
            for i in range(count):
                png(tmp_path / split / name / f"{i:02}.png", gray)
    data = load_data(DataSpec(str(tmp_path)), "image", seed=0)
    assert data.train is not None and data.validation is not None and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)
    assert data.test.classes == ["dark", "light"] and data.test.labels_N.tolist() == [0, 0, 1, 1]
    image = decode_image(data.test.inputs["image"][2])
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (255, 255, 255))
    unsplit = load_samples(str(tmp_path / "train"), DataSpec(str(tmp_path)), "image")
    assert len(unsplit) == 20 and unsplit.ids_N[0] == "test-0"
    flat = load_samples(str(tmp_path / "train" / "dark"), DataSpec(str(tmp_path)), "image", classes=["dark", "light"])
    assert len(flat) == 10 and set(flat.labels_N.tolist()) == {-1}


def test_images_in_deeper_folders_beside_classes_and_of_no_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, gray in (("cat", 10), ("dog", 200)):
            png(tmp_path / split / name / "images" / "0.png", gray)
            png(tmp_path / split / name / "1.png", gray)
        png(tmp_path / split / "montage.png", 7)
        png(tmp_path / split / "cat" / "._1.png", 7)  # what a file manager keeps beside a picture
        png(tmp_path / split / "cat" / ".thumbnails" / "1.png", 7)
        png(tmp_path / split / ".ipynb_checkpoints" / "1.png", 7)
    data = load_data(DataSpec(str(tmp_path), holdout=0.5), "image", seed=0)
    assert data.train is not None and data.validation is not None and data.test is not None
    assert data.test.classes == ["cat", "dog"] and data.test.labels_N.tolist() == [0, 0, 1, 1, -1]
    assert len(data.train) + len(data.validation) == 4
    assert "train: 1 rows without a label left out." in data.notes and "test: 1 of 5 rows have no label." in data.notes
    ood = load_samples(f"{tmp_path}:test", DataSpec("x"), "image")
    assert [Path(p).name for p in ood.inputs["image"]] == ["1.png", "0.png", "1.png", "0.png", "montage.png"]


def test_images_as_arrays_bytes_and_paths_have_equal_pixels(tmp_path: Path) -> None:
    png(tmp_path / "x.png", 7)
    encoded = (tmp_path / "x.png").read_bytes()
    pixels = np.full((3, 4), 7, dtype=np.uint8).tolist()
    stored = {"array": [pixels] * 2, "bytes": [encoded] * 2, "path": ["x.png"] * 2, "hf": [{"bytes": encoded, "path": None}] * 2}
    for name, column in stored.items():
        pq.write_table(pa.table({"image": column, "label": ["a", "b"]}), tmp_path / f"{name}.parquet")
        samples = load_samples(str(tmp_path / f"{name}.parquet"), DataSpec("x"), "image")
        assert np.asarray(decode_image(samples.inputs["image"][1])).tolist() == [[[7, 7, 7]] * 4] * 3, name


def test_images_of_several_chunks_keep_their_places() -> None:
    chunks = pa.chunked_array([[{"bytes": b"0", "path": None}, {"bytes": None, "path": "1"}], [], [{"bytes": b"2", "path": None}]])
    images = LazyImages(chunks, Path("root"))
    assert list(images) == [images[0], images[1], images[2]] == [b"0", Path("root/1"), b"2"]
    assert list(images.subset(np.array([2, 0]))) == [b"2", b"0"] and list(images[1:]) == [Path("root/1"), b"2"]


def test_csv_texts_that_look_like_numbers_or_dates_stay_as_written(tmp_path: Path) -> None:
    for texts in (["007", "1.50"], ["2024-01-01", "2024-01-02"], ["true", "false"]):
        (tmp_path / "x.csv").write_text("text,label\n" + "".join(f"{t},a\n" for t in texts))
        assert list(load_samples(str(tmp_path / "x.csv"), DataSpec("x"), "text").inputs["text"]) == texts


def test_broken_image_and_wrong_array_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 bytes"):
        decode_image(b"abc")
    with pytest.raises(DataError, match="no.png"):
        decode_image(tmp_path / "no.png")
    with pytest.raises(DataError, match="float32"):
        decode_image(np.zeros((2, 2), dtype=np.float32))


def test_missing_column_names_file_columns_key_and_nearest(tmp_path: Path) -> None:
    name = splits(tmp_path)
    with pytest.raises(DataError) as error:
        load_data(DataSpec(name, text="texts"), "text", seed=0)
    for part in ("train.csv", "'texts'", "text, label", "data.text", "Did you mean 'text'?"):
        assert part in str(error.value)
    with pytest.raises(DataError, match="data.label"):
        load_data(DataSpec(name, label="y"), "text", seed=0)
    with pytest.raises(DataError, match="data.slices"):
        load_data(DataSpec(name, slices=["domain"]), "text", seed=0)


def test_wrong_modality_names_both(tmp_path: Path) -> None:
    name = splits(tmp_path)
    with pytest.raises(DataError, match="asks for images, but .* holds text .*text_classification"):
        load_data(DataSpec(name), "image", seed=0)
    with pytest.raises(DataError, match="no path of an image"):
        load_data(DataSpec(name, image="text"), "image", seed=0)
    png(tmp_path / "pictures" / "a" / "0.png", 0)
    with pytest.raises(DataError, match="asks for text, but .* holds images"):
        load_samples(str(tmp_path / "pictures"), DataSpec(name), "text")


def test_label_unknown_to_train_is_an_error_in_the_own_set_and_minus_one_elsewhere(tmp_path: Path) -> None:
    name = splits(tmp_path)
    write(tmp_path / "test.csv", [*ROWS[:2], ("so so", "neutral")])
    with pytest.raises(DataError, match="'neutral'.*test.csv"):
        load_data(DataSpec(name), "text", seed=0)
    other = load_samples(f"{name}:test", DataSpec(name), "text", classes=["neg", "pos"])
    assert other.labels_N.tolist() == [1, 0, -1] and other.classes == ["neg", "pos"]


def test_need_test_alone_takes_the_classes_of_train(tmp_path: Path) -> None:
    name = splits(tmp_path)
    write(tmp_path / "test.csv", [("great", "pos")])
    data = load_data(DataSpec(name), "text", seed=0, need=("test",))
    assert data.train is None and data.test is not None
    assert data.test.classes == ["neg", "pos"] and data.test.labels_N.tolist() == [1]


def test_whole_numbers_are_classes_and_rows_without_label_leave_train(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [("a", "0"), ("b", "2"), ("c", ""), ("d", "-1"), ("e", "0")])
    text = (tmp_path / "train.csv").read_text().replace('"', "")
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.csv").write_text(text)
    data = load_data(DataSpec(str(tmp_path)), "text", seed=0)
    assert data.train is not None and data.test is not None
    assert data.train.classes == ["0", "1", "2"] and data.train.labels_N.tolist() == [0, 2, 0]
    assert data.train.ids_N == ["train-0", "train-1", "train-4"]
    assert data.test.labels_N.tolist() == [0, 2, -1, -1, 0]
    assert "train: 2 rows without a label left out." in data.notes
    assert "train has no sample of 1 classes: 1." in data.notes


def test_measurements_are_refused_as_labels(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "label": [0.5, 1.5]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match="double.*regression is not supported"):
        load_samples(str(tmp_path / "train.parquet"), DataSpec("x"), "text")


def test_classes_filter_order_and_unknown_name(tmp_path: Path) -> None:
    name = splits(tmp_path)
    for split in ("train", "validation", "test"):
        write(tmp_path / f"{split}.csv", [*ROWS, ("x", "other")])
    data = load_data(DataSpec(name, classes=["pos", "neg"]), "text", seed=0)
    assert data.test is not None
    assert data.test.labels_N.tolist() == [0, 1, 1, 0] * 10 and data.test.classes == ["pos", "neg"]
    assert "test: 1 rows of classes outside data.classes left out." in data.notes
    with pytest.raises(DataError, match="no class 'pso'.*Did you mean 'pos'"):
        load_data(DataSpec(name, classes=["pso", "neg"]), "text", seed=0)


def test_ids_come_from_the_column_unless_they_repeat(tmp_path: Path) -> None:
    for split, ids in (("train", ["x", "y"]), ("validation", ["z", "z"]), ("test", ["u", "v"])):
        pq.write_table(pa.table({"id": ids, "text": ["a", "b"], "label": ["p", "q"]}), tmp_path / f"{split}.parquet")
    data = load_data(DataSpec(str(tmp_path)), "text", seed=0)
    assert data.train is not None and data.validation is not None
    assert data.train.ids_N == ["x", "y"] and data.validation.ids_N == ["validation-0", "validation-1"]
    assert data.notes == ["validation: column 'id' is not unique; row numbers are used as ids."]


def test_holdout_is_stratified_disjoint_and_keyed_by_seed(tmp_path: Path) -> None:
    rows = [(f"t{i}", "rare" if i % 10 == 0 else "common") for i in range(200)]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "test.csv", rows)

    def held(seed: int, own: int | None = None) -> list[str]:
        data = load_data(DataSpec(str(tmp_path), holdout=0.2, seed=own), "text", seed=seed)
        assert data.train is not None and data.validation is not None
        assert np.bincount(data.validation.labels_N).tolist() == [36, 4]
        assert sorted(data.train.ids_N + data.validation.ids_N) == sorted(f"train-{i}" for i in range(200))
        assert "40 of 200 training rows held out" in data.notes[0]
        return data.validation.ids_N

    assert held(0) == held(0) == held(5, own=0) != held(1)


def test_limit_is_stratified_ordered_and_noted(tmp_path: Path) -> None:
    name = splits(tmp_path)
    data = load_data(DataSpec(name), "text", seed=3, limit=10)
    assert data.train is not None
    assert np.bincount(data.train.labels_N).tolist() == [5, 5]
    rows = [int(i.split("-")[1]) for i in data.train.ids_N]
    assert rows == sorted(rows) and len(set(rows)) == 10
    assert "train limited to 10 of 40 rows: numbers are not comparable with full runs." in data.notes
    whole = load_samples(f"{name}:train", DataSpec(name), "text")
    assert limited(whole, 10, seed=3).ids_N == data.train.ids_N and limited(whole, 99, seed=3) is whole


def test_data_limit_takes_training_rows_only(tmp_path: Path) -> None:
    name = splits(tmp_path)
    data = load_data(DataSpec(name, limit=10), "text", seed=3)
    whole = load_data(DataSpec(name), "text", seed=3)
    assert data.train is not None and data.test is not None and whole.test is not None
    assert np.bincount(data.train.labels_N).tolist() == [5, 5]
    assert data.test.ids_N == whole.test.ids_N
    assert "data.limit: 10 of 40 training rows are used." in data.notes


def test_a_split_used_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="uses 'validation' twice"):
        load_data(DataSpec(splits(tmp_path), splits=SplitSpec(test="validation")), "text", seed=0)


def test_one_file_under_two_names_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(splits(tmp_path))
    monkeypatch.chdir(folder.parent)
    test = f"./{folder.name}/test.csv"
    with pytest.raises(DataError, match="twice"):
        load_data(DataSpec(str(folder), splits=SplitSpec(validation=str(folder / "test.csv"), test=test)), "text", seed=0)
    with pytest.raises(DataError, match="twice"):  # a file is one split, whatever it is called
        alone = DataSpec(
            str(folder / "train.csv"), splits=SplitSpec(train="train", validation=None, test=f"{folder.name}/train.csv")
        )
        load_data(alone, "text", seed=0)
    other = DataSpec(str(folder), splits=SplitSpec(train="train", validation=None, test=test))
    found = load_data(other, "text", seed=0)
    assert found.train is not None and found.test is not None


def test_images_and_files_that_would_be_misread_are_a_sentence(tmp_path: Path) -> None:
    Image.fromarray(np.arange(0, 64000, 1000, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="more than 8 bits a channel"):
        decode_image(tmp_path / "deep.png")
    with pytest.raises(DataError, match="not whole numbers from 0 to 255"):
        LazyImages(pa.chunked_array([[[[0, 256]]]]), None)[0]
    own = replace(
        load_samples(f"{splits(tmp_path / 'set')}:train", DataSpec("x"), "text"), inputs={"image": [tmp_path / "gone.png"] * 40}
    )
    with pytest.raises(DataError, match="Cannot read .*gone.png"):
        own.fingerprint()
    for text in ('{"text": "a", "label": 99999999999999999999}\n', "[" * 100_000):
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(DataError, match="Cannot read"):
            load_samples(str(tmp_path / "bad.jsonl"), DataSpec("x"), "text")


def test_a_column_that_is_there_twice_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("text,text,label\na,b,0\nc,d,1\n")
    with pytest.raises(DataError, match="has 2 columns 'text'"):
        load_samples(str(tmp_path / "twice.csv"), DataSpec("x"), "text")


def test_columns_of_slices_are_asked_of_the_own_data_only(tmp_path: Path) -> None:
    write(tmp_path / "own.csv", ROWS)
    other = load_samples(str(tmp_path / "own.csv"), DataSpec("elsewhere", slices=["topic"]), "text")
    assert len(other) == len(ROWS) and other.columns == {}


def test_fingerprint_sees_labels_ids_and_inputs_but_not_the_format(tmp_path: Path) -> None:
    train, other = (
        load_samples(f"{splits(tmp_path / suffix[1:], suffix)}:train", DataSpec("x"), "text") for suffix in (".csv", ".parquet")
    )
    assert train.fingerprint() == other.fingerprint()
    assert replace(train, ids_N=[*train.ids_N[:-1], "other"]).fingerprint() != train.fingerprint()
    assert replace(train, labels_N=train.labels_N[::-1].copy()).fingerprint() == train.fingerprint()  # a palindrome
    assert replace(train, labels_N=1 - train.labels_N).fingerprint() != train.fingerprint()
    assert train.subset(np.arange(39)).fingerprint() != train.fingerprint()
    write(tmp_path / "csv" / "train.csv", [("changed", "pos"), *ROWS[1:]])
    assert load_samples(f"{tmp_path / 'csv'}:train", DataSpec("x"), "text").fingerprint() != train.fingerprint()


def test_subset_by_mask_and_by_order(tmp_path: Path) -> None:
    train = load_samples(f"{splits(tmp_path)}:train", DataSpec("x"), "text")
    mask = np.zeros(40, dtype=bool)
    mask[[1, 3]] = True
    assert train.subset(mask).ids_N == ["train-1", "train-3"]
    turned = train.subset(np.array([3, 1]))
    assert turned.ids_N == ["train-3", "train-1"] and list(turned.inputs["text"]) == ["great", "2024-01-01"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.csv", "text,label\na,b,c\n", "Cannot read"),
        ("bad.jsonl", '{"text": ', "Cannot read"),
        ("list.jsonl", "[1, 2]", "JSON objects"),
        ("bad.parquet", "PAR0", "Cannot read"),
        ("bad.xlsx", "x", "is not a .parquet"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        load_samples(str(tmp_path / name), DataSpec("x"), "text")
    assert name in str(error.value)


def test_empty_folder_and_missing_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data"):
        load_samples(str(tmp_path), DataSpec("x"), "text")
    with pytest.raises(DataError, match="no file or folder"):
        load_samples(str(tmp_path / "none.csv"), DataSpec("x"), "text")


def test_another_set_may_use_the_usual_column_names(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("text,label\nhello,a\nthere,b\n", encoding="utf-8")
    samples = load_samples(str(tmp_path / "other.csv"), DataSpec(name="mine", text="my sentence", text_pair="second"), "text")
    assert list(samples.inputs) == ["text"] and list(samples.inputs["text"]) == ["hello", "there"]
