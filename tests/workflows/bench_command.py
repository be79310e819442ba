"""The benchmark that the tests of `sve bench` share."""

from __future__ import annotations

# data.seed: with --limit, seeds would otherwise draw test rows of their own, and could not be paired.
SETTINGS = ["train.epochs=1", "train.batch_size=8", "train.precision=float32", "train.checkpoint_minutes=0", "data.seed=0",
            "evaluate.bootstrap=0", "method.members=2", "data.ood=[digits:ood]"]  # fmt: skip
LIMIT = ["--limit", "24"]
BENCH = ["bench", "quickstart", *SETTINGS, *LIMIT, "--methods", "sve,heads_only", "--seeds", "2", "--grid", "3", "--no-costs"]
