"""Encoding of texts, pairs and images against the libraries' own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from sve_cli.errors import DataError
from sve_cli.samples import Samples, decode_image
from sve_cli.tasks import image_classification


def as_pairs(samples: Samples) -> Samples:
    return replace(samples, inputs={**samples.inputs, "text_pair": samples.inputs["text"][::-1]})


@pytest.mark.parametrize("pairs", [False, True])
def test_texts_are_encoded_as_the_tokenizer_does(lab: Any, pairs: bool) -> None:
    backbone = lab.backbone("bert")
    samples = lab.samples("bert", 6, 0)
    samples = as_pairs(samples) if pairs else samples
    rows = np.array([4, 0, 5])
    texts = [[samples.inputs[k][i] for i in rows] for k in samples.inputs]
    expected = backbone.transform(*texts, padding=True, return_tensors="pt")
    inputs = lab.task("bert", backbone).encode(samples).batch(rows)
    assert torch.equal(inputs["input_ids"], expected["input_ids"])
    assert torch.equal(inputs["attention_mask"], expected["attention_mask"])
    assert ("token_type_ids" in inputs) is pairs
    if pairs:
        assert torch.equal(inputs["token_type_ids"], expected["token_type_ids"])
        assert int(inputs["token_type_ids"].max()) == 1
    model = AutoModelForSequenceClassification.from_pretrained(lab.root / "bert").eval()
    with torch.no_grad():
        plain, ours = model(**expected).logits, backbone.features(backbone.network, inputs)
    head = backbone.head
    torch.testing.assert_close(ours @ head.weight_CF.T + head.bias_C, plain, atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut_and_counted(lab: Any) -> None:
    samples = lab.samples("bert", 3, 0)
    inputs = {"text": ["the sky", "the " * 6, "the " * 7]}  # with start and end: 4, 8 and 9 tokens
    encoded = lab.task("bert", lab.backbone("bert", max_length=8)).encode(replace(samples, inputs=inputs))
    assert encoded.n_shortened == 1
    assert encoded.lengths_N.tolist() == [4, 8, 8]
    assert lab.backbone("bert", max_length=500).max_length() == 64  # the network has no more positions
    empty = lab.task("bert", lab.backbone("bert")).encode(replace(samples, inputs={"text": ["", "a", "b"]}))
    assert empty.batch(np.arange(3))["input_ids"].shape == (3, 3)


def test_images_are_the_librarys_transform_to_the_bit(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = lab.backbone("vit")
    samples = lab.samples("vit", 5, 0)
    expected = torch.stack([backbone.transform(decode_image(i)) for i in samples.inputs["image"]])
    assert expected.shape == (5, 3, 32, 32)
    encoded = lab.task("vit", backbone).encode(samples)
    rows = np.array([3, 1, 3])
    for _ in range(2):  # decoded, then from the cache
        assert torch.equal(encoded.batch(rows)["image"], expected[rows])
    assert encoded.cached_N.tolist() == [False, True, False, True, False]
    assert encoded.cache.dtype == torch.uint8
    monkeypatch.setattr(image_classification, "CACHE_BYTES", 10)
    uncached = lab.task("vit", backbone).encode(samples)
    assert torch.equal(uncached.batch(rows)["image"], expected[rows])
    assert uncached.cache is None


@pytest.mark.parametrize("augment", ["flip", "crop_flip"])
def test_augmentation_is_drawn_from_the_given_generator_only(lab: Any, augment: str) -> None:
    backbone = lab.backbone("vit")
    samples, rows = lab.samples("vit", 16, 0), np.arange(16)
    encoded = lab.task("vit", backbone).encode(samples, augment)
    plain = encoded.batch(rows)["image"]
    drawn = [encoded.batch(rows, torch.Generator().manual_seed(s))["image"] for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == plain.shape
    if augment == "flip":
        flipped = [torch.equal(d, p.flip(-1)) for d, p in zip(drawn[0], plain, strict=True)]
        kept = [torch.equal(d, p) for d, p in zip(drawn[0], plain, strict=True)]
        assert all(a != b for a, b in zip(flipped, kept, strict=True))
        assert 0 < sum(flipped) < 16
    none = lab.task("vit", backbone).encode(samples)
    assert torch.equal(none.batch(rows, torch.Generator())["image"], plain)


def test_other_kinds_are_refused(lab: Any) -> None:
    with pytest.raises(DataError, match="holds image inputs, but this task reads text"):
        lab.task("bert", lab.backbone("bert")).encode(lab.samples("vit", 3, 0))
    with pytest.raises(DataError, match="holds text inputs, but this task reads image"):
        lab.task("vit", lab.backbone("vit")).encode(lab.samples("bert", 3, 0))
