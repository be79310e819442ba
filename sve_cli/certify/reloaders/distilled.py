"""Reloader `distilled`: a checkpoint folder as `plain` opens it, with the log-precision of evidence.safetensors.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

LEAST_ENTROPY = 1e-3  # added to the entropy before its logarithm


def answer(folder: Path, asked: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Logits (N, C), log-precision, entropy and mutual information (N,), and what was found; prompts: the first two."""
    outputs, found = asked.reloader("plain").answer(folder, asked)
    evidence = load_file(folder / "evidence.safetensors")
    probs_NC = torch.softmax(outputs["logits"].double(), -1)
    entropy_N = torch.special.entr(probs_NC).sum(-1)
    log_precision_N = evidence["weight"].double() * (entropy_N + LEAST_ENTROPY).log() + evidence["bias"].double()
    outputs["log_precision"] = log_precision_N
    if asked.kind != "prompts":  # the options differ between prompts
        alpha_NC = probs_NC * log_precision_N.exp().unsqueeze(-1)
        expected_N = torch.digamma(alpha_NC.sum(-1) + 1) - (probs_NC * torch.digamma(alpha_NC + 1)).sum(-1)
        outputs["entropy"] = entropy_N
        outputs["mutual_information"] = (entropy_N - expected_N).clamp_min(0)
    return outputs, found
