"""Pretrain the network of the quickstart (sve_cli/assets/digits_vit) on MNIST made to look like the 8x8 digits.

Command: OMP_NUM_THREADS=1 python benchmarks/pretrain_digits_vit.py          (seed 0, 24 epochs: 8 minutes on one busy CPU thread)
Check only, without training: python benchmarks/pretrain_digits_vit.py --check
Reached: 97.6 % on the 1,000 MNIST images held out. Digits 0-7 (723 train, 479 test), one seed:
    linear probe 98.5 % (random weights 64.1 %); all weights fine-tuned 99.2 % (from random weights 92.9 %).
The digits are never trained on here; `check` fits a probe on their training split and reads the test split once.

Shapes: B batch, N samples, C channels, H height, W width, F features.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from sve_cli.data import Samples, decode_image, load_data, load_samples
from sve_cli.recipe.spec import DataSpec

FOLDER = Path(__file__).resolve().parents[1] / "sve_cli" / "assets" / "digits_vit"
SIDE, PATCH, WIDTH, DEPTH, HEADS = 24, 6, 96, 4, 4
CANVAS = 32  # MNIST is augmented at this size, then pooled to the digits' 8x8
DIGITS = [str(i) for i in range(10)]
PRETRAINED_CFG = {
    "tag": "digits_mnist",
    "custom_load": False,
    "input_size": [3, SIDE, SIDE],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "num_classes": 10,
    "pool_size": None,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
    "license": "cc-by-sa-3.0",
}
MODEL_ARGS: dict[str, Any] = {
    "img_size": [SIDE, SIDE],
    "patch_size": PATCH,
    "num_classes": 10,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "in_chans": 3,
    "global_pool": "token",
}


def canvas(image_HW: np.ndarray) -> np.ndarray:
    """One MNIST digit cut to its ink and scaled to the full height, as the UCI digits are; (32, 32) in 0 … 1."""
    rows, columns = np.flatnonzero(image_HW.any(axis=1)), np.flatnonzero(image_HW.any(axis=0))
    ink = torch.from_numpy(image_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255)
    width = max(1, min(CANVAS, round(ink.shape[1] * CANVAS / ink.shape[0])))
    scaled = F.interpolate(ink[None, None], (CANVAS, width), mode="bilinear", antialias=True)[0, 0]
    left = (CANVAS - width) // 2
    return F.pad(scaled, (left, CANVAS - width - left)).numpy()


def to_network(gray_B1HW: Tensor) -> Tensor:
    """8x8 in 17 grey levels, then up to the network's input, normalised: (B, 3, 24, 24)."""
    small = torch.round(F.adaptive_avg_pool2d(gray_B1HW, 8) * 16) / 16
    large = F.interpolate(small, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return ((large - 0.5) / 0.5).expand(-1, 3, -1, -1)


def augment(gray_B1HW: Tensor, generator: torch.Generator) -> Tensor:
    """Light affine maps and stronger ink: MNIST strokes are thinner than those of the UCI digits."""
    n = len(gray_B1HW)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle, shear = uniform(-0.2, 0.2), uniform(-0.2, 0.2)
    sx, sy = uniform(0.85, 1.2), uniform(0.92, 1.15)
    cos, sin = torch.cos(angle), torch.sin(angle)
    theta = torch.stack(
        [
            torch.stack([cos * sx, (shear * cos - sin) * sy, uniform(-0.12, 0.12)], dim=1),
            torch.stack([sin * sx, (shear * sin + cos) * sy, uniform(-0.08, 0.08)], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, list(gray_B1HW.shape), align_corners=False)
    moved = F.grid_sample(gray_B1HW, grid, align_corners=False)
    return (moved * uniform(1.0, 1.8)[:, None, None, None]).clamp(0, 1)


def build() -> nn.Module:
    """The network with random weights."""
    return timm.create_model("vit_tiny_patch16_224", **{**MODEL_ARGS, "img_size": SIDE})


def pretrain(data: Path, minutes: float, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """Train on nine tenths of MNIST's 10,000 test images; returns the network and its accuracy on the rest."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    samples = load_samples(f"{data}:test" if data.is_dir() else str(data), DataSpec(str(data)), "image")
    images_N1HW = torch.from_numpy(np.stack([canvas(np.asarray(decode_image(i))[:, :, 0]) for i in samples.inputs["image"]]))
    images_N1HW = images_N1HW[:, None]
    labels_N = torch.from_numpy(samples.labels_N)
    n_train, batch = len(labels_N) * 9 // 10, 128
    network = build().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    steps, step, start = epochs * (n_train // batch), 0, time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(n_train, generator=generator)
        for rows in order[: n_train // batch * batch].split(batch):
            share = step / steps
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, share / 0.1, 0.01 + 0.5 * (1 + math.cos(math.pi * share)))
            logits = network(to_network(augment(images_N1HW[rows], generator)))
            loss = F.cross_entropy(logits, labels_N[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        spent = (time.monotonic() - start) / 60
        sys.stderr.write(f"epoch {epoch + 1}/{epochs} loss {loss.item():.3f}, {spent:.1f} min\n")
        if spent > minutes:
            raise SystemExit(f"Slower than {minutes} minutes: the schedule would be cut short; use fewer --epochs.")
    network.eval()
    with torch.inference_mode():
        guess = network(to_network(images_N1HW[n_train:])).argmax(dim=1)
    return network, float((guess == labels_N[n_train:]).float().mean())


def save(network: nn.Module, folder: Path) -> None:
    """Write a timm local folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes files only their owner can read
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 10,
        "num_features": WIDTH,
        "global_pool": "token",
        "label_names": DIGITS,
        "model_args": MODEL_ARGS,
        "pretrained_cfg": PRETRAINED_CFG,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def tensors(samples: Samples, network: nn.Module) -> Tensor:
    """The images as timm's own evaluation transform makes them, (N, 3, 24, 24)."""
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    return torch.stack([transform(decode_image(item)) for item in samples.inputs["image"]])


def linear_probe(network: nn.Module, train: Samples, test: Samples) -> float:
    """Test accuracy of a logistic regression on the frozen features."""
    with torch.inference_mode():
        train_NF, test_NF = (
            network.forward_head(network.forward_features(tensors(s, network)), pre_logits=True).numpy()  # type: ignore[operator]
            for s in (train, test)
        )
    probe = LogisticRegression(C=1.0, max_iter=2000).fit(train_NF, train.labels_N)
    return float(probe.score(test_NF, test.labels_N))


def fine_tune(network: nn.Module, train: Samples, test: Samples, epochs: int = 20, seed: int = 0) -> float:
    """Test accuracy after training all weights with a new head."""
    torch.manual_seed(seed)
    network.reset_classifier(len(train.classes))  # type: ignore[operator]
    x, y = tensors(train, network), torch.from_numpy(train.labels_N)
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=3e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, total_steps=epochs * -(-len(y) // 32))
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        return float((network.eval()(tensors(test, network)).argmax(dim=1).numpy() == test.labels_N).mean())


def check(folder: Path) -> dict[str, float]:
    """Digits 0-7: probe and fine-tuning, from the pretrained and from random weights."""
    data = load_data(DataSpec("digits", classes=DIGITS[:8]), "image", seed=0)
    assert data.train is not None and data.test is not None
    result: dict[str, float] = {}
    for name, pretrained in (("pretrained", True), ("random", False)):
        torch.manual_seed(0)
        network = timm.create_model(f"local-dir:{folder}", pretrained=pretrained).eval()
        result[f"{name}_linear_probe"] = linear_probe(network, data.train, data.test)
        result[f"{name}_fine_tuned"] = fine_tune(network, data.train, data.test)
    return result


def main() -> None:
    """Pretrain, save, check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SVE_DATA_DIR", ".")) / "mnist_ood")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--minutes", type=float, default=15.0, help="give up when slower")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="only score what is in --out")
    options = parser.parse_args()
    result: dict[str, float] = {}
    if not options.check:
        network, result["mnist_held_out"] = pretrain(options.data, options.minutes, options.epochs, options.seed)
        save(network, options.out)
    result |= check(options.out)
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in result.items()}) + "\n")


if __name__ == "__main__":
    main()
