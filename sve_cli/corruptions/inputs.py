"""Samples with corrupted inputs: labels, ids and everything else as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import overload

import numpy as np
from PIL import Image

from sve_cli.corruptions.base import Corruption, ImageCorruption, TextCorruption, keyed_rng
from sve_cli.errors import DataError
from sve_cli.samples import ImageItem, Samples, decode_image

# What an image is reduced to before it is corrupted; see `corrupt`.
Reduce = Callable[[Image.Image], Image.Image]
# The texts of a sample that are corrupted. The options and the context of a question stay: they are what is asked about.
TEXTS = ("text", "text_pair", "question")


class CorruptedImages(Sequence[np.ndarray]):
    """Images that are decoded and corrupted when they are asked for; an item is uint8 (H, W, 3)."""

    def __init__(
        self,
        images: Sequence[ImageItem],
        ids: Sequence[str],
        corruption: ImageCorruption,
        severity: int,
        seed: int,
        reduce: Reduce | None,
    ) -> None:
        self._images, self._ids = images, ids
        self._corruption, self._severity, self._seed, self._reduce = corruption, severity, seed, reduce

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image = decode_image(self._images[index])
        pixels = np.asarray(image if self._reduce is None else self._reduce(image))
        rng = keyed_rng(self._seed, self._corruption.name, self._severity, self._ids[index])
        return self._corruption.corrupted(pixels, self._severity, rng)


def corrupt(samples: Samples, corruption: Corruption, severity: int, seed: int, reduce: Reduce | None = None) -> Samples:
    """The samples under a corruption. Draws are keyed by (seed, corruption, severity, sample id).

    Args:
        severity: 1 to 5.
        reduce: for images: what the network does first with an image larger than it reads. A corruption of the pixels that
            vanish in it would be none.

    Raises:
        DataError: the samples are not what this corrupts.
    """
    inputs = dict(samples.inputs)
    names = [name for name in (("image",) if corruption.modality == "image" else TEXTS) if name in inputs]
    if not names:
        raise DataError(f"'{corruption.name}' corrupts {corruption.modality}s, and '{samples.dataset}' holds none.")
    for name in names:
        if isinstance(corruption, ImageCorruption):
            inputs[name] = CorruptedImages(inputs[name], samples.ids_N, corruption, severity, seed, reduce)
        elif isinstance(corruption, TextCorruption):
            inputs[name] = [
                corruption.corrupted(str(text), severity, keyed_rng(seed, corruption.name, severity, sample, name))
                for text, sample in zip(inputs[name], samples.ids_N, strict=True)
            ]
    return replace(samples, inputs=inputs)
