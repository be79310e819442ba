"""Blurs with a kernel of our own.

Shapes: H height, W width, K channels, S side of the kernel.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

LEAST = 1e-3  # weights below this, of a kernel whose largest is 1, are left out
MANY = 150  # from so many weights on, a Fourier transform is faster than adding shifted images


def disk(radius: float, soft: float) -> np.ndarray:
    """A disk (S, S) that sums to one, its edge softened by a Gaussian of `soft` pixels."""
    reach = math.ceil(radius + 3 * soft)
    place = np.arange(-reach, reach + 1)
    inside = (place[:, None] ** 2 + place[None, :] ** 2 <= radius**2).astype(np.float64)
    kernel = gaussian_filter(inside, soft, mode="constant", truncate=3.0)
    kernel = np.where(kernel < LEAST * kernel.max(), 0.0, kernel)
    return np.asarray(kernel / kernel.sum())


def streak(radius: float, spread: float, angle: float) -> np.ndarray:
    """A one-sided streak (S, S) that sums to one: half a Gaussian of `spread` pixels along `angle` (radians), cut at 2 radius."""
    reach = math.ceil(2 * radius) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for step in range(math.floor(2 * radius) + 1):
        weight = math.exp(-(step**2) / (2 * spread**2))
        y, x = reach + step * math.sin(angle), reach + step * math.cos(angle)
        top, left = math.floor(y), math.floor(x)
        for row, share_y in ((top, 1 - (y - top)), (top + 1, y - top)):  # spread over the four pixels it lies between
            for column, share_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                kernel[row, column] += weight * share_y * share_x
    kernel[kernel < LEAST] = 0.0
    return kernel / kernel.sum()


def convolved(pixels_HWK: np.ndarray, kernel_SS: np.ndarray) -> np.ndarray:
    """Every channel convolved with the kernel; beyond the border the image goes on with its outermost pixels."""
    margin = kernel_SS.shape[0] // 2
    height, width = pixels_HWK.shape[:2]
    wide = np.pad(pixels_HWK, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    if np.count_nonzero(kernel_SS) > MANY:
        return np.asarray(fftconvolve(wide, kernel_SS[:, :, None].astype(np.float32), mode="valid", axes=(0, 1)))
    total, part = np.zeros_like(pixels_HWK), np.empty_like(pixels_HWK)
    for row, column in np.argwhere(kernel_SS):
        y, x = 2 * margin - row, 2 * margin - column
        total += np.multiply(wide[y : y + height, x : x + width], np.float32(kernel_SS[row, column]), out=part)
    return total
