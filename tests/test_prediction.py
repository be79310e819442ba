"""The inference loop: order, batch size and members do not change what a sample gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sve_cli.prediction import as_predictions, batches_by_length, predict, predict_logits


@pytest.mark.parametrize("network", ["vit", "bert", "bert_mean", "llama", "gpt2"])
@pytest.mark.parametrize("method", ["sve", "heads_only"])
def test_batch_size_and_padding_change_nothing(lab: Any, network: str, method: str) -> None:
    built = lab.build(network, method)
    built.fit()
    one, all_at_once = (predict_logits(built.ensemble, built.test, size)[0] for size in (1, 16))
    np.testing.assert_allclose(one, all_at_once, atol=2e-5)
    for row in (0, 7):  # rows go back to their places
        alone = built.ensemble(built.test.batch(np.array([row]))).logits_MBC[:, 0]
        np.testing.assert_allclose(all_at_once[:, row], alone.detach().numpy(), atol=3e-5)


def test_long_inputs_come_first_and_every_row_once(lab: Any) -> None:
    encoded = lab.build("bert").test
    batches = batches_by_length(encoded, 4)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(11))
    assert (np.diff(encoded.lengths_N[order]) <= 0).all()


def test_features_are_the_inputs_of_the_heads(lab: Any) -> None:
    for method in ("sve", "heads_only"):
        built = lab.build("bert", method)
        logits_MNC, features_MNF = predict_logits(built.ensemble, built.test, 4, keep_features=True)
        heads = built.ensemble.heads
        expected = torch.bmm(
            torch.from_numpy(features_MNF), heads.weight_MCF.detach().transpose(1, 2)
        ) + heads.bias_MC.detach().unsqueeze(1)
        np.testing.assert_allclose(logits_MNC, expected.numpy(), atol=1e-5)


def test_predicting_leaves_the_ensemble_as_it_was(lab: Any) -> None:
    built = lab.build("bert")
    seen: list[int] = []
    before = built.training_logits()
    predict_logits(built.ensemble, built.test, 4, progress=seen.append)
    assert seen[-1] == 33
    assert all(linear._merged is None for linear in built.ensemble.member_linears())
    assert torch.equal(built.training_logits(), before)


def test_an_interrupted_prediction_unmerges(lab: Any) -> None:
    built = lab.build("bert")

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_logits(built.ensemble, built.test, 4, progress=stop)
    assert all(linear._merged is None for linear in built.ensemble.member_linears())
    assert built.ensemble.context.merged is None


def test_predictions_carry_labels_ids_and_masks(lab: Any) -> None:
    built, samples = lab.build("llama"), lab.samples("llama", 11, 1)
    predictions = predict(built.ensemble, samples, built.test, 4, "digest")
    assert predictions.logits_MNC.shape == (3, 11, 5)
    assert predictions.ids_N == samples.ids_N
    assert (predictions.labels_N == samples.labels_N).all()
    assert predictions.mask_NC is not None
    assert [int(k) for k in predictions.mask_NC.sum(1)] == [len(c) for c in samples.inputs["choices"]]
    assert predictions.model_digest == "digest"
    again = as_predictions(predictions.logits_MNC, samples, built.test, built.task.classes, "")
    assert again.classes == list("ABCDE")
