"""What a recipe may say: every section, key, default and range, with one line of documentation each.

The loader, the JSON schema, `docs/recipes.md` and the record inside a run all come from these declarations.
Method parameters are declared by the method itself (`Params`) and found through the registry.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any, Literal

from sve_cli.registry import METHOD_ALIASES, METHODS


def doc(
    text: str, default: Any = MISSING, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare a key: its documentation, default and range (`low`/`high` inclusive, `above` exclusive)."""
    metadata = {"doc": text, "low": low, "high": high, "above": above}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelSpec:
    """Which checkpoint, and how its features are read."""

    name: str = doc("Local folder or file, timm name ('timm:' forces it), or hub id. A local path always wins.")
    source: Literal["auto", "timm", "transformers"] = doc("Which library opens the checkpoint.", "auto")
    revision: str | None = doc("Hub revision (branch, tag or commit); of timm networks only with hf-hub: names.", None)
    pooling: Literal["auto", "native", "cls", "mean", "last"] = doc(
        "How token features become one vector. native: as the library's own classifier does; auto: native.", "auto"
    )
    max_length: int | None = doc("Longest input in tokens; null: the checkpoint's own limit, at most 512.", None, low=4)
    image_size: int | None = doc("Input side in pixels; null: the checkpoint's own.", None, low=8)
    attention: Literal["auto", "eager", "sdpa"] = doc("Attention of transformers networks; auto: the library's default.", "auto")
    random_init: bool = doc("Throw the pretrained weights away (only to show that the method needs them).", False)
    trust_remote_code: bool = doc("Allow a hub repository to run its own Python code.", False)


@dataclass(frozen=True)
class SplitSpec:
    """Names of the splits; null: there is none."""

    train: str = doc("Training split.", "train")
    validation: str | None = doc("Validation split; null: part of train is held out.", "validation")
    test: str | None = doc("Test split.", "test")


@dataclass(frozen=True)
class DataSpec:
    """Which data set, and which of its columns mean what."""

    name: str = doc("Local folder or file (csv, jsonl, parquet, image folder), built-in name, or hub id.")
    config: str | None = doc("Hub configuration name.", None)
    revision: str | None = doc("Hub revision.", None)
    text: str = doc("Text column.", "text")
    text_pair: str | None = doc("Second text column, for sentence pairs.", None)
    image: str = doc("Image column.", "image")
    question: str = doc("Question column (multiple choice).", "question")
    choices: str = doc("Choices column: a list of strings (multiple choice).", "choices")
    label: str = doc("Label column: class names, class indices, or an index into the choices.", "label")
    splits: SplitSpec = doc("Names of the splits.", SplitSpec())
    holdout: float = doc("Share of train held out, stratified, when there is no validation split.", 0.1, above=0.0, high=0.5)
    classes: list[str] | None = doc("Keep these classes only, in this order; null: all.", None)
    ood: list[str] = doc("Out-of-distribution sets: names, paths, 'set:split', or held_out_classes (outside data.classes).", [])
    ood_near: list[str] = doc("Those close to the data; sets that data.ood does not name are added to it.", [])
    ood_far: list[str] = doc("Those far from the data; sets that data.ood does not name are added to it.", [])
    slices: list[str] = doc(
        "Columns whose values make slices of the test set; length: the number of words of a text, unless a column is so called.", []
    )
    limit: int | None = doc("Most training rows, drawn in proportion to the labels; null: all. Test stays whole.", None, low=1)
    augment: Literal["none", "flip", "crop_flip"] = doc("Training augmentation of images.", "none")
    seed: int | None = doc("Seed of hold-out and --limit sampling; null: the recipe's seed.", None, low=0)

    def ood_group(self, name: str) -> str:
        """The group of an out-of-distribution set: "near", "far" or ""."""
        return "near" if name in self.ood_near else "far" if name in self.ood_far else ""


@dataclass(frozen=True)
class TaskSpec:
    """What is predicted, and with which head."""

    name: str = doc("text_classification, image_classification or multiple_choice.")
    head: Literal["auto", "new", "checkpoint"] = doc(
        "auto keeps the checkpoint's own classifier when its classes match the data's; multiple choice: the frozen LM head.",
        "auto",
    )
    head_init_std: float = doc("Standard deviation of new head weights.", 0.01, low=0.0)
    instruction: str = doc(
        "First line of a multiple-choice prompt.",
        "Answer the multiple choice question below by returning the letter of the right answer.",
    )


@dataclass(frozen=True)
class MethodSpec:
    """Which method, how many members, which layers."""

    name: str = doc(f"A registered method or alias: {', '.join([*METHODS, *METHOD_ALIASES])}.")
    members: int = doc("Number of members M.", 4, low=1, high=256)
    targets: str | list[str] = doc(
        "auto (attention and MLP linears of the blocks; every matrix where there are no blocks), attention or mlp (one of "
        "them), all-linear, a regular expression ('re:…'), or layer names.",
        "auto",
    )
    exclude: list[str] = doc("Layers to leave out: names, or regular expressions ('re:…').", [])
    last_blocks: int | None = doc("Only the last k blocks; null: all.", None, low=1)
    params: dict[str, Any] = doc("The method's own parameters.", {})


@dataclass(frozen=True)
class TrainSpec:
    """The optimisation."""

    epochs: int = doc("Passes over the training split, per round.", 3, low=0)
    batch_size: int = doc("Samples per member and optimiser step.", 32, low=1)
    accumulation: int = doc("Micro-batches a step is cut into (must divide batch_size).", 1, low=1)
    lr: float | None = doc(
        "Learning rate of the method's own parameters (Σ; all weights for single); null: the method's default.", None, above=0.0
    )
    bias_lr: float | None = doc("Learning rate of member biases and norms; null: a tenth of lr.", None, above=0.0)
    head_lr: float = doc("Learning rate of the heads.", 5e-3, above=0.0)
    weight_decay: float = doc("AdamW weight decay of the method's own parameters; sve: toward the pretrained value.", 0.0, low=0.0)
    head_weight_decay: float = doc("AdamW weight decay of the heads, toward zero.", 0.0, low=0.0)
    betas: list[float] = doc("Adam's two decay rates.", [0.9, 0.999])
    schedule: Literal["cosine", "linear", "constant"] = doc("Learning-rate schedule after warm-up.", "cosine")
    warmup: float = doc("Share of the steps spent warming up.", 0.06, low=0.0, high=1.0)
    clip: float | None = doc("Largest gradient norm per member; null: no clipping.", 1.0, above=0.0)
    label_smoothing: float = doc("Label smoothing of the training loss.", 0.0, low=0.0, high=0.5)
    class_weights: Literal["none", "balanced"] = doc("Weight each sample's loss by the inverse frequency of its class.", "none")
    precision: Literal["auto", "float32", "bfloat16"] = doc(
        "What products run in; auto: bfloat16 on GPUs, and on CPUs with instructions for it for networks at least 192 wide.",
        "auto",
    )
    member_execution: Literal["batched", "sequential"] = doc("All members at once, or one after another (less memory).", "batched")
    save_memory: bool = doc(
        "Compute in the backward pass again what it can have from what it keeps anyway: less memory, more time, the same numbers.",
        False,
    )
    select: Literal["validation_nll", "last"] = doc("Which epoch is kept.", "validation_nll")
    prefix_cache_mb: int = doc(
        "Largest store, in MB, of what the frozen first blocks (method.last_blocks) give for each training sample: made once, not "
        "computed at every step; 0: none. Nothing below may be random (params.dropout: off, no augmentation).", 0, low=0,
    )  # fmt: skip
    checkpoint_minutes: float = doc(
        "Minutes between checkpoints inside an epoch (one is also written after each epoch).", 5.0, low=0.0
    )


@dataclass(frozen=True)
class EvaluateSpec:
    """How predictions are judged."""

    aggregate: Literal["probs", "logits", "weighted"] = doc(
        "Average the members' probabilities or logits; weighted: probabilities with weights fitted on validation NLL.", "probs"
    )
    bins: int = doc("Bins of the calibration errors and of the reliability diagram.", 15, low=2, high=1000)
    temperature: bool = doc("Fit a temperature on validation NLL and report it beside.", True)
    vector: bool = doc("Fit a weight and a bias per class on validation NLL (vector scaling) and report it beside.", False)
    bootstrap: int = doc("Bootstrap resamples behind each interval; 0: no intervals.", 1000, low=0)
    confidence: float = doc("Level of the intervals.", 0.95, above=0.5, high=0.999)
    batch_size: int = doc("Samples per prediction batch.", 128, low=1)
    ood_scores: list[str] = doc("Scores of the OOD tables.", ["max_probability", "entropy", "mutual_information", "energy"])
    ood_decision: str | None = doc("Score that calls an input out of distribution (`sve predict`); null: none does.", "entropy")
    ood_keep: float = doc("Share of in-distribution inputs that this keeps.", 0.95, above=0.5, high=0.999)
    target_risk: float | None = doc(
        "Highest error rate among answered inputs, which abstaining must hold; null: never abstain.", 0.05, above=0.0, high=0.5
    )
    conformal: Literal["lac", "aps", "none"] = doc("Conformal sets: lac (smallest), aps (more even over inputs), none.", "lac")
    conformal_alpha: float = doc("Share of inputs whose conformal set may miss the right class.", 0.1, above=0.0, high=0.5)


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on."""

    model: ModelSpec = doc("The checkpoint.")
    data: DataSpec = doc("The data.")
    task: TaskSpec = doc("The task.")
    method: MethodSpec = doc("The method.")
    train: TrainSpec = doc("The optimisation.", TrainSpec())
    evaluate: EvaluateSpec = doc("The evaluation.", EvaluateSpec())
    seed: int = doc("Seed of every random draw.", 0, low=0)
