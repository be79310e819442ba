"""What people hand to `sve_cli.load(...).predict` -> samples.

Shapes: N samples.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sve_cli.errors import DataError
from sve_cli.predictions import UNKNOWN_LABEL
from sve_cli.samples import Samples, decode_image


def to_samples(inputs: Any, modality: str, pairs: bool) -> Samples:
    """Inputs as samples without labels; raises DataError as `LoadedEnsemble.samples`."""
    if isinstance(inputs, (str, bytes, Path, Image.Image, Mapping, np.ndarray)):
        inputs = [inputs]
    if not isinstance(inputs, Iterable):
        raise DataError(f"Inputs are a list, not a {type(inputs).__name__}.", "Give a list with at least one input.")
    given = list(inputs)
    if not given:
        raise DataError("There are no inputs.", "Give a list with at least one.")
    columns = {"text": _texts, "image": _images, "multiple_choice": _items}[modality](given, pairs)
    labels_N = np.full(len(given), UNKNOWN_LABEL, dtype=np.int64)
    ids = [str(i) for i in range(len(given))]
    return Samples("inputs", "", columns, labels_N, ids, [], modality=modality)  # type: ignore[arg-type]


def two_inputs(modality: str, pairs: bool) -> Samples:
    """Two fixed inputs that differ, texts in their length too: what a network does with the rows of a batch shows on them."""
    if modality == "image":
        pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        return to_samples(list(pixels), modality, pairs)
    texts = ["One text.", "Another text, which is longer than the first, so that the first is padded."]
    if modality == "multiple_choice":
        return to_samples([{"question": text, "choices": ["yes", "no"]} for text in texts], modality, pairs)
    return to_samples([(text, text) for text in texts] if pairs else texts, modality, pairs)


def _texts(given: list[Any], pairs: bool) -> dict[str, Sequence[Any]]:
    if pairs:
        if not all(isinstance(x, (tuple, list)) and len(x) == 2 and all(isinstance(t, str) for t in x) for x in given):
            raise DataError("This ensemble reads pairs of texts, and the inputs are not all pairs.", "Give tuples of two texts.")
        return {"text": [x[0] for x in given], "text_pair": [x[1] for x in given]}
    if wrong := [x for x in given if not isinstance(x, str)]:
        raise DataError(f"This ensemble reads texts, and an input is a {type(wrong[0]).__name__}.", "Give a list of strings.")
    return {"text": given}


def _images(given: list[Any], pairs: bool) -> dict[str, Sequence[Any]]:
    images: list[Any] = []
    for item in given:
        if isinstance(item, (str, Path)):
            path = Path(os.path.expanduser(item))  # pathlib's own fails where the home is nobody's
            if not path.is_file():
                raise DataError(f"There is no image '{path}'.", f"Paths start at the current folder, {Path.cwd()}.")
            images.append(path)
        elif isinstance(item, Image.Image):
            images.append(np.asarray(decode_image(item)))
        elif isinstance(item, (bytes, np.ndarray)):
            images.append(item)
        else:
            raise DataError(f"This ensemble reads images, and an input is a {type(item).__name__}.", "Give paths or PIL images.")
    return {"image": images}


def _items(given: list[Any], pairs: bool) -> dict[str, Sequence[Any]]:
    if not all(isinstance(x, Mapping) and isinstance(x.get("question"), str) and _are_options(x.get("choices")) for x in given):
        raise DataError("This ensemble answers questions with options.", 'Give {"question": "…", "choices": ["…", "…"]} for each.')
    contexts = [str(x.get("context") or "") for x in given]
    return {"question": [x["question"] for x in given], "choices": [list(x["choices"]) for x in given], "context": contexts}


def _are_options(choices: Any) -> bool:
    """Several texts; one text alone would be taken apart into its letters."""
    return isinstance(choices, (list, tuple)) and len(choices) > 1 and all(isinstance(choice, str) for choice in choices)
