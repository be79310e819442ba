"""Names to implementations, as "module:attribute" strings that are imported when asked for, and not before.

A new method, task, data set, metric, OOD score or export target is one file and one line here.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from sve_cli.errors import SveError


def nearest(name: str, known: Iterator[str] | list[str]) -> str:
    """A sentence that names the closest known name, or lists the known ones."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Known: {', '.join(names)}."


class Registry(Mapping[str, str]):
    """A read-only table name -> "module:attribute"."""

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> str:
        try:
            return self._entries[name]
        except KeyError:
            raise SveError(f"Unknown {self.kind} '{name}'.", nearest(name, list(self._entries))) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def resolve(self, name: str) -> Any:
        """Import and return what `name` stands for.

        Raises:
            SveError: the name is not registered.
        """
        module, _, attribute = self[name].partition(":")
        return getattr(import_module(module), attribute)


METHODS = Registry(
    "method",
    {
        "sve": "sve_cli.methods.sve:SVE",
        "heads_only": "sve_cli.methods.heads_only:HeadsOnly",
        "single": "sve_cli.methods.single:Single",
        "lora_ensemble": "sve_cli.methods.lora_ensemble:LoraEnsemble",
        "svfit": "sve_cli.methods.svfit:SVFit",
        "sve_lora": "sve_cli.methods.sve_lora:SveLora",
        "sve_band": "sve_cli.methods.sve_band:SveBand",
        "batch_ensemble": "sve_cli.methods.batch_ensemble:BatchEnsemble",
        "deep_ensemble": "sve_cli.methods.deep_ensemble:DeepEnsemble",
        "snapshot": "sve_cli.methods.snapshot:Snapshot",
        "mc_dropout": "sve_cli.methods.mc_dropout:MCDropout",
    },
)

# An alias is another method with some settings fixed: (method, fixed recipe settings).
METHOD_ALIASES: dict[str, tuple[str, dict[str, object]]] = {
    "svf": ("sve", {"members": 1}),
    "linear_probe": ("heads_only", {"members": 1}),
    "lora": ("lora_ensemble", {"members": 1}),
}

# Methods that are one network by nature: `method.members` is 1 and need not be written.
ONE_NETWORK = ("single", "svfit")

# Methods that train heads alone: without augmentation on the network's features, made once.
HEADS_ALONE = ("heads_only",)

TASKS = Registry(
    "task",
    {
        "text_classification": "sve_cli.tasks.text_classification:TextClassification",
        "image_classification": "sve_cli.tasks.image_classification:ImageClassification",
        "multiple_choice": "sve_cli.tasks.multiple_choice:MultipleChoice",
    },
)

# Named so that asking for them says what this tool is for, instead of "unknown".
REFUSED_TASKS = ("regression", "generation", "token_classification", "question_answering", "object_detection", "segmentation")

METRICS = Registry(
    "metric",
    {
        "accuracy": "sve_cli.metrics.accuracy:accuracy",
        "macro_f1": "sve_cli.metrics.macro_f1:macro_f1",
        "nll": "sve_cli.metrics.nll:nll",
        "brier": "sve_cli.metrics.brier:brier",
        "ece_top1_w15": "sve_cli.metrics.ece:ece_top1",
        "ece_top1_m15": "sve_cli.metrics.adaptive_ece:adaptive_ece_top1",
        "ece_class_w15": "sve_cli.metrics.classwise_ece:classwise_ece",
        "ece_debiased_w15": "sve_cli.metrics.debiased_ece:debiased_ece_top1",
        "mce_top1_w15": "sve_cli.metrics.mce:mce_top1",
        "brier_reliability_w15": "sve_cli.metrics.brier_parts:brier_reliability",
        "brier_resolution_w15": "sve_cli.metrics.brier_parts:brier_resolution",
        "brier_uncertainty": "sve_cli.metrics.brier_parts:brier_uncertainty",
        "aurc": "sve_cli.metrics.aurc:aurc",
        "eaurc": "sve_cli.metrics.eaurc:eaurc",
        "risk_at_80": "sve_cli.metrics.risk_at_coverage:risk_at_80",
        "risk_at_90": "sve_cli.metrics.risk_at_coverage:risk_at_90",
        "risk_at_95": "sve_cli.metrics.risk_at_coverage:risk_at_95",
        "nll_soft": "sve_cli.metrics.soft_labels:nll_soft",
        "kl_soft": "sve_cli.metrics.soft_labels:kl_soft",
        "brier_soft": "sve_cli.metrics.soft_labels:brier_soft",
        "disagreement": "sve_cli.metrics.disagreement:disagreement",
        "variation_ratio_mean": "sve_cli.metrics.variation_ratio:variation_ratio_mean",
        "entropy_mean": "sve_cli.metrics.uncertainty:entropy_mean",
        "expected_entropy_mean": "sve_cli.metrics.uncertainty:expected_entropy_mean",
        "mutual_information_mean": "sve_cli.metrics.uncertainty:mutual_information_mean",
    },
)

OOD_SCORES = Registry(
    "OOD score",
    {
        "max_probability": "sve_cli.ood.max_probability:MaxProbability",
        "entropy": "sve_cli.ood.entropy:Entropy",
        "expected_entropy": "sve_cli.ood.expected_entropy:ExpectedEntropy",
        "mutual_information": "sve_cli.ood.mutual_information:MutualInformation",
        "energy": "sve_cli.ood.energy:Energy",
        "max_logit": "sve_cli.ood.max_logit:MaxLogit",
        "variation_ratio": "sve_cli.ood.variation_ratio:VariationRatio",
        "energy_of_mean": "sve_cli.ood.energy_of_mean:EnergyOfMean",
        "max_logit_of_mean": "sve_cli.ood.max_logit_of_mean:MaxLogitOfMean",
        "mahalanobis": "sve_cli.ood.mahalanobis:Mahalanobis",
        "knn": "sve_cli.ood.knn:Knn",
    },
)

CORRUPTIONS = Registry(
    "corruption",
    {
        "gaussian_noise": "sve_cli.corruptions.gaussian_noise:gaussian_noise",
        "shot_noise": "sve_cli.corruptions.shot_noise:shot_noise",
        "gaussian_blur": "sve_cli.corruptions.gaussian_blur:gaussian_blur",
        "defocus_blur": "sve_cli.corruptions.defocus_blur:defocus_blur",
        "motion_blur": "sve_cli.corruptions.motion_blur:motion_blur",
        "fog": "sve_cli.corruptions.fog:fog",
        "snow": "sve_cli.corruptions.snow:snow",
        "brightness": "sve_cli.corruptions.brightness:brightness",
        "contrast": "sve_cli.corruptions.contrast:contrast",
        "jpeg": "sve_cli.corruptions.jpeg:jpeg",
        "pixelate": "sve_cli.corruptions.pixelate:pixelate",
        "swap_letters": "sve_cli.corruptions.swap_letters:swap_letters",
        "keyboard": "sve_cli.corruptions.keyboard:keyboard",
        "drop_letters": "sve_cli.corruptions.drop_letters:drop_letters",
        "drop_words": "sve_cli.corruptions.drop_words:drop_words",
        "upper_case": "sve_cli.corruptions.upper_case:upper_case",
        "random_case": "sve_cli.corruptions.random_case:random_case",
    },
)

BUILTIN_DATA = Registry("built-in data set", {"digits": "sve_cli.data.digits:load_digits"})

EXPORTERS = Registry(
    "export target",
    {
        "merged": "sve_cli.export.merged:TARGET",
        "averaged": "sve_cli.export.averaged:TARGET",
        "adapter": "sve_cli.export.adapter:TARGET",
        "lora": "sve_cli.export.lora:TARGET",
        "onnx": "sve_cli.export.onnx:TARGET",
        "torch_export": "sve_cli.export.torch_export:TARGET",
        "distilled": "sve_cli.export.distilled:TARGET",
    },
)

RENDERERS = Registry(
    "report view",
    {
        "md": "sve_cli.render.markdown:render_markdown",
        "html": "sve_cli.render.html:render_html",
        "bench_md": "sve_cli.render.bench:render_markdown",
        "bench_html": "sve_cli.render.bench:render_html",
    },
)
