"""Corruptions of images: stronger by severity, of any size, the same whatever the order, and each what its name says."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import convolve, gaussian_filter

from sve_cli.corruptions import CorruptedImages, ImageCorruption, corrupt, keyed_rng
from sve_cli.corruptions.base import SEVERITIES
from sve_cli.corruptions.fog import cloud
from sve_cli.corruptions.kernels import MANY, convolved, disk, streak
from sve_cli.errors import DataError
from sve_cli.registry import CORRUPTIONS
from sve_cli.samples import Samples

IMAGES: list[ImageCorruption] = [c for name in CORRUPTIONS if (c := CORRUPTIONS.resolve(name)).modality == "image"]
RANDOM = {"gaussian_noise", "shot_noise", "motion_blur", "fog", "snow"}
PLAIN = np.full((32, 32, 3), 128, dtype=np.uint8)


def photo(side: int, seed: int) -> np.ndarray:
    """Random shapes with edges and details, as a photograph has them."""
    rng = np.random.default_rng(seed)
    coarse, fine = (gaussian_filter(rng.normal(size=(side, side, 3)), (side / k, side / k, 0)) for k in (16, 64))
    return np.asarray(np.clip(120 + 45 * coarse / coarse.std() + 20 * fine / fine.std(), 0, 255).astype(np.uint8))


def samples(n: int, side: int = 32) -> Samples:
    images = {"image": [photo(side, i) for i in range(n)]}
    return Samples("toy", "test", images, np.arange(n) % 3, [f"id{i}" for i in range(n)], list("abc"), modality="image")


def one(name: str) -> ImageCorruption:
    found: ImageCorruption = CORRUPTIONS.resolve(name)
    return found


@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("corruption", IMAGES, ids=lambda c: c.name)
def test_every_severity_is_stronger_than_the_one_before(corruption: ImageCorruption, side: int) -> None:
    drawn = [photo(side, i) for i in range(8)]
    means = []
    for severity in SEVERITIES:
        changed = [corruption.corrupted(p, severity, keyed_rng(0, corruption.name, severity, i)) for i, p in enumerate(drawn)]
        means.append(np.mean([np.abs(a.astype(float) - b).mean() for a, b in zip(changed, drawn, strict=True)]))
    assert means[0] > 0.2 and all(np.diff(means) > 0), means
    assert means[-1] < 128  # it is still an image of the same thing


@pytest.mark.parametrize("corruption", IMAGES, ids=lambda c: c.name)
def test_images_of_any_size_stay_images(corruption: ImageCorruption) -> None:
    for shape in ((1, 1, 3), (8, 8, 3), (33, 20, 3), (20, 130, 3)):
        pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        before = pixels.copy()
        for fill in (pixels, np.zeros_like(pixels), np.full_like(pixels, 255)):
            changed = corruption.corrupted(fill, 5, keyed_rng(0, "any"))
            assert changed.dtype == np.uint8 and changed.shape == shape
        assert (pixels == before).all()  # a copy is corrupted, not the image


@pytest.mark.parametrize("corruption", IMAGES, ids=lambda c: c.name)
def test_draws_know_nothing_of_order_or_batch(corruption: ImageCorruption) -> None:
    whole = samples(4)
    made = corrupt(whole, corruption, 3, seed=7)
    part = corrupt(whole.subset(np.array([3, 1])), corruption, 3, seed=7)
    images = made.inputs["image"]
    assert isinstance(images, CorruptedImages) and len(images) == 4
    assert (part.inputs["image"][0] == images[3]).all() and (images[1] == part.inputs["image"][1]).all()
    assert [i.tobytes() for i in images[1:3]] == [images[1].tobytes(), images[2].tobytes()]
    assert (made.labels_N == whole.labels_N).all() and made.ids_N == whole.ids_N and made.classes == whole.classes
    other = corrupt(whole, corruption, 3, seed=8).inputs["image"]
    same = all((a == b).all() for a, b in zip(images, other, strict=True))
    assert same == (corruption.name not in RANDOM)
    twins = corrupt(replace(whole, inputs={"image": [whole.inputs["image"][0]] * 4}), corruption, 3, seed=7).inputs["image"]
    assert (twins[0] == twins[1]).all() == same  # each sample has its own draw


def test_noise_has_the_strength_it_says() -> None:
    grey = np.full((90, 90, 3), 128, dtype=np.uint8)
    noise = one("gaussian_noise").corrupted(grey, 2, keyed_rng(0)).astype(float) / 255 - 128 / 255
    assert noise.std() == pytest.approx(0.06, rel=0.03) and abs(noise.mean()) < 0.002
    shot = one("shot_noise").corrupted(grey, 3, keyed_rng(0)).astype(float) / 255
    assert shot.std() == pytest.approx(math.sqrt(128 / 255 / 100), rel=0.03) and shot.mean() == pytest.approx(128 / 255, abs=0.002)


def test_brightness_contrast_jpeg_and_pixels_by_hand() -> None:
    pixels = PLAIN.copy()
    pixels[:16] = (100, 50, 0)
    pixels[31, 31] = 0
    bright = one("brightness").corrupted(pixels, 5, keyed_rng(0))  # 0.3 more of V: 100 becomes 176.5, the others in proportion
    assert bright[0, 0].tolist() == [176, 88, 0] or bright[0, 0].tolist() == [177, 88, 0]
    assert bright[31, 31].tolist() == [76, 76, 76] or bright[31, 31].tolist() == [77, 77, 77]
    flat = one("contrast").corrupted(pixels, 5, keyed_rng(0)).astype(float)
    mean = pixels.reshape(-1, 3).mean(axis=0)
    assert np.abs(flat - ((pixels - mean) * 0.15 + mean)).max() <= 0.51
    stored = io.BytesIO()
    noisy = photo(32, 0)
    Image.fromarray(noisy).save(stored, "JPEG", quality=40)
    assert (one("jpeg").corrupted(noisy, 5, keyed_rng(0)) == np.asarray(Image.open(stored).convert("RGB"))).all()
    large = photo(96, 0)
    blocks = one("pixelate").corrupted(large, 5, keyed_rng(0))  # a quarter of the side: blocks of 4 x 4
    assert all((blocks[y : y + 4, x : x + 4] == blocks[y, x]).all() for y in range(0, 96, 4) for x in range(0, 96, 4))
    assert np.abs(blocks[0, 0] - large[:4, :4].reshape(-1, 3).mean(axis=0)).max() < 1  # Pillow rounds twice


@pytest.mark.parametrize("kernel", [disk(1.0, 0.4), disk(9.0, 0.5), streak(6.0, 2.0, 0.7)], ids=["small", "large", "streak"])
def test_blurs_are_convolutions_that_keep_the_light(kernel: np.ndarray) -> None:
    pixels = np.random.default_rng(0).random((30, 41, 3)).astype(np.float32)
    expected = np.stack([convolve(pixels[:, :, k].astype(float), kernel, mode="nearest") for k in range(3)], axis=2)
    assert kernel.sum() == pytest.approx(1.0)
    assert np.abs(convolved(pixels, kernel) - expected).max() < 1e-5
    assert (np.count_nonzero(kernel) > MANY) == (len(kernel) == len(disk(9.0, 0.5)))  # both ways are tried


def test_blurs_leave_a_plain_image_alone() -> None:
    for name in ("gaussian_blur", "defocus_blur", "motion_blur"):
        assert (one(name).corrupted(PLAIN, 5, keyed_rng(0)) == PLAIN).all()
        assert (one(name).corrupted(np.tile(PLAIN, (4, 4, 1)), 5, keyed_rng(0)) == 128).all()


def test_clouds_fill_their_range_and_details_shrink() -> None:
    heights = cloud((64, 64), 2.0, keyed_rng(0))
    assert heights.shape == (64, 64) and heights.min() == 0.0 and heights.max() == pytest.approx(1.0)

    def roughness(decay: float) -> float:
        made = cloud((64, 64), decay, keyed_rng(0))
        return float(np.abs(np.diff(made, axis=0)).mean() / made.std())

    assert roughness(3.0) < roughness(2.0) < roughness(1.4)


def test_lengths_grow_with_the_image() -> None:
    """A blur covers the same share of an image of 32 and of 64 pixels."""
    widths = []
    for side in (32, 64):
        line = np.zeros((side, side, 3), dtype=np.uint8)
        line[:, side // 2] = 255
        row = one("gaussian_blur").corrupted(line, 5, keyed_rng(0))[side // 2, :, 0].astype(float)
        place = np.arange(side) - side // 2
        widths.append(math.sqrt(float((row * place**2).sum() / row.sum())))
    assert widths[0] == pytest.approx(1.0, rel=0.1) and widths[1] == pytest.approx(2.0, rel=0.1)


def test_a_large_image_is_reduced_as_the_network_does_before_it_is_corrupted() -> None:
    made = corrupt(samples(1, 96), one("jpeg"), 1, 0, reduce=lambda image: image.resize((40, 40)))
    assert made.inputs["image"][0].shape == (40, 40, 3)


def test_texts_are_no_images() -> None:
    texts = Samples("toy", "test", {"text": ["a"]}, np.zeros(1, dtype=np.int64), ["0"], ["a", "b"])
    with pytest.raises(DataError, match="'fog' corrupts images, and 'toy' holds none"):
        corrupt(texts, one("fog"), 1, 0)
