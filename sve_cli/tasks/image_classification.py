"""One label for an image, through the checkpoint's own transform.

Shapes: N samples, B batch, C channels, H height, W width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import Compose, Normalize

from sve_cli.backbone import Inputs
from sve_cli.samples import Samples, decode_image
from sve_cli.tasks.common import Encoded, Task, require_modality

CACHE_BYTES = 4 * 2**30  # decoded images are kept as uint8 up to this size


class DecodedImages(Encoded):
    """Images resized and cropped once to uint8 (exact: the transform works on 8-bit images), normalised per batch."""

    def __init__(self, samples: Samples, transform: Compose, augment: str) -> None:
        self.labels_N = samples.labels_N
        self.samples = samples
        steps = list(transform.transforms)
        if not isinstance(steps[-1], Normalize):
            steps.append(Normalize([0.0] * 3, [1.0] * 3))
        self.geometry = Compose(steps[:-1])
        self.mean = torch.as_tensor(steps[-1].mean).reshape(1, -1, 1, 1).float()
        self.std = torch.as_tensor(steps[-1].std).reshape(1, -1, 1, 1).float()
        self.augment = augment
        self.augments = augment != "none"
        self.cache: Tensor | None = None
        self.cached_N = np.zeros(len(samples), dtype=bool)

    def batch(self, rows_B: np.ndarray, generator: torch.Generator | None = None) -> Inputs:
        pixels = self._pixels(rows_B).float().div_(255)
        if generator is not None and self.augment != "none":
            pixels = _augment(pixels, self.augment, generator)
        return {"image": (pixels - self.mean) / self.std}

    def _pixels(self, rows_B: np.ndarray) -> Tensor:
        if self.cache is None:
            first = self._decode(int(rows_B[0]))
            if first.numel() * len(self) > CACHE_BYTES:
                return torch.stack([self._decode(int(i)) for i in rows_B])
            self.cache = torch.zeros((len(self), *first.shape), dtype=torch.uint8)
        for i in np.unique(rows_B[~self.cached_N[rows_B]]):
            self.cache[i] = self._decode(int(i))
            self.cached_N[i] = True
        return self.cache[torch.from_numpy(np.ascontiguousarray(rows_B))]

    def _decode(self, row: int) -> Tensor:
        scaled: Tensor = self.geometry(decode_image(self.samples.inputs["image"][row]))
        return (scaled * 255).round().to(torch.uint8)


def _augment(pixels: Tensor, augment: str, generator: torch.Generator) -> Tensor:
    flips = torch.rand(len(pixels), generator=generator) < 0.5
    pixels = torch.where(flips.reshape(-1, 1, 1, 1), pixels.flip(-1), pixels)
    if augment == "crop_flip":
        side = pixels.shape[-1]
        margin = max(side // 8, 1)
        padded = torch.nn.functional.pad(pixels, [margin] * 4, mode="reflect")
        offsets = torch.randint(0, 2 * margin + 1, (len(pixels), 2), generator=generator).tolist()
        pixels = torch.stack([p[:, y : y + pixels.shape[-2], x : x + side] for p, (y, x) in zip(padded, offsets, strict=True)])
    return pixels


class ImageClassification(Task):
    """One label for an image."""

    modality = "image"

    def encode(self, samples: Samples, augment: str = "none") -> Encoded:
        require_modality(samples, self.modality)
        return DecodedImages(samples, self.backbone.transform, augment)
