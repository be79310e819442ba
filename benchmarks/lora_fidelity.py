"""What a LoRA adapter of each rank loses: `python -m benchmarks.lora_fidelity RUN [--rows 300] [--out FILE.json]`.

Every member of the run is cut at rank k as `sve export --to lora --rank k` cuts it, and compared with itself in full on the
same test samples; so is the ensemble of the cut members with the ensemble. Prints a Markdown table and writes JSON.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sve_cli.certify.certificate import distance, scores
from sve_cli.certify.live import Live
from sve_cli.ensemble import Ensemble
from sve_cli.export.lora_ranks import Directions, cut, member_directions, member_logits
from sve_cli.rundir import RunDir, read_json
from sve_cli.tasks.common import Encoded
from sve_cli.workflows.session import Silent, open_session, run_recipe

BATCH = 64


def measure(run: RunDir, rows: int) -> dict[str, Any]:
    """The table of a run, as JSON."""
    recipe = run_recipe(run)
    lock = read_json(run.path / "recipe.lock.json")
    session = open_session(recipe, Silent(), lock["limit"], need=("train", "validation", "test"))
    ensemble = session.load_run(run)
    samples = session.split("test")[0]
    chosen = samples.subset(np.unique(np.linspace(0, len(samples) - 1, min(rows, len(samples))).round().astype(np.int64)))
    encoded = session.task.encode(chosen)
    live = Live(ensemble, session.task, chosen)
    directions = [member_directions(ensemble, m) for m in range(ensemble.n_members)]
    networks = [ensemble.member_network(m) for m in range(ensemble.n_members)]
    full_MNC = np.stack([live.member(m) for m in range(ensemble.n_members)])
    largest = max(len(d.size_R) for d in directions[0].values())
    ladder = [0, *(2**i for i in range(largest.bit_length()) if 2**i < largest), largest]
    table = []
    for k in ladder:
        table.append(_row(ensemble, networks, directions, live, encoded, full_MNC, k))
        print(json.dumps(table[-1]), flush=True)
    return {
        "model": Path(recipe.model.name).name if Path(recipe.model.name).exists() else recipe.model.name,
        "data": recipe.data.name,
        "members": ensemble.n_members,
        "layers": len(directions[0]),
        "largest_rank": largest,
        "samples": len(chosen),
        "full": scores(live.predictions(full_MNC)),
        "ranks": table,
    }


def _row(
    ensemble: Ensemble,
    networks: list[nn.Module],
    directions: list[dict[str, Directions]],
    live: Live,
    encoded: Encoded,
    full_MNC: np.ndarray,
    k: int,
) -> dict[str, Any]:
    cut_MNC = np.stack([_cut(ensemble, networks[m], directions[m], encoded, m, k) for m in range(ensemble.n_members)])
    energy = [d.energy(k) for layers in directions for d in layers.values()]
    pairs = [(live.predictions(full[None]), live.predictions(cut[None])) for full, cut in zip(full_MNC, cut_MNC, strict=True)]
    apart = [distance(full, cut) for full, cut in pairs]
    changes = [{key: scores(cut)[key] - value for key, value in scores(full).items()} for full, cut in pairs]
    whole, whole_cut = live.predictions(full_MNC), live.predictions(cut_MNC)
    whole_kl, whole_agreement = distance(whole, whole_cut)
    before, after = scores(whole), scores(whole_cut)
    size = sum(min(k, len(d.size_R)) * sum(d.weight_OI.shape) for d in directions[0].values())
    return {
        "rank": k,
        "update_numbers": size,
        "energy_mean": float(np.mean(energy)),
        "energy_least": float(np.min(energy)),
        "max_logit_gap": float(np.abs(full_MNC - cut_MNC).max()),
        "mean_kl": float(np.mean([kl for kl, _ in apart])),
        "agreement": float(np.mean([same for _, same in apart])),
        "delta": {key: float(np.mean([c[key] for c in changes])) for key in changes[0]},
        "ensemble": {"mean_kl": whole_kl, "agreement": whole_agreement, "delta": {key: after[key] - before[key] for key in before}},
    }


def _cut(ensemble: Ensemble, network: nn.Module, directions: dict[str, Directions], encoded: Encoded, m: int, k: int) -> np.ndarray:
    rows = [np.arange(i, min(i + BATCH, len(encoded))) for i in range(0, len(encoded), BATCH)]
    cut(network, directions, dict.fromkeys(directions, k))
    parts = [member_logits(ensemble, m, network, encoded.batch(r)) for r in rows]
    return torch.cat(parts).float().cpu().numpy()


def to_markdown(found: dict[str, Any]) -> str:
    """The table of docs/export_lora.md."""
    lines = [
        "| rank | Σ Δσ² kept | largest logit gap | mean KL | same class | ΔNLL | ΔECE | ensemble ΔNLL | ensemble ΔECE |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["ranks"]:
        mine, whole = row["delta"], row["ensemble"]["delta"]
        cells = [str(row["rank"]), f"{row['energy_mean']:.1%}", f"{row['max_logit_gap']:.2g}", f"{row['mean_kl']:.1e}"]
        cells += [f"{row['agreement']:.1%}", *(f"{d[key]:+.4f}" for d in (mine, whole) for key in ("nll", "ece_top1_w15"))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = measure(RunDir.open(arguments.run), arguments.rows)
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(to_markdown(found))


if __name__ == "__main__":
    main()
