"""Predictions of the cells of `sve shift`: kept in files as soon as they are made, and read from there when they are there.

Shapes: M members, N samples, C classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from sve_cli.ensemble import Ensemble
from sve_cli.errors import SveError
from sve_cli.prediction import as_predictions, predict_logits
from sve_cli.predictions import Predictions
from sve_cli.samples import Samples
from sve_cli.workflows.session import Session, increments
from sve_cli.workflows.stored import slug

FORMAT = "sve-shift-cells/1"  # changes when a corruption is computed in another way


class Cells:
    """Predictions of one ensemble by cell. `made`, `kept`: how many were predicted now, and how many were there already."""

    def __init__(self, session: Session, ensemble: Ensemble, trained: str, root: Path) -> None:
        self.session, self.ensemble, self.trained, self.root = session, ensemble, trained, root
        self.made = self.kept = 0

    def key_of(self, *parts: object) -> str:
        """A short digest of `parts` and of what every prediction depends on."""
        recipe = self.session.recipe
        same = [FORMAT, self.trained, recipe.seed, recipe.evaluate.batch_size, self.session.device.type]
        return hashlib.sha256(json.dumps([*same, *parts], sort_keys=True).encode()).hexdigest()[:12]

    def predictions(
        self, name: str, clean: Samples, advance: Callable[..., None], made: Callable[[], Samples] | None = None, strength: str = ""
    ) -> Predictions:
        """The predictions of one cell.

        Args:
            name: the cell, for its file and the progress.
            clean: the samples it is made of.
            advance: progress in samples times members.
            made: gives its samples; None: they are the clean ones.
            strength: what `made` depends on beside `clean` and `name`.
        """
        stem = self.root / self.key_of(clean.fingerprint()) / f"{slug(name)}-{self.key_of(name, strength)[:6]}"
        if (kept := self._kept(stem)) is not None:
            self.kept += 1
            advance(len(clean) * self.ensemble.n_members, name)
            return kept
        samples = clean if made is None else made()
        encoded = self.session.task.encode(samples)
        onward = increments(advance)
        batch = self.session.recipe.evaluate.batch_size
        logits_MNC, _ = predict_logits(self.ensemble, encoded, batch, None, self.session.device, lambda done: onward(done, name))
        found = as_predictions(logits_MNC, samples, encoded, self.ensemble.classes, self.trained)
        _save(found, stem)
        self.made += 1
        return found

    def _kept(self, stem: Path) -> Predictions | None:
        """The predictions of a cell that was made before; None, after a warning, where they are damaged: they are made again."""
        if not stem.with_name(stem.name + ".safetensors").is_file():
            return None
        try:
            return Predictions.load(stem)
        except SveError as error:
            self.session.log.warn(f"{error.message} It is predicted again.")
            return None


def _save(predictions: Predictions, stem: Path) -> None:
    """Write both files of a cell under other names and rename them, the tensors last: where they are, the cell is whole.

    Raises:
        SveError: the disk refuses.
    """
    other = stem.with_name(f".{stem.name}.{os.getpid()}")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        predictions.save(other)
        for suffix in (".parquet", ".safetensors"):
            os.replace(other.with_name(other.name + suffix), stem.with_name(stem.name + suffix))
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = getattr(error, "strerror", None) or error
        raise SveError(f"Cannot write '{stem}' ({reason}).", "Check the disk, or choose another folder with --out.") from error
    finally:
        for left in stem.parent.glob(other.name + ".*"):
            left.unlink()
