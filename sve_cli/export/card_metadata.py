"""What surrounds a card's text: the hub's metadata with results in its standard form, results, intended use, provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData, metadata_load, try_to_load_from_cache
from yaml import YAMLError

from sve_cli.backbone import Backbone, locate
from sve_cli.certified import CARD
from sve_cli.export.artifact import Artifact, Source
from sve_cli.export.card import base_name

PIPELINES = {
    "image_classification": "image-classification",
    "text_classification": "text-classification",
    "multiple_choice": "text-generation",
}
LIBRARIES = {"adapter": "sve-cli", "lora": "peft", "onnx": "onnx", "torch_export": "pytorch"}  # others: the checkpoint's own
NAMES = {"accuracy": "Accuracy", "nll": "NLL in nats", "ece_top1_w15": "ECE, 15 bins of equal width"}


@dataclass(frozen=True)
class Results:
    """Scores on samples of a split.

    Attributes:
        n: how many samples.
        rows: system -> metric -> value; the first system is the artifact itself.
        definitions: metric -> what it is.
        note: what a reader should know.
    """

    dataset: str
    split: str
    n: int
    rows: dict[str, dict[str, float]]
    definitions: dict[str, str]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values for the certificate."""
        return asdict(self)

    @property
    def own(self) -> dict[str, float]:
        """The artifact's own scores."""
        return next(iter(self.rows.values()))


def finish_card(source: Source, artifact: Artifact, results: Results | None, certificate: str) -> None:
    """Complete the card that the exporter wrote: metadata before it; results, use, provenance and the certificate after it."""
    path = artifact.path / CARD
    body = path.read_text(encoding="utf-8")
    parts = [front_matter(source, artifact, results), body.rstrip() + "\n"]
    parts += [] if results is None else [results_section(results)]
    parts += [use_section(source), provenance_section(source), certificate]
    path.write_text("\n".join(parts), encoding="utf-8")


def front_matter(source: Source, artifact: Artifact, results: Results | None) -> str:
    """The metadata block that the hub reads."""
    ensemble, backbone, recipe = source.ensemble, source.ensemble.backbone, source.recipe
    task = None if recipe is None else PIPELINES[recipe.task.name]
    evaluated = None
    if results is not None and task is not None:
        evaluated = [_result(results, task, key, value) for key, value in results.own.items()]
    name, base = backbone.spec.name, None
    place = locate(backbone.spec)
    if place.path is None and place.file is None and "/" in name:
        base = name.removeprefix("timm:")
    data = ModelCardData(
        library_name=_library(artifact, backbone),
        pipeline_tag=task,
        base_model=base,
        license=license_of(backbone),
        tags=["sve-cli", "uncertainty", "calibration", *([] if recipe is None else [recipe.method.name.replace("_", "-")])],
        model_name=artifact.path.name if evaluated else None,
        eval_results=evaluated,
        base_model_relation=None if base is None else "adapter" if artifact.kind in ("adapter", "lora") else "finetune",
        ensemble_members=ensemble.n_members,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _library(artifact: Artifact, backbone: Backbone) -> str:
    own = "sentence-transformers" if "SentenceTransformer" in backbone.loads_with else backbone.library
    return LIBRARIES.get(artifact.kind, own)


def _result(results: Results, task: str, key: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=results.dataset,
        dataset_name=results.dataset,
        dataset_split=results.split,
        metric_type=key,
        metric_name=f"{NAMES.get(key, key)} ({results.n} samples)",
        metric_value=round(value, 6),
    )


def license_of(backbone: Backbone) -> str | None:
    """The licence that the checkpoint's own card states, where that card lies on this machine."""
    location = locate(backbone.spec)
    readme: Any = None if location.path is None else location.path / CARD
    if location.path is None and location.file is None and "/" in location.name:
        readme = try_to_load_from_cache(location.name, CARD)
    if not isinstance(readme, (str, Path)) or not Path(readme).is_file():
        return None
    try:
        stated = (metadata_load(readme) or {}).get("license")
    except (OSError, ValueError, YAMLError):  # no card, or metadata that cannot be read
        return None
    return stated if isinstance(stated, str) else None


def results_section(results: Results) -> str:
    """The scores as a table, with what they are."""
    keys = list(results.own)
    heads = [NAMES.get(key, key) for key in keys]
    lines = [
        "## Results",
        "",
        f"On {results.n} samples of {results.dataset}:{results.split}.{' ' * bool(results.note)}{results.note}",
        "",
        "| | " + " | ".join(heads) + " |",
        "|" + "---|" * (len(keys) + 1),
    ]
    lines += [f"| {row} | " + " | ".join(f"{values[key]:.4f}" for key in keys) + " |" for row, values in results.rows.items()]
    lines += ["", *(f"- {NAMES.get(key, key)}: {results.definitions[key]}" for key in keys if key in results.definitions)]
    return "\n".join(lines) + "\n"


def use_section(source: Source) -> str:
    """What the artifact is for, and what it is not known to be good for."""
    data = "the data of its run" if source.recipe is None else f"`{base_name(source.recipe.data.name)}`"
    lines = [
        "## Intended use",
        "",
        f"Inputs like those of {data}, prepared as this folder says, and no other classes than those above. Every figure here was",
        "measured on that kind of input. On others the probabilities may be wrong and sure of themselves: measure before you rely",
        "on them. The checkpoint's own terms, limits and biases still hold.",
    ]
    return "\n".join(lines) + "\n"


def provenance_section(source: Source) -> str:
    """What it was made from, by content hash."""
    lock, spec = source.lock, source.ensemble.backbone.spec
    rows: dict[str, Any] = {f"checkpoint `{base_name(spec.name)}`": lock.get("checkpoint"), "recipe": lock.get("recipe")}
    rows |= {f"data, {name}": digest for name, digest in dict(lock.get("data") or {}).items()}
    environment: Mapping[str, Any] = lock.get("environment") or {}
    versions = ", ".join(f"{n} {environment[n]}" for n in ("sve", "torch", "transformers", "timm") if environment.get(n))
    lines = ["## Provenance", "", "| trained on | sha256 |", "|---|---|"]
    lines += [f"| {name} | `{digest}` |" for name, digest in rows.items() if digest]
    return "\n".join([*lines, *(["", f"Trained with {versions}."] if versions else [])]) + "\n"
