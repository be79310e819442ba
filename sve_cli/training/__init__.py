"""The only optimisation loop, for every method."""

from __future__ import annotations

from sve_cli.training.dropout import member_dropout
from sve_cli.training.execution import check_all_called, mixing_layer, path_gap
from sve_cli.training.loop import Checkpointer, Fit, Log, Trainer, Validate
from sve_cli.training.objective import CrossEntropy, Objective
from sve_cli.training.schedule import epoch_batches, learning_rate_factor, mean_nll, precision_name, round_steps, training_precision

__all__ = [
    "Checkpointer",
    "CrossEntropy",
    "Fit",
    "Log",
    "Objective",
    "Trainer",
    "Validate",
    "check_all_called",
    "epoch_batches",
    "learning_rate_factor",
    "mean_nll",
    "member_dropout",
    "mixing_layer",
    "path_gap",
    "precision_name",
    "round_steps",
    "training_precision",
]
