"""Single sentences and sentence pairs."""

from __future__ import annotations

from itertools import chain

import numpy as np

from sve_cli.samples import Samples
from sve_cli.tasks.common import Encoded, Task, TokenisedText, require_modality


class TextClassification(Task):
    """One label for a text, or for a pair of texts."""

    modality = "text"

    def max_length(self) -> int:
        """Longest input in tokens: the recipe's, or the checkpoint's own limit, at most 512."""
        own = min(int(self.backbone.transform.model_max_length), 512)
        positions = getattr(self.backbone.network.config, "max_position_embeddings", None)  # type: ignore[union-attr]
        if isinstance(positions, int):
            own = min(own, positions)
        return min(self.backbone.spec.max_length or own, own)

    def encode(self, samples: Samples, augment: str = "none") -> Encoded:
        require_modality(samples, self.modality)
        tokenizer = self.backbone.transform
        texts = [str(t) for t in samples.inputs["text"]]
        pairs = [str(t) for t in samples.inputs["text_pair"]] if "text_pair" in samples.inputs else None
        limit = self.max_length()
        encoded = tokenizer(texts, pairs, truncation=True, max_length=limit, padding=False)
        ids = [t if t else [tokenizer.pad_token_id] for t in encoded["input_ids"]]
        split = TokenisedText(ids, samples.labels_N, tokenizer.pad_token_id)
        if "token_type_ids" in encoded and pairs is not None:
            split.types_flat = np.fromiter(chain.from_iterable(encoded["token_type_ids"]), dtype=np.int64)
        split.n_shortened = int((split.lengths_N == limit).sum()) if split.lengths_N is not None else 0
        return split
