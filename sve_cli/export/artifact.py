"""What an exporter gets, and what it writes: one folder per artifact, complete in itself, with a card.

Shapes: N samples, C classes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sve_cli.backbone import Inputs, Late, Writing
from sve_cli.certified import CARD
from sve_cli.ensemble import Ensemble, FactorSource
from sve_cli.errors import NotExportable
from sve_cli.export.card import card
from sve_cli.export.complete import require_complete
from sve_cli.recipe import Recipe

TOLERANCE = 1e-4  # largest logit gap in float32
TOLERANCE_BF16 = 2e-2  # against the same object with its parameters rounded to bfloat16
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # --dtype -> what parameters are rounded to

ROUNDED = (
    " Its parameters are rounded to bfloat16, half the size. What the rounding costs is below, computed in float32; computed in "
    "bfloat16, which is what transformers does with such a checkpoint unless told otherwise, single logits differ by more."
)

LiveOutputs = Callable[[Inputs], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Artifact:
    """One exported folder, and what it claims to be.

    Attributes:
        kind: the export target, as in `registry.EXPORTERS`.
        path: its folder.
        member: the member it claims to be; None: none in particular.
        loads_with: the public call that opens it.
        claim: which live object's answers it must give; a key of `certify.claims.CLAIMS`.
        reloader: what opens it in the fresh process; a file of `certify/reloaders/`.
        tolerance: largest |difference| of a logit (and of any other output) that is allowed.
        versus: what its scores are shown beside: "ensemble", "member".
        calibrated: of the ensemble it is shown beside: what logits are divided by, and how members are taken together, as
            `evaluate.aggregate`.
        facts: what the certificate should say besides; plain JSON values.
        live: claim "live" only: the live object itself, inputs -> outputs by name.
    """

    kind: str
    path: Path
    member: int | None
    loads_with: str
    claim: str = "member"
    reloader: str = "plain"
    tolerance: float = TOLERANCE
    versus: tuple[str, ...] = ()
    calibrated: tuple[float, str] = (1.0, "probs")
    facts: dict[str, Any] = field(default_factory=dict)
    live: LiveOutputs | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Options:
    """What `sve export` was told, beyond targets and members; a target reads what concerns it.

    Attributes:
        shard_size: largest size of a weight file in bytes; None: one file.
        with_basis: adapter only: store the factors too.
        dtype: merged and averaged only: what weights are stored as, a key of `DTYPES`.
        rank: lora only: K, energy:SHARE, fidelity:GAP, full or auto; see `export.lora_ranks`.
        serving_ranks: lora only: one rank for all layers, of those that serving engines take.
        graph_of: onnx and torch_export only: "ensemble", "averaged" or "members".
        distil_epochs, distil_lr: distilled only: of the student's training; None: see docs/distil.md.
        distil_rows: distilled only: most training inputs, drawn by the recipe's seed; None: all.
        unlabelled: distilled only: sets whose inputs are learnt from too.
        single: distilled only: a run whose figures stand beside.
    """

    shard_size: int | None = None
    with_basis: bool = False
    dtype: str = "float32"
    rank: str = "auto"
    serving_ranks: bool = False
    graph_of: str = "ensemble"
    distil_epochs: int | None = None
    distil_lr: float | None = None
    distil_rows: int | None = None
    unlabelled: tuple[str, ...] = ()
    single: Path | None = None


def averaging(how: str) -> str:
    """An ensemble's probability in words, by its `evaluate.aggregate`."""
    if how == "logits":
        return "the softmax of the members' mean logits"
    return "the mean of the members' probabilities" + ("" if how == "probs" else ", with fitted weights")


@dataclass(frozen=True)
class Source:
    """What an exporter works from.

    Attributes:
        ensemble: the trained ensemble.
        members: the members asked for, in order (targets that write one folder a member).
        options: see `Options`.
        recipe: of the run; None where there is none (a target that needs it says so).
        lock: the run's recipe.lock.json: digests of recipe, checkpoint and data.
        posthoc: the newest evaluation's fitted state as JSON text; "" where there is none.
        aggregate: how that evaluation takes the members together, as `evaluate.aggregate`.
        example: a few real inputs as the network gets them, for tracing and for measuring.
        factors: where decompositions come from, for a target that stores them.
        results: an artifact -> its scores on the test split for its card; None where they are not known.
        prepared: target -> what `workflows.export` made for it before (a distilled network, say).
    """

    ensemble: Ensemble
    members: tuple[int, ...]
    options: Options = field(default_factory=Options)
    recipe: Recipe | None = None
    lock: Mapping[str, Any] = field(default_factory=dict)
    posthoc: str = ""
    aggregate: str = "probs"
    example: Callable[[], Inputs] | None = None
    factors: FactorSource | None = None
    prepared: Mapping[str, Any] = field(default_factory=dict)
    results: Callable[[Artifact], Any] = lambda artifact: None

    def require_recipe(self, target: str) -> Recipe:
        """The run's recipe.

        Raises:
            NotExportable: there is none.
        """
        if self.recipe is None:
            raise NotExportable(f"The target {target} needs the recipe of a run.", "Export from a run's folder.")
        return self.recipe


@dataclass(frozen=True)
class Target:
    """An export target, as `registry.EXPORTERS` names it.

    Attributes:
        names: (members, options): the folders that `write` will make below the export's folder, known before any work; refuses
            options that mean nothing, and packages that are not installed.
        write: writes them and says what they claim to be; raises NotExportable where this ensemble has no such artifact.
        check: (folder, text): refuses a folder that lacks what its loader needs, before it is opened.
        per_member: whether it writes one folder for each member asked for.
        float32_because: why it stores nothing narrower, as a sentence that follows "The target … is float32 only: "; "": it does.
        entry: the file of a folder without which no loader opens it; `write` finds the folders made, and nothing else in them.
    """

    names: Callable[[Sequence[int], Options], list[str]]
    write: Callable[[Source, Path], list[Artifact]]
    check: Callable[[Path, bool], None] = require_complete
    per_member: bool = False
    float32_because: str = ""
    entry: str = "config.json"


def write_checkpoint(source: Source, make: Callable[[], nn.Module], artifact: Artifact, what: str) -> Artifact:
    """Write the plain network that `make` gives as a complete checkpoint, layer by layer, with its card.

    With --dtype bfloat16 it claims to be the rounded network, and is shown beside what it was rounded from.
    """
    ensemble, dtype = source.ensemble, DTYPES[source.options.dtype]
    if dtype is not None:
        artifact = replace(artifact, claim=f"{artifact.claim}_bf16", tolerance=TOLERANCE_BF16, facts={"dtype": "bfloat16"})
        artifact = replace(artifact, versus=artifact.versus or ("member",))
        what += ROUNDED
    late: Late = {}
    ensemble.late = late
    try:
        ensemble.backbone.save(make(), artifact.path, ensemble.classes, Writing(late, source.options.shard_size, dtype))
    finally:
        ensemble.late = None
    write_card(source, artifact, what)
    return artifact


def write_card(source: Source, artifact: Artifact, what: str, code: str | None = None) -> None:
    """Write the model card; `code`: lines of Python that open it (default: those of its library).

    Every file gets the card's permissions: safetensors makes files that only their owner reads.
    """
    path = artifact.path / CARD
    path.write_text(card(source.ensemble, artifact.path.name, what, code), encoding="utf-8")
    for written in artifact.path.rglob("*"):
        if written.is_file():
            shutil.copymode(path, written)
