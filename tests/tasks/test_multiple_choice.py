"""Prompts, padding, letters and masks of multiple choice.

Shapes: N items, C options, T tokens.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from sve_cli.backbone import load_backbone
from sve_cli.errors import CheckpointError, DataError
from sve_cli.prediction import as_predictions, predict_logits
from sve_cli.recipe.spec import ModelSpec, TaskSpec
from sve_cli.samples import Samples
from sve_cli.tasks.multiple_choice import MultipleChoice, fit_prompt, letter_tokens, prompt_text

LONG = "What color is the very very very very not so sky and the grass and the fire and so and so ?"


def items(questions: list[str], choices: list[list[str]]) -> Samples:
    n = len(questions)
    inputs: dict[str, Any] = {"question": questions, "choices": choices}
    return Samples("toy", "test", inputs, np.zeros(n, np.int64), [str(i) for i in range(n)], [], modality="multiple_choice")


def test_the_prompt_is_the_papers() -> None:
    expected = "Do it.\nQuestion: Why?\nChoices:\nA. x\nB. y\nAnswer:"
    assert prompt_text("Do it.", "", "Why?", ["x", "y"]) == expected
    assert prompt_text("Do it.", "Once.", "Why?", ["x", "y"]) == expected.replace("Question: Why?", "Question: Once.\nWhy?")


@pytest.mark.parametrize("network", ["llama", "gpt2"])
def test_padding_and_batches_change_nothing(lab: Any, network: str) -> None:
    backbone = lab.backbone(network)
    task = lab.task(network, backbone)
    samples = items([LONG, "What ?", "What is the sky ?"], [["red", "green"], ["red", "blue", "yes"], ["no"] * 5])
    model = AutoModelForCausalLM.from_pretrained(lab.root / network).eval()
    answers = []
    for side in ("left", "right"):
        backbone.transform.padding_side = side
        encoded = task.encode(samples)
        inputs = encoded.batch(np.arange(3))
        assert int(inputs["attention_mask"][1, 0 if side == "left" else -1]) == 0
        with torch.no_grad():
            answers.append(backbone.features(backbone.network, inputs))
    with torch.no_grad():
        for i in range(3):
            ids = encoded.batch(np.array([i]))["input_ids"]
            hidden = model.base_model(input_ids=ids).last_hidden_state[0, -1]
            for answer in answers:
                torch.testing.assert_close(answer[i], hidden, atol=1e-4, rtol=0)
            features = answers[0][i : i + 1] @ backbone.head.weight_CF.T
            torch.testing.assert_close(features[0], model(input_ids=ids).logits[0, -1, task.letter_ids], atol=1e-4, rtol=0)


def test_long_prompts_lose_the_left_of_the_question_and_keep_the_cue(lab: Any) -> None:
    backbone = lab.backbone("llama", max_length=24)
    task = lab.task("llama", backbone)
    choices = ["red", "green", "blue"]
    encoded = task.encode(items([LONG, "What ?"], [choices, choices]))
    tokenizer = backbone.transform
    assert encoded.n_shortened == 1
    ids = encoded.batch(np.array([0]))["input_ids"][0]
    words = tokenizer.convert_ids_to_tokens(ids)
    assert len(words) <= 24
    assert words[0] == "<s>"
    assert words[1:4] == ["Choose", "one", "."]
    assert words[-2:] == ["Answer", ":"]
    question = words[words.index("Question") + 2 : words.index("Choices")]
    assert question == LONG.split()[-len(question) :]
    assert len(question) >= 2
    longer = fit_prompt(tokenizer, "Choose one .", "the sky is red " * 20, "What ?", choices, 24)
    assert longer[1]
    assert tokenizer.convert_ids_to_tokens(longer[0])[-2:] == ["Answer", ":"]
    assert "What" in tokenizer.convert_ids_to_tokens(longer[0])


def test_options_that_alone_are_too_long_keep_start_and_end(lab: Any) -> None:
    tokenizer = lab.backbone("llama").transform
    ids, cut = fit_prompt(tokenizer, "Choose one .", "", "What ?", ["the sky is red and so"] * 5, 12)
    words = tokenizer.convert_ids_to_tokens(ids)
    assert cut
    assert len(words) == 12
    assert words[0] == "<s>"
    assert words[-2:] == ["Answer", ":"]


def test_letters_are_found_in_context(lab: Any) -> None:
    for network in ("llama", "gpt2"):  # ' A' is one token for the first, two for the second
        tokenizer = lab.backbone(network).transform
        ids, shown = letter_tokens(tokenizer, list("ABCDE"))
        assert tokenizer.convert_ids_to_tokens(ids) == list("ABCDE")
        assert "A='A'" in shown


@pytest.mark.parametrize("name", ["stories260k", "babyllama_tok105"])
def test_letters_of_real_tokenizers(name: str) -> None:
    root = os.environ.get("SVE_TEST_MODELS")
    if not root:
        pytest.skip("SVE_TEST_MODELS names no folder with real checkpoints.")
    backbone = load_backbone(ModelSpec(name=str(Path(root) / name)), "multiple_choice")
    task = MultipleChoice(TaskSpec(name="multiple_choice"), list("ABCD"), backbone)
    assert len(set(task.letter_ids)) == 4
    decoded = [backbone.transform.convert_ids_to_tokens(i).strip("▁Ġ ") for i in task.letter_ids]
    assert decoded == list("ABCD")
    assert "Letters are read as the tokens" in task.notes[-1]
    samples = items(["What is it ?", "Where does the big dog sleep at night ?"], [["a", "b", "c", "d"]] * 2)
    encoded = task.encode(samples)
    with torch.no_grad():
        together = backbone.features(backbone.network, encoded.batch(np.arange(2)))
        alone = torch.cat([backbone.features(backbone.network, encoded.batch(np.array([i]))) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_letters_of_several_tokens_are_refused(lab: Any) -> None:
    vocabulary = {c: i for i, c in enumerate(["<unk>", *"abcdefghijklmnopqrstuvwxyzABC"])}
    split = Tokenizer(models.WordLevel({**vocabulary, "Answer": 40}, unk_token="<unk>"))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CheckpointError, match="one token after 'Answer:'"):  # D and E are both unknown
        letter_tokens(PreTrainedTokenizerFast(tokenizer_object=split, unk_token="<unk>"), list("ABCDE"))
    pieces = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(CheckpointError, match="'AA', 'BB'"):
        letter_tokens(PreTrainedTokenizerFast(tokenizer_object=pieces), ["AA", "BB"])


def test_options_that_do_not_exist_get_no_probability_and_no_gradient(lab: Any) -> None:
    built = lab.build("llama")
    samples = lab.samples("llama", 11, 1)
    logits_MNC, _ = predict_logits(built.ensemble, built.test, 4)
    predictions = as_predictions(logits_MNC, samples, built.test, built.task.classes, "")
    assert predictions.mask_NC is not None
    assert not predictions.mask_NC.all()
    for row, choices in zip(predictions.mask_NC, samples.inputs["choices"], strict=True):
        assert row.tolist() == [k < len(choices) for k in range(5)]
    for smoothing in (0.0, 0.2):
        trained = lab.build("llama")
        rows = np.flatnonzero(trained.train.mask_NC.sum(1) == 3)
        before = trained.ensemble.state()["heads.weight_MCF"]
        trained.train = trained.task.encode(lab.samples("llama", 24, 0).subset(rows))
        after = trained.fit(label_smoothing=smoothing)["heads.weight_MCF"]
        assert torch.isfinite(after).all()
        assert torch.equal(after[:, 3:], before[:, 3:])
        assert not torch.equal(after[:, :3], before[:, :3])


def test_head_choices(lab: Any) -> None:
    backbone = lab.backbone("llama")
    auto = lab.task("llama", backbone, head="auto").make_heads(2, 0)
    assert not auto.trainable
    assert not any(p.requires_grad for p in auto.parameters())
    copies = lab.task("llama", backbone, head="checkpoint").make_heads(2, 0)
    assert copies.trainable
    assert torch.equal(copies.weight_MCF, auto.weight_MCF)
    fresh = lab.task("llama", backbone, head="new").make_heads(2, 0)
    assert not torch.equal(fresh.weight_MCF[0], fresh.weight_MCF[1])
    assert auto.bias_MC is copies.bias_MC is fresh.bias_MC is None


def test_wrong_kinds_are_refused(lab: Any) -> None:
    backbone = lab.backbone("llama")
    with pytest.raises(DataError, match="holds text inputs, but this task reads multiple_choice"):
        lab.task("llama", backbone).encode(lab.samples("bert", 3, 0))
    with pytest.raises(DataError, match="items with 5 options; this task was set up for 3"):
        lab.task("llama", backbone, classes=list("ABC")).encode(items(["What ?"], [["no"] * 5]))
    with pytest.raises(CheckpointError, match="needs a causal language model"):
        MultipleChoice(TaskSpec(name="multiple_choice"), [], lab.backbone("bert"))
