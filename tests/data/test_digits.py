"""The set and the network inside the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits as sklearn_digits
from sklearn.linear_model import LogisticRegression

import sve_cli
from sve_cli.data import Samples, decode_image, load_data, load_samples
from sve_cli.data.digits import load_digits
from sve_cli.errors import DataError
from sve_cli.recipe.spec import DataSpec

ASSETS = Path(sve_cli.__file__).parent / "assets"
VIT = ASSETS / "digits_vit"
KNOWN = [str(i) for i in range(8)]


def test_splits_hold_every_image_once_and_pixels_are_those_of_scikit_learn() -> None:
    data = load_data(DataSpec("digits"), "image", seed=0)
    parts = [part for part in (data.train, data.validation, data.test) if part is not None]
    assert [len(part) for part in parts] == [900, 300, 597] and data.notes == []
    ids = [int(name.removeprefix("digits-")) for part in parts for name in part.ids_N]
    assert sorted(ids) == list(range(1797))
    source = sklearn_digits()
    pixels = np.stack([np.asarray(decode_image(item))[:, :, 0] for part in parts for item in part.inputs["image"]])
    np.testing.assert_array_equal(np.round(pixels / 255 * 16), source.images[ids])
    np.testing.assert_array_equal(np.concatenate([part.labels_N for part in parts]), source.target[ids])
    assert (ASSETS / "digits" / "ATTRIBUTION.md").is_file()


def test_eights_and_nines_are_out_of_distribution() -> None:
    spec = DataSpec("digits", classes=KNOWN, ood=["digits:ood"])
    data = load_data(spec, "image", seed=0)
    assert data.test is not None and data.test.classes == KNOWN
    ood = load_samples("digits:ood", spec, "image")
    assert len(ood) == int((sklearn_digits().target >= 8).sum()) == 354
    assert set(ood.labels_N.tolist()) == {-1} and ood.classes == KNOWN
    assert not set(ood.ids_N) & set(data.test.ids_N)
    with pytest.raises(DataError, match="no split 'x'"):
        load_digits("x")


def features(network: torch.nn.Module, samples: Samples) -> np.ndarray:
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    inputs = torch.stack([transform(decode_image(item)) for item in samples.inputs["image"]])
    with torch.inference_mode():
        return network.forward_head(network.forward_features(inputs), pre_logits=True).numpy()  # type: ignore[operator]


@pytest.mark.slow
def test_network_opens_with_plain_timm_and_beats_random_weights() -> None:
    assert sum(p.stat().st_size for p in VIT.iterdir()) <= 4 * 2**20 and (VIT / "README.md").is_file()
    data = load_data(DataSpec("digits", classes=KNOWN), "image", seed=0)
    assert data.train is not None and data.test is not None
    scores = {}
    for pretrained in (True, False):
        torch.manual_seed(0)
        network = timm.create_model(f"local-dir:{VIT}", pretrained=pretrained).eval()
        assert sum(p.numel() for p in network.parameters()) <= 1_200_000
        probe = LogisticRegression(max_iter=500).fit(features(network, data.train), data.train.labels_N)
        scores[pretrained] = probe.score(features(network, data.test), data.test.labels_N)
    assert scores[True] >= 0.93
    assert scores[False] <= scores[True] - 0.1


def test_input_size_in_the_config_is_the_network_s() -> None:
    config = json.loads((VIT / "config.json").read_text())
    network = timm.create_model(f"local-dir:{VIT}", pretrained=True)
    assert list(timm.data.resolve_model_data_config(network)["input_size"]) == config["pretrained_cfg"]["input_size"]
    assert network.num_features == config["num_features"] and len(config["label_names"]) == config["num_classes"] == 10
