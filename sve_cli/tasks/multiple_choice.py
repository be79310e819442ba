"""Multiple choice with a causal language model: the letter's logit at the last position of the prompt (METHOD, section 3).

Shapes: N items, C options (letters), T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sve_cli.backbone import Backbone
from sve_cli.backbone.causal_lm import CausalLM
from sve_cli.ensemble import MemberHeads
from sve_cli.errors import CheckpointError, DataError
from sve_cli.recipe.spec import TaskSpec
from sve_cli.samples import Samples
from sve_cli.tasks.common import Encoded, Task, TokenisedText, require_modality

LETTERS = "ABCDEFGHIJ"
CUE = "\nAnswer:"
LABEL_FORMS = (" {}", "{}")  # how a letter may follow the cue; the first that is one token for every letter is used


class MultipleChoice(Task):
    """Options are letters; items may have different numbers of them."""

    modality = "multiple_choice"

    def __init__(self, spec: TaskSpec, classes: list[str], backbone: Backbone) -> None:
        if not isinstance(backbone, CausalLM):
            raise CheckpointError("Multiple choice needs a causal language model.")
        letters = classes or list(LETTERS[:5])
        self.letter_ids, shown = letter_tokens(backbone.transform, letters)
        backbone.use_letters(self.letter_ids, letters)
        super().__init__(spec, letters, backbone)
        self.notes.append(f"Letters are read as the tokens {shown}.")
        self.causal = backbone

    @staticmethod
    def trains_heads(spec: TaskSpec) -> bool:
        """auto: the LM head as it is."""
        return spec.head != "auto"

    def make_heads(self, n_members: int, seed: int) -> MemberHeads:
        """auto: the frozen rows of the LM head; checkpoint: trained copies of them; new: new heads."""
        if not self.trains_heads(self.spec):
            assert self.causal.head is not None
            return MemberHeads([self.causal.head] * n_members, trainable=False)
        heads = super().make_heads(n_members, seed)
        if self.causal.head is not None and self.causal.head.bias_C is None:
            heads.bias_MC = None  # the LM head has no bias to put one in
        return heads

    def encode(self, samples: Samples, augment: str = "none") -> Encoded:
        require_modality(samples, self.modality)
        tokenizer = self.backbone.transform
        limit = self.max_length()
        n_options = np.array([len(c) for c in samples.inputs["choices"]])
        if n_options.max(initial=0) > len(self.classes):
            raise DataError(
                f"'{samples.dataset}' has items with {n_options.max()} options; this task was set up for {len(self.classes)}."
            )
        contexts = samples.inputs.get("context") or [""] * len(samples)
        prompts, shortened = [], 0
        for context, question, choices in zip(contexts, samples.inputs["question"], samples.inputs["choices"], strict=True):
            ids, cut = fit_prompt(
                tokenizer, self.spec.instruction, str(context or ""), str(question), [str(c) for c in choices], limit
            )
            prompts.append(ids)
            shortened += cut
        split = TokenisedText(prompts, samples.labels_N, tokenizer.pad_token_id, left=tokenizer.padding_side == "left")
        split.mask_NC = np.arange(len(self.classes))[None, :] < n_options[:, None]
        split.n_shortened = shortened
        return split

    def max_length(self) -> int:
        """Longest prompt in tokens."""
        from sve_cli.backbone.transformers_backbone import TransformersBackbone  # late: it imports transformers

        assert isinstance(self.backbone, TransformersBackbone)
        own = self.backbone.limit()
        return min(self.backbone.spec.max_length or min(own, 512), own)


def prompt_text(instruction: str, context: str, question: str, choices: list[str]) -> str:
    """The zero-shot prompt: instruction, question, one lettered option per line, cue."""
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    body = f"{context}\n{question}" if context else question
    return f"{instruction}\nQuestion: {body}\nChoices:\n{options}{CUE}"


def fit_prompt(
    tokenizer: Any, instruction: str, context: str, question: str, choices: list[str], limit: int
) -> tuple[list[int], bool]:
    """Token ids of the prompt, and whether it had to be shortened (from the left of the question, never the cue)."""
    ids: list[int] = tokenizer(prompt_text(instruction, context, question, choices))["input_ids"]
    if len(ids) <= limit:
        return ids, False
    words = f"{context}\n{question}".split() if context else question.split()
    low, high = 0, len(words)  # the smallest number of dropped words that fits
    while low < high:
        middle = (low + high) // 2
        trial = tokenizer(prompt_text(instruction, "", " ".join(words[middle:]), choices))["input_ids"]
        low, high = (low, middle) if len(trial) <= limit else (middle + 1, high)
    ids = tokenizer(prompt_text(instruction, "", " ".join(words[low:]), choices))["input_ids"]
    if len(ids) > limit:  # even without its question: keep the start token and the end, where options and cue are
        start = ids[:1] if ids[0] == tokenizer.bos_token_id else []
        ids = start + ids[len(ids) - limit + len(start) :]
    return ids, True


def letter_tokens(tokenizer: Any, letters: list[str]) -> tuple[list[int], str]:
    """One token per letter, found in context: tokens(prompt + label) minus tokens(prompt).

    Raises:
        CheckpointError: no way of writing the letters gives one distinct token each, the same in every context.
    """
    contexts = [prompt_text("Answer.", "", question, ["yes", "no it is not"]) for question in ("Is it?", "What is 2 + 2 ?", "x")]
    offending: list[str] = []
    for form in LABEL_FORMS:
        found: list[set[tuple[int, ...]]] = [set() for _ in letters]
        for prompt in contexts:
            base = tokenizer(prompt)["input_ids"]
            for k, letter in enumerate(letters):
                full = tokenizer(prompt + form.format(letter))["input_ids"]
                found[k].add(tuple(full[len(base) :]) if full[: len(base)] == base else ())
        single = [next(iter(s)) for s in found if len(s) == 1 and len(next(iter(s))) == 1]
        if len(single) == len(letters) and len(set(single)) == len(letters):
            ids = [t[0] for t in single]
            shown = ", ".join(f"{letter}={tokenizer.convert_ids_to_tokens(i)!r}" for letter, i in zip(letters, ids, strict=True))
            return ids, shown
        several = [letter for letter, s in zip(letters, found, strict=True) if len(s) != 1 or len(next(iter(s))) != 1]
        offending += [repr(form.format(letter)) for letter in several]
    raise CheckpointError(
        f"This tokenizer does not give every letter one token after '{CUE.strip()}': {', '.join(offending[:6])}.",
        "Use a checkpoint whose tokenizer has single capital letters as tokens (LLaMA, Qwen, GPT-2).",
    )
