"""The real sets, where SVE_DATA_DIR points at them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from sve_cli.data import decode_image, load_data, load_samples
from sve_cli.recipe.spec import DataSpec, SplitSpec


def needs(name: str) -> None:
    folder = os.environ.get("SVE_DATA_DIR")
    if not folder or not (Path(folder) / name).is_dir():
        pytest.skip(f"SVE_DATA_DIR does not point at a folder that holds {name}.")


def test_clinc150() -> None:
    needs("clinc150")
    start = time.perf_counter()
    data = load_data(DataSpec("clinc150", slices=["domain"]), "text", seed=0)
    seconds = time.perf_counter() - start
    assert data.train is not None and data.validation is not None and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (15000, 3000, 4500)
    assert len(data.train.classes) == 150 and len(set(data.train.columns["domain"])) == 10
    assert np.bincount(data.train.labels_N).tolist() == [100] * 150 and data.notes == []
    oos = load_samples("clinc150:oos_test", DataSpec("clinc150"), "text")
    assert len(oos) == 1000 and set(oos.labels_N.tolist()) == {-1} and oos.split == "oos_test"
    assert seconds < 2.0  # 0.2 s alone; a loose bound for busy machines


def test_tiny_imagenet_grey_image_becomes_rgb() -> None:
    needs("tiny_imagenet")
    from io import BytesIO

    from PIL import Image

    spec = DataSpec("tiny_imagenet", splits=SplitSpec(validation=None, test="validation"))
    data = load_data(spec, "image", seed=0, need=("test",))
    assert data.test is not None and len(data.test) == 10000 and data.test.split == "validation"
    grey = next(i for i in data.test.inputs["image"] if Image.open(BytesIO(i)).mode == "L")
    assert decode_image(grey).mode == "RGB" and decode_image(grey).size == (64, 64)


def test_cifar10h_soft_labels() -> None:
    needs("cifar10h")
    data = load_data(DataSpec("cifar10h"), "image", seed=0, need=("test",))
    assert data.test is not None and data.test.soft_labels_NC is not None
    np.testing.assert_allclose(data.test.soft_labels_NC.sum(axis=1), 1.0, atol=1e-6)
    assert (data.test.soft_labels_NC.argmax(axis=1) == data.test.labels_N).mean() == pytest.approx(0.9921, abs=1e-3)
    two = load_data(DataSpec("cifar10h", classes=["dog", "cat"]), "image", seed=0, need=("test",)).test
    assert two is not None and two.soft_labels_NC is not None and len(two) == 2000
    assert (two.soft_labels_NC.argmax(axis=1) == two.labels_N).mean() > 0.97


def test_cifar10_train_is_read_without_decoding() -> None:
    needs("cifar10")
    start = time.perf_counter()
    data = load_data(DataSpec("cifar10"), "image", seed=0, need=("train", "validation"))
    seconds = time.perf_counter() - start
    assert data.train is not None and data.validation is not None and data.test is None
    assert (len(data.train), len(data.validation)) == (45000, 5000)
    assert np.bincount(data.validation.labels_N).tolist() == [500] * 10
    assert seconds < 3.0  # 0.5 s alone


def test_arc_easy_holds_out_a_tenth() -> None:
    needs("arc_easy")
    data = load_data(DataSpec("arc_easy"), "multiple_choice", seed=0)
    assert data.train is not None and data.validation is not None and data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (2026, 225, 2376)
    assert not set(data.train.ids_N) & set(data.validation.ids_N)
    assert data.train.ids_N[0].startswith("ARC-Easy-train") and "225 of 2251" in data.notes[0]
    assert all(0 <= y < len(c) for y, c in zip(data.test.labels_N, data.test.inputs["choices"], strict=True))
