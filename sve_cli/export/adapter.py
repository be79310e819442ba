"""Target `adapter`: what the members trained, in one small file that names its checkpoint by content.

A folder `adapter/` with `adapter.safetensors` (the trained state, probes, and on request the basis) and `adapter.json` (which
checkpoint, which decomposition, which recipe and rules; the digest of the other file, and of itself).

The members' numbers mean something only in the basis they were trained in, and a basis is computed anew when an adapter is
loaded. So every layer has a probe: (W_m - W) z with a fixed z of unit variance, drawn by the layer's name. It does not depend
on the signs of the singular vectors, which cancel in W_m, but on everything else that W_m depends on.

Shapes: M members, O out, I in, R rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sve_cli.backbone.identity import CONFIG_FACTS, INPUT_FACTS
from sve_cli.certified import document_digest
from sve_cli.ensemble import Ensemble, keyed_generator
from sve_cli.errors import CheckpointError, NotExportable
from sve_cli.export.artifact import Artifact, Source, Target, write_card
from sve_cli.export.card import base_name
from sve_cli.export.complete import refuse_pickled, require_files
from sve_cli.factors import ALGORITHM, Factors
from sve_cli.factors.decomposition import side_of, weight_key
from sve_cli.recipe import Recipe, to_yaml
from sve_cli.rundir import file_digest

FORMAT = "sve-adapter/1"
CONFIG, TENSORS = "adapter.json", "adapter.safetensors"
STATE, PROBE, BASIS, VALUES = "state.", "probe.", "basis.", "values."
PROBE_TOLERANCE = 1e-4  # of the length of a layer's probe
ROUNDING = 1e-6  # of the length of W z: below this a change of the weights is rounding


def export_adapter(source: Source, folder: Path) -> list[Artifact]:
    """Write `folder/adapter/`.

    Raises:
        NotExportable: the members are whole networks, or there is no recipe.
    """
    recipe, ensemble = source.require_recipe("adapter"), source.ensemble
    if any(group.role == "backbone" for group in ensemble.groups):
        raise NotExportable(
            f"The members of {recipe.method.name} are whole networks, so an adapter would be as large as they are.",
            "Use --to merged.",
        )
    place = folder / "adapter"
    place.mkdir(parents=True, exist_ok=True)
    tensors = {STATE + name: tensor.cpu() for name, tensor in ensemble.state().items()}
    tensors |= {PROBE + name: probe.float() for name, probe in probes(ensemble).items()}
    if source.options.with_basis:
        tensors |= _basis(source)
    save_file(tensors, place / TENSORS, metadata={"format": FORMAT})
    document = {
        "format": FORMAT,
        "base": {
            "name": base_name(recipe.model.name),
            "digest": source.lock["checkpoint"],
            **{key: source.lock[key] for key in (CONFIG_FACTS, INPUT_FACTS) if key in source.lock},  # older runs have none
        },
        "decomposition": {"algorithm": ALGORITHM, "stored": source.options.with_basis},
        "probe": {"seed": 0, "tolerance": PROBE_TOLERANCE},
        "classes": ensemble.classes,
        "recipe": to_yaml(_public(recipe)),
        "posthoc": source.posthoc,
        "aggregate": source.aggregate,
        "tensors": file_digest(place / TENSORS),
    }
    text = json.dumps({**document, "digest": document_digest(document)}, indent=1, ensure_ascii=False)
    (place / CONFIG).write_text(text + "\n", encoding="utf-8")
    artifact = Artifact("adapter", place, None, "sve_cli.load('FOLDER')", claim="members", reloader="adapter")
    what = (
        f"The whole ensemble of {ensemble.n_members} members as what they trained beside the checkpoint "
        f"({(place / TENSORS).stat().st_size / 1e6:.1f} MB). It needs the unchanged checkpoint and the package sve-cli."
    )
    write_card(source, artifact, what, _usage(recipe))
    return [artifact]


def _public(recipe: Recipe) -> Recipe:
    data = replace(recipe.data, name=base_name(recipe.data.name), ood=[], ood_near=[], ood_far=[])
    return replace(recipe, model=replace(recipe.model, name=base_name(recipe.model.name)), data=data)


def _usage(recipe: Recipe) -> str:
    local = base_name(recipe.model.name) != recipe.model.name
    base = ', base="PATH OF THE CHECKPOINT"' if local else ""
    given = {
        "image_classification": '"image.png"',
        "multiple_choice": '{"question": "Which is it?", "choices": ["this", "that"]}',
    }.get(recipe.task.name, '"a text"')
    return f"""import sve_cli
ensemble = sve_cli.load("FOLDER"{base})
answer = ensemble.predict([{given}])
print(answer.labels, answer.probabilities.max(axis=1), answer.epistemic, answer.decisions)"""


def probe_vector(layer: str, inner: int) -> Tensor:
    """z (I,), float64: N(0, 1), keyed by the layer's name."""
    return torch.randn(inner, generator=keyed_generator(0, "probe", layer), dtype=torch.float64)


def probes(ensemble: Ensemble) -> dict[str, Tensor]:
    """Layer -> (W_m - W) z of every member (M, O), float64, on the CPU."""
    found = {}
    for linear in ensemble.member_linears():
        z_I = probe_vector(linear.view.name, linear.weight_OI.shape[1]).to(linear.weight_OI.device)
        members = [linear.change(m, z_I).cpu() for m in range(ensemble.n_members)]
        found[linear.view.name] = torch.stack(members)
    return found


def check_probes(ensemble: Ensemble, stored: Mapping[str, Tensor]) -> None:
    """Compare the probes of a rebuilt ensemble with those it was exported with.

    Per layer and member: ||p - p'|| <= 1e-4 ||p'|| + 1e-6 ||W z||. The second term is the rounding of the weights themselves, for
    members that hardly differ from the checkpoint.

    Raises:
        CheckpointError: naming the first layer that is off.
    """
    for linear in ensemble.member_linears():
        name, weight_OI = linear.view.name, linear.weight_OI
        if name not in stored:
            raise CheckpointError(f"The adapter holds no probe for the layer '{name}'.", "Export it again.")
        z_I = probe_vector(name, weight_OI.shape[1])
        scale = float((weight_OI.double().cpu() @ z_I).norm())
        for m in range(ensemble.n_members):
            off = float((linear.change(m, z_I.to(weight_OI.device)).cpu() - stored[name][m].double()).norm())
            length = float(stored[name][m].double().norm())
            if not off <= PROBE_TOLERANCE * length + ROUNDING * scale:
                raise CheckpointError(
                    f"Rebuilt from this adapter, the layer '{name}' of member {m} is not what was trained: its probe is off by "
                    f"{off / max(length, 1e-30):.1e} of its length (allowed {PROBE_TOLERANCE:.0e}). Its basis is another one here.",
                    "Export the adapter again with --with-basis where it was trained, or use merged members.",
                )


def _basis(source: Source) -> dict[str, Tensor]:
    assert source.factors is not None, "storing the basis needs a source of factors"
    tensors: dict[str, Tensor] = {}
    for linear in source.ensemble.member_linears():
        if linear.uses_factors:
            factors = source.factors.get(linear.weight_OI, linear.view.name)
            tensors |= {BASIS + linear.view.name: factors.basis.contiguous(), VALUES + linear.view.name: factors.s_R.contiguous()}
    return tensors


@dataclass(frozen=True)
class StoredFactors:
    """The factors that an adapter carries, where a method asks for those of a weight."""

    tensors: Mapping[str, Tensor]

    def get(self, weight_OI: Tensor, name: str) -> Factors:
        """The stored factors of a layer.

        Raises:
            CheckpointError: there are none, or they belong to a weight of another shape.
        """
        shape = (int(weight_OI.shape[0]), int(weight_OI.shape[1]))
        basis = self.tensors.get(BASIS + name)
        if basis is None or tuple(basis.shape) != (min(shape), min(shape)):
            raise CheckpointError(f"The adapter holds no basis for the layer '{name}'.", "Export it again.")
        return Factors(basis, self.tensors[VALUES + name], side_of(shape), shape, weight_key(weight_OI))


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(adapter.json, the tensors by their prefixed names), checked against the digests.

    Raises:
        CheckpointError: a file is missing, truncated, changed, or of another format.
    """
    again = "Export it again, or fetch it again."
    try:
        document = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read the adapter '{folder / CONFIG}' ({error}).", again) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CheckpointError(f"'{folder / CONFIG}' is no adapter of the format {FORMAT}.", again)
    if document.pop("digest", None) != document_digest(document):
        raise CheckpointError(f"'{folder / CONFIG}' was changed after the export.", again)
    path = folder / TENSORS
    if not path.is_file() or file_digest(path) != document["tensors"]:
        raise CheckpointError(f"'{path}' is missing, truncated or was changed after the export.", again)
    try:
        return document, load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot read the adapter '{path}' ({error}).", again) from error


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors behind a prefix, by their own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def check(folder: Path, text: bool) -> None:
    """Refuse an export that lacks a file, or holds a pickled one; see `require_files`."""
    refuse_pickled(folder)
    require_files(folder, (CONFIG, TENSORS))


FLOAT32 = "its members are rebuilt on top of the checkpoint and checked to 1e-4, and it is small as it is."
TARGET = Target(lambda members, options: ["adapter"], export_adapter, check, float32_because=FLOAT32, entry=CONFIG)
