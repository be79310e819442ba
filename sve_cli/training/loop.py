"""The only optimisation loop, for every method.

Loss: the sum over members of each member's own mean loss (`objective.py`; cross-entropy unless told otherwise), gradients
clipped per member, so that a member takes the step it would take alone, whatever M is, where members share no parameters
(the gradient of shared ones counts in every member's norm). Every random draw is keyed by (seed, purpose, member, epoch).
Shapes: M members, B batch, N samples, C classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from sve_cli.allocator import kept_pages
from sve_cli.ensemble import Ensemble, ParameterGroup, Round, keyed_generator
from sve_cli.errors import DivergenceError
from sve_cli.recipe.spec import TrainSpec
from sve_cli.tasks.common import Encoded, tensor_to
from sve_cli.training.dropout import member_dropout
from sve_cli.training.execution import check_all_called, runnable
from sve_cli.training.meter import Meter
from sve_cli.training.objective import CrossEntropy, Objective
from sve_cli.training.prefix import Prefix, prefix_of
from sve_cli.training.recompute import recomputed
from sve_cli.training.schedule import epoch_batches, learning_rate_factor, precision_name, round_steps, training_precision
from sve_cli.training.update import clip_members, decay_members

Validate = Callable[[Sequence[int]], np.ndarray]  # members -> validation logits (M, N, C)


class Log(Protocol):
    """Where the loop reports to."""

    def step(self, done: int, total: int, text: str) -> None:
        """Progress after an optimiser step."""

    def epoch(self, record: dict[str, Any]) -> None:
        """One line of the history."""

    def warn(self, text: str) -> None:
        """Something the user should know."""


@dataclass
class Checkpointer:
    """How the loop saves and restores itself; `save(tensors, meta)` must be atomic."""

    save: Callable[[dict[str, Tensor], dict[str, Any]], None]
    loaded: tuple[dict[str, Tensor], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Fit:
    """What training leaves behind besides the ensemble's state. `dtype`: what the network's products ran in; None: heads only."""

    seconds: float
    steps: int
    samples_per_second: float
    best: list[dict[str, Any]]
    meter: Meter
    dtype: torch.dtype | None = None


class Trainer:
    """One call of `fit`: the state that a checkpoint holds and the steps that change it."""

    def __init__(
        self,
        ensemble: Ensemble,
        train: Encoded,
        validation: Encoded | None,
        validate: Validate,
        spec: TrainSpec,
        lr: float,
        seed: int,
        log: Log,
        checkpointer: Checkpointer,
        features: Callable[[], np.ndarray] | None = None,
        objective: Objective | None = None,
    ) -> None:
        """`features`: makes the training split's features once, (N, F) or each member's own (M, N, F), when only heads train.

        `objective`: what is minimised; None: the cross-entropy to the labels.
        """
        self.ensemble, self.train, self.validation, self.validate = ensemble, train, validation, validate
        self.spec, self.lr, self.seed, self.log, self.checkpointer = spec, lr, seed, log, checkpointer
        self.features, self.features_MNF = features, cast("Tensor | None", None)
        self.prefix: Prefix | None = None
        self.device = next(ensemble.network.parameters()).device
        self.dtype = training_precision(spec, self.device, ensemble.backbone.network)
        self.objective = objective or CrossEntropy(train, validation, spec, len(ensemble.classes), self.device)
        self.batches_per_epoch = math.ceil(len(train) / spec.batch_size)
        self.rounds = ensemble.rounds()
        self.total_steps = sum(self._steps_of(r) for r in self.rounds)
        self.done_steps = 0
        self.started = self.last_save = time.monotonic()
        self.seconds_before = 0.0  # of the processes that this one goes on from, up to their checkpoint
        self.finished: list[dict[str, Any]] = []
        self.meter = Meter()

    def fit(self) -> Fit:
        """Run all rounds. Restores from a checkpoint first when there is one."""
        self.started = time.monotonic()
        with kept_pages():
            return self._fit()

    def _fit(self) -> Fit:
        resume = self._restore()
        self._settle(resume)
        self.prefix = self.frozen_prefix()
        first_step = self.done_steps
        for number, r in enumerate(self.rounds):
            if number < resume.get("round", 0):
                continue
            self._round(number, r, resume if number == resume.get("round") else {})
        seconds = time.monotonic() - self.started
        passes = sum(self._steps_of(r) * len(r.members) for r in self.rounds) / max(self.total_steps, 1)  # members a step
        rate = (self.done_steps - first_step) * self.spec.batch_size * passes / max(seconds, 1e-9)
        dtype = self.dtype if self.features is None else None
        return Fit(self.seconds_before + seconds, self.done_steps, rate, self.finished, self.meter, dtype)

    def frozen_prefix(self, fill: bool = True) -> Prefix | None:
        """The store of what the frozen first blocks give (`prefix_of`).

        Raises:
            SveError: `train.prefix_cache_mb` asks for one that cannot be.
        """
        if self.features is not None or not self.total_steps:
            return None
        return prefix_of(self.ensemble, self.train, self.spec, self.dtype, self.device, self.log.warn, fill)

    def _settle(self, begun: dict[str, Any]) -> None:
        """Members run one after another where the network cannot compute them in one pass; a resumed run goes on as it began."""
        if begun:
            self.spec = replace(self.spec, **{k: begun[k] for k in ("member_execution", "precision") if k in begun})
            self.dtype = training_precision(self.spec, self.device, self.ensemble.backbone.network)
        elif self.features is None and self.total_steps:
            self.spec = runnable(self.spec, self.ensemble, self.train, self.device, self.log.warn)

    def _steps_of(self, r: Round) -> int:
        return round_steps(self.spec, r, self.batches_per_epoch)

    def dry_step(self) -> None:
        """Forward and backward of the first batch without changing anything.

        Raises:
            DivergenceError: the loss is not finite.
            CheckpointError: a target layer is never called by the network.
        """
        self._settle({})
        r = self.rounds[0]
        self.ensemble.set_training(True)
        loss_M = torch.zeros(len(r.members))
        for members, part, start, _ in self._passes(r, [b[0] for b in self._batches(r, self.seed, 0)]):
            if start == 0:  # as much at once as in a step
                own_M = self._loss(members, part, (0, 0, 0))
                own_M.sum().backward()
                loss_M[[r.members.index(m) for m in members]] = own_M.detach().cpu()
        for parameter in self.ensemble.trainable().values():
            parameter.grad = None
        check_all_called(self.ensemble)
        if not torch.isfinite(loss_M).all():
            raise DivergenceError(
                "The loss of the first batch is not finite.", "Check the checkpoint, or use train.precision: float32."
            )

    def _round(self, number: int, r: Round, resume: dict[str, Any]) -> None:
        groups = [g for g in self.ensemble.groups if g.parameters]
        self.optimiser = torch.optim.AdamW(
            [{"params": list(g.parameters.values()), "lr": self._base_lr(g)} for g in groups],
            betas=(self.spec.betas[0], self.spec.betas[1]), weight_decay=0.0, fused=True,
        )  # fmt: skip
        total = self._steps_of(r)
        epochs = math.ceil(total / self.batches_per_epoch)
        if r.init_from is not None and not resume:
            for member in r.members:
                self.ensemble.copy_member(r.init_from, member)
        self.best: dict[str, Any] = resume.get("best") or {self.objective.selects: None, "epoch": None}
        self._keep_best(r)
        if resume:
            self._restore_optimiser()
        self.round_done = resume.get("round_done", 0)
        self.loss_sum_M = np.array(resume.get("loss_sum", [0.0] * len(r.members)))
        for epoch in range(resume.get("epoch", 0), epochs):
            self._epoch(number, r, epoch, total)
        self.ensemble.on_progress(1.0)
        if self.spec.select == "validation_nll" and not r.keep_last and self.best[self.objective.selects] is not None:
            self.ensemble.load_trained(self.best_state, partial=True)
        self.finished.append({"round": number, **self.best})

    def _base_lr(self, group: ParameterGroup) -> float:
        if group.role == "head":
            return self.spec.head_lr * group.lr_scale
        if group.role in ("bias", "norm"):
            return self.spec.bias_lr if self.spec.bias_lr is not None else self.lr / 10
        return self.lr * group.lr_scale

    def _epoch(self, number: int, r: Round, epoch: int, total: int) -> None:
        began = time.monotonic()
        batches = self._batches(r, self.seed + 7919 * number, epoch)
        start = self.round_done - epoch * self.batches_per_epoch
        steps = min(self.batches_per_epoch, total - epoch * self.batches_per_epoch)  # the last epoch of a cycle may be cut short
        for k in range(start, steps):
            with self.meter.step():
                losses_M = self._step(r, [b[k] for b in batches], total, (number, epoch, k))
            self.loss_sum_M += losses_M
            self.round_done += 1
            self.done_steps += 1
            if k == 0 and epoch == 0:
                check_all_called(self.ensemble)
            self.log.step(self.done_steps, self.total_steps, f"epoch {epoch + 1} loss {losses_M.mean():.3f}")
            minutes = (time.monotonic() - self.last_save) / 60
            if k + 1 < steps and minutes >= self.spec.checkpoint_minutes:
                self._save(number, epoch)
        record = {
            "round": number, "rounds": len(self.rounds), "epoch": epoch + 1, "step": self.done_steps,
            "train_loss": float(self.loss_sum_M.mean() / steps),
            "member_train_loss": [float(x / steps) for x in self.loss_sum_M],
            **self._validate(r),
            "seconds": round(time.monotonic() - began, 2),
        }  # fmt: skip
        self.loss_sum_M[:] = 0
        self._select(r, record)
        self.log.epoch(record)
        self._save(number, epoch + 1)

    def _step(self, r: Round, rows: list[np.ndarray], total: int, key: tuple[int, int, int]) -> np.ndarray:
        """One optimiser step; returns the members' mean losses."""
        self.ensemble.on_progress(self.round_done / total)
        factor = learning_rate_factor(self.round_done, total, self.spec, restart=r.init_from is not None)
        for group, g in zip(self.optimiser.param_groups, (g for g in self.ensemble.groups if g.parameters), strict=True):
            group["lr"] = self._base_lr(g) * factor
        if self.ensemble.dropout:  # what member_dropout does not take
            torch.manual_seed(keyed_generator(self.seed, "dropout", *key).initial_seed())
        self.ensemble.set_training(True)
        losses_M = np.zeros(len(r.members))
        for members, part, start, share in self._passes(r, rows):
            loss_M = self._loss(members, part, (*key, start))
            (loss_M.sum() * share).backward()
            losses_M[[r.members.index(m) for m in members]] += loss_M.detach().double().cpu().numpy() * share
        if not np.isfinite(losses_M).all():
            bad = r.members[int(np.flatnonzero(~np.isfinite(losses_M))[0])]
            raise DivergenceError(
                f"The loss of member {bad} is not finite at step {self.done_steps + 1}.", "Lower train.lr, or set train.clip: 1.0."
            )
        if self.spec.clip is not None:
            clip_members(self.ensemble, r.members, self.spec.clip)
        decay_members(self.ensemble, r.members, self.spec, self._base_lr, factor)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return losses_M

    def _batches(self, r: Round, seed: int, epoch: int) -> list[list[np.ndarray]]:
        """The rows of each batch of an epoch: for each member its own batches, or one list for all of them."""
        keys: list[int | str] = list(r.members) if self.ensemble.member_batches == "independent" else ["all"]
        return [epoch_batches(self.train, self.spec.batch_size, seed, k, epoch) for k in keys]

    def _passes(self, r: Round, rows: list[np.ndarray]) -> Iterator[tuple[tuple[int, ...], list[np.ndarray], int, float]]:
        """The passes of one step: their members, these members' rows, where in the batch they start, and their share of it."""
        size = len(rows[0])
        micro = math.ceil(size / self.spec.accumulation)
        for members in [r.members] if self.spec.member_execution == "batched" else [(m,) for m in r.members]:
            own = [rows[r.members.index(m)] for m in members] if len(rows) > 1 else rows
            for start in range(0, size, micro):
                part = [b[start : start + micro] for b in own]
                yield members, part, start, len(part[0]) / size

    def _loss(self, members: tuple[int, ...], part: list[np.ndarray], key: tuple[int, ...]) -> Tensor:
        """Each member's mean loss (M,)."""
        return self.objective.loss(self._logits(members, part, key).float(), part)

    def _logits(self, members: tuple[int, ...], part: list[np.ndarray], key: tuple[int, ...]) -> Tensor:
        """Logits (M, B, C) of these members, each on its own part of the rows, or all on the one part given."""
        stacked = np.concatenate(part)
        if self.features is not None:
            features_MNF = self._features()
            rows_MB = torch.from_numpy(stacked).reshape(len(part), -1)
            own_M1 = torch.tensor(members if len(features_MNF) > 1 else [0]).unsqueeze(1)
            return self.ensemble.heads(features_MNF[own_M1, rows_MB].expand(len(members), -1, -1), members)
        if self.train.augments:  # each member's own draw, whether members run batched or one by one
            names = members if len(part) > 1 or self.ensemble.member_batches == "independent" else ("all",)
            drawn = [self.train.batch(b, keyed_generator(self.seed, "augment", n, *key)) for b, n in zip(part, names, strict=True)]
            inputs = {k: torch.cat([d[k] for d in drawn]) for k in drawn[0]}
        else:
            inputs = self.train.batch(stacked)
        inputs = tensor_to(inputs, self.device)
        self.meter.count(inputs)
        per_member = len(part) > 1
        if per_member:
            inputs = {k: v.reshape(len(part), -1, *v.shape[1:]) for k, v in inputs.items()}
        save = self.spec.save_memory
        dropout = member_dropout(self.seed, members, key, save) if self.ensemble.dropout else nullcontext()
        again = recomputed(self.ensemble.network) if save else nullcontext()
        self.ensemble.context.draw = (self.seed, *key)
        copies = 1 if per_member or self.ensemble.shares_features else len(members)
        below = nullcontext() if self.prefix is None else self.prefix.given(stacked, inputs, copies)
        with dropout, below, again, torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits_MBC = self.ensemble(inputs, members, per_member=per_member).logits_MBC
        self.ensemble.context.draw = None
        return logits_MBC

    def _features(self) -> Tensor:
        assert self.features is not None
        if self.features_MNF is None:
            made = torch.from_numpy(self.features()).to(self.device)
            self.features_MNF = made.unsqueeze(0) if made.ndim == 2 else made  # (1, N, F): the same for every member
        return self.features_MNF

    def _validate(self, r: Round) -> dict[str, Any]:
        """What the objective says of the round's members on the validation rows, and their spread in Σ."""
        if self.validation is None:
            return {self.objective.selects: None}
        members = r.judged_by or r.members
        found = self.objective.validation(self.validate(members))
        if len(members) > 1 and found.get("disagreement") == 0.0 and self.spec.epochs:
            self.log.warn("The members agree on every validation sample: they may have collapsed (see docs/troubleshooting.md).")
        return {**found, "sigma_distance": self._spread(list(r.members))}

    def _spread(self, members: list[int]) -> float | None:
        """Mean distance between two members in Σ-space, relative to the mean distance from the checkpoint."""
        groups = (g for g in self.ensemble.groups if g.role == "sigma")
        sigma = [p.detach()[members].reshape(len(members), -1) for g in groups for p in g.parameters.values()]
        if not sigma or len(members) < 2:
            return None
        all_MR = torch.cat(sigma, dim=1)
        return float(torch.pdist(all_MR).mean() / all_MR.norm(dim=1).mean().clamp_min(1e-12))

    def _keep_best(self, r: Round) -> None:
        names = self.ensemble.touched(r.members)
        self.best_state = self.ensemble.state(names)

    def _select(self, r: Round, record: dict[str, Any]) -> None:
        key = self.objective.selects
        found = record[key]
        if found is not None and not math.isfinite(found):
            name = key.replace("validation_", "validation ").replace("nll", "NLL")
            raise DivergenceError(f"The {name} is not finite after epoch {record['epoch']}.", "Lower train.lr.")
        if found is not None and (self.best[key] is None or found < self.best[key]):
            self.best = {key: found, "epoch": record["epoch"]}
            self._keep_best(r)

    def _save(self, number: int, epoch: int) -> None:
        """Everything a resumed run needs to give the same result to the bit."""
        begun = tuple(m for r in self.rounds[: number + 1] for m in r.members)
        names = self.ensemble.touched(begun)  # members of later rounds are still as they were built
        tensors = {f"state/{n}": t for n, t in self.ensemble.state(names).items()}
        tensors |= {f"best/{n}": t for n, t in self.best_state.items()}
        for i, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{i}/{k}": v.clone() for k, v in state.items()}
        meta = {
            "round": number, "epoch": epoch, "round_done": self.round_done, "done_steps": self.done_steps,
            "loss_sum": self.loss_sum_M.tolist(), "best": self.best, "finished": self.finished,
            "member_execution": self.spec.member_execution, "precision": precision_name(self.dtype),
            "seconds": self.seconds_before + time.monotonic() - self.started,
        }  # fmt: skip
        self.checkpointer.save(tensors, meta)
        self.last_save = time.monotonic()

    def _restore(self) -> dict[str, Any]:
        if self.checkpointer.loaded is None:
            return {}
        tensors, meta = self.checkpointer.loaded
        saved = {n.removeprefix("state/"): t for n, t in tensors.items() if n.startswith("state/")}
        self.ensemble.load_trained(saved, partial=True)
        self.done_steps = meta["done_steps"]
        self.seconds_before = meta.get("seconds", 0.0)
        self.finished = meta["finished"]
        return meta

    def _restore_optimiser(self) -> None:
        assert self.checkpointer.loaded is not None
        tensors, _ = self.checkpointer.loaded
        self.best_state = {n.removeprefix("best/"): t for n, t in tensors.items() if n.startswith("best/")}
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser/"):
                _, index, key = name.split("/", 2)
                state.setdefault(int(index), {})[key] = tensor
        current = self.optimiser.state_dict()
        self.optimiser.load_state_dict({"state": state, "param_groups": current["param_groups"]})
