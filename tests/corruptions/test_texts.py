"""Corruptions of texts: stronger by severity, never empty, the same whatever the order, and each what its name says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from sve_cli.corruptions import TextCorruption, corrupt, keyed_rng
from sve_cli.corruptions.base import SEVERITIES
from sve_cli.corruptions.keyboard import NEIGHBOURS
from sve_cli.registry import CORRUPTIONS
from sve_cli.samples import Samples

TEXTS: list[TextCorruption] = [c for name in CORRUPTIONS if (c := CORRUPTIONS.resolve(name)).modality == "text"]
TALK = "what is the balance of my savings account and could you move forty dollars to Checking please thank You"
WORDS = TALK.split()
AWKWARD = ["a", "I", "a b", "?!", "42", " x ", "zu\tspät\n", "日本語 テスト", "éa", "👍🏽", "A.", "aaaa", "", "  "]


def sentences(n: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 16))) for _ in range(n)]


def samples(texts: list[str], **more: list[str]) -> Samples:
    n = len(texts)
    return Samples("toy", "test", {"text": texts, **more}, np.arange(n) % 2, [f"id{i}" for i in range(n)], ["a", "b"])


def edits(a: str, b: str) -> int:
    """Characters left out, or else replaced: the edit distance of what these corruptions do."""
    return len(a) - len(b) if len(a) != len(b) else sum(x != y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("corruption", TEXTS, ids=lambda c: c.name)
def test_every_severity_is_stronger_than_the_one_before(corruption: TextCorruption) -> None:
    texts = sentences(100)
    means = []
    for severity in SEVERITIES:
        made = corrupt(samples(texts), corruption, severity, seed=0).inputs["text"]
        means.append(np.mean([edits(a, b) for a, b in zip(texts, made, strict=True)]))
    assert means[0] > 0.3 and all(np.diff(means) > 0), means


@pytest.mark.parametrize("corruption", TEXTS, ids=lambda c: c.name)
@pytest.mark.parametrize("severity", [1, 5])
def test_no_text_becomes_empty(corruption: TextCorruption, severity: int) -> None:
    for seed in range(20):
        made = corrupt(samples(AWKWARD), corruption, severity, seed).inputs["text"]
        assert [bool(text.strip()) for text in made] == [bool(text.strip()) for text in AWKWARD]


@pytest.mark.parametrize("corruption", TEXTS, ids=lambda c: c.name)
def test_draws_know_nothing_of_order_or_batch(corruption: TextCorruption) -> None:
    texts = sentences(12)
    whole = samples(texts, text_pair=texts)
    made = corrupt(whole, corruption, 4, seed=7)
    part = corrupt(whole.subset(np.array([9, 2])), corruption, 4, seed=7)
    assert part.inputs["text"] == [made.inputs["text"][9], made.inputs["text"][2]]
    assert made.inputs["text"] != made.inputs["text_pair"]  # two draws
    assert made.inputs["text"] != corrupt(whole, corruption, 4, seed=8).inputs["text"]
    assert (made.labels_N == whole.labels_N).all() and made.ids_N == whole.ids_N
    assert whole.inputs["text"] == texts
    assert len(set(corrupt(samples([TALK] * 5), corruption, 3, seed=0).inputs["text"])) > 1  # each sample has its own draw


def test_of_a_question_only_the_question_changes() -> None:
    inputs = {"question": ["which colour is the sky"], "choices": [["deep blue", "dark red"]], "context": ["some long context"]}
    asked = Samples("toy", "test", inputs, np.zeros(1, dtype=np.int64), ["0"], [], modality="multiple_choice")
    made = corrupt(asked, CORRUPTIONS.resolve("drop_letters"), 5, 0).inputs
    assert made["question"] != inputs["question"]
    assert made["choices"] == inputs["choices"] and made["context"] == inputs["context"]


def applied(name: str, severity: int) -> list[tuple[str, str]]:
    corruption: TextCorruption = CORRUPTIONS.resolve(name)
    return [(text, corruption.corrupted(text, severity, keyed_rng(0, i))) for i, text in enumerate(sentences(200))]


def share(pairs: list[tuple[int, int]]) -> float:
    return sum(touched for touched, _ in pairs) / sum(all_of_them for _, all_of_them in pairs)


def test_swaps_keep_every_letter_and_word_length() -> None:
    pairs = applied("swap_letters", 4)
    for before, after in pairs:
        for a, b in zip(before.split(" "), after.split(" "), strict=True):
            assert Counter(a) == Counter(b)
    moved = [(sum(x != y for x, y in zip(a, b, strict=True)), sum(map(str.isalpha, a))) for a, b in pairs]
    assert share(moved) == pytest.approx(0.20, abs=0.02)


def test_keys_are_neighbours_of_the_same_case() -> None:
    assert set(NEIGHBOURS["s"]) == set("awedzx") and set(NEIGHBOURS["q"]) == set("wa") and set(NEIGHBOURS["p"]) == set("ol")
    assert all(a in NEIGHBOURS[b] for a, near in NEIGHBOURS.items() for b in near) and len(NEIGHBOURS) == 26
    pairs = applied("keyboard", 3)
    for before, after in pairs:
        for x, y in zip(before, after, strict=True):
            assert x == y or (y.lower() in NEIGHBOURS[x.lower()] and x.isupper() == y.isupper())
    hit = [(sum(x != y for x, y in zip(a, b, strict=True)), sum(map(str.isalpha, a))) for a, b in pairs]
    assert share(hit) == pytest.approx(0.15, abs=0.01)


def test_what_is_dropped_is_gone_and_the_rest_stays_in_order() -> None:
    letters = applied("drop_letters", 5)
    assert all(_is_part(after, before) and after.count(" ") == before.count(" ") for before, after in letters)
    assert share([(len(a) - len(b), sum(map(str.isalpha, a))) for a, b in letters]) == pytest.approx(0.30, abs=0.01)
    words = applied("drop_words", 2)
    assert all(_is_part(after.split(), before.split()) for before, after in words)
    assert share([(len(a.split()) - len(b.split()), len(a.split())) for a, b in words]) == pytest.approx(0.20, abs=0.015)


def _is_part(short: str | list[str], long: str | list[str]) -> bool:
    rest = iter(long)
    return all(item in rest for item in short)


def test_case_changes_case_alone() -> None:
    assert all(after == before.upper() for before, after in applied("upper_case", 5))
    half = applied("upper_case", 2)
    assert all(b in (a, a.upper()) for before, after in half for a, b in zip(before.split(), after.split(), strict=True))
    mixed = applied("random_case", 3)
    assert all(after.lower() == before.lower() for before, after in mixed)
    turned = [(sum(x != y for x, y in zip(a, b, strict=True)), sum(map(str.isalpha, a))) for a, b in mixed]
    assert share(turned) == pytest.approx(0.30, abs=0.01)
