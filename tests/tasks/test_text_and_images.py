"""Encoding of texts, pairs and images against the libraries' own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, XLNetConfig, XLNetForSequenceClassification

from sve_cli.backbone import load_backbone
from sve_cli.errors import DataError
from sve_cli.recipe.spec import ModelSpec
from sve_cli.samples import Samples, decode_image
from sve_cli.tasks import image_classification
from tests.conftest import randomise, wordpiece


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


@pytest.mark.parametrize(
    ("summary", "side", "pooling", "left"),
    [
        ("last", "left", "native", True),
        ("first", "left", "native", False),
        ("last", "right", "native", False),
        ("last", "left", "cls", False),
    ],
)
def test_a_classifier_that_reads_the_last_position_gets_texts_padded_on_the_left(
    lab: Any, tmp_path: Path, summary: str, side: str, pooling: str, left: bool
) -> None:
    """XLNet as its authors saved it: what a text gives must not depend on the length of the others in its batch."""
    tokenizer = wordpiece()
    sizes = {"vocab_size": len(tokenizer), "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16, "pad_token_id": 0}
    network = XLNetForSequenceClassification(XLNetConfig(**sizes, summary_type=summary))
    randomise(network, 0)
    network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(ModelSpec(name=str(tmp_path), pooling=pooling), "text_classification")
    backbone.transform.padding_side = side
    encoded = lab.task("bert", backbone).encode(lab.samples("bert", 6, 0))
    rows = np.arange(6)
    assert bool(encoded.batch(rows)["attention_mask"][:, 0].all()) is not left
    if (summary, side) != ("last", "right"):  # which reads the padding in any library
        with torch.no_grad():
            alone = [backbone.features(backbone.network, encoded.batch(rows[i : i + 1]))[0] for i in rows]
            together = backbone.features(backbone.network, encoded.batch(rows))
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["Roberta", "MPNet", "Longformer", "Bert"])
def test_a_text_is_as_long_as_the_network_has_positions_for_its_tokens(lab: Any, tmp_path: Path, kind: str) -> None:
    """RoBERTa and its kin number positions from the padding's index + 1, so that two of 24 are no token's."""
    tokenizer = wordpiece()
    tokenizer.model_max_length = 10**30
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "attention_window": 8}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(tokenizer), max_position_embeddings=24, pad_token_id=0 if kind == "Bert" else 1, **sizes
    )
    getattr(transformers, f"{kind}ForSequenceClassification")(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(ModelSpec(name=str(tmp_path)), "text_classification")
    samples = lab.samples("bert", 2, 0)
    encoded = lab.task("bert", backbone).encode(replace(samples, inputs={"text": ["the " * 40, "the sky"]}))
    assert encoded.lengths_N.max() == backbone.max_length() == (24 if kind == "Bert" else 22)
    with torch.no_grad():
        assert backbone.features(backbone.network, encoded.batch(np.arange(2))).isfinite().all()


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
