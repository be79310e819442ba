"""Single sentences and sentence pairs."""

from __future__ import annotations

from itertools import chain

import numpy as np

from sve_cli.samples import Samples
from sve_cli.tasks.common import Encoded, Task, TokenisedText, require_modality


class TextClassification(Task):
    """One label for a text, or for a pair of texts."""

    modality = "text"

    def encode(self, samples: Samples, augment: str = "none") -> Encoded:
        require_modality(samples, self.modality)
        tokenizer = self.backbone.transform
        texts = [str(t) for t in samples.inputs["text"]]
        pairs = [str(t) for t in samples.inputs["text_pair"]] if "text_pair" in samples.inputs else None
        limit = self.backbone.max_length()  # type: ignore[attr-defined]  # texts are read by transformers networks only
        encoded = tokenizer(texts, pairs, truncation=True, max_length=limit, padding=False)
        ids = [t if t else [tokenizer.pad_token_id] for t in encoded["input_ids"]]
        left = self.backbone.pads_left()  # type: ignore[attr-defined]
        split = TokenisedText(ids, samples.labels_N, tokenizer.pad_token_id, left)
        if "token_type_ids" in encoded and pairs is not None:
            types = [t if t else [0] for t in encoded["token_type_ids"]]
            split.types_flat = np.fromiter(chain.from_iterable(types), dtype=np.int64)
        if encoded.encodings:  # fast tokenizers keep what they cut off
            split.n_shortened = sum(bool(e.overflowing) for e in encoded.encodings)
        else:
            split.n_shortened = sum(len(t) == limit for t in ids)
        return split
