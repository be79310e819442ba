"""Target `lora`: every member as a standard PEFT LoRA adapter on the unchanged checkpoint.

W_m - W = Σ_r Δσ_r u_r v_rᵀ, so that the k largest |Δσ| of a layer are its adapter of rank k: lora_B = U_k diag(Δσ_k) and
lora_A = V_kᵀ (one of the two also carries the singular values where the basis is stored that way; their product is the same).
Where more than singular values trains, U, Δσ and V are those of W_m - W itself; a LoRA ensemble's have its own rank.
lora_alpha equals r in every layer, so that peft's factor is exactly 1. Member biases are the biases of lora_B (`lora_bias`),
which peft adds to the checkpoint's own; heads and norms are whole modules (`modules_to_save`).

Shapes: O out, I in, K kept directions, F features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sve_cli.backbone import Backbone, LinearView, locate
from sve_cli.backbone.causal_lm import CausalLM
from sve_cli.backbone.timm_backbone import TimmBackbone
from sve_cli.backbone.transformers_backbone import PooledEncoder, SequenceClassifier
from sve_cli.ensemble import Ensemble
from sve_cli.errors import NotExportable
from sve_cli.export.artifact import Artifact, Options, Source, Target, write_card
from sve_cli.export.card import base_name
from sve_cli.export.complete import refuse_pickled, require_files
from sve_cli.export.lora_card import loads_with, usage, what_it_is
from sve_cli.export.lora_ranks import Directions, RankRule, Ranks, choose_ranks, member_directions, parse_rank
from sve_cli.export.packages import require_packages

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
TASK_TYPES = {SequenceClassifier: "SEQ_CLS", CausalLM: "CAUSAL_LM", PooledEncoder: "FEATURE_EXTRACTION"}


@dataclass(frozen=True)
class Whole:
    """Modules that a LoRA adapter keeps in full (peft's modules_to_save), and where the head goes.

    Attributes:
        modules: their names.
        head: the linear layer that is the head, inside one of them; None: the head is in none (see `_head_tensors`).
    """

    modules: tuple[str, ...]
    head: str | None


def export_lora(source: Source, folder: Path) -> list[Artifact]:
    """Write `folder/lora-<m>/` for each member asked for.

    Raises:
        NotExportable: the members are whole networks or change no layer, or peft has no such layer or checkpoint.
        SveError: --rank says no rank, or no serving rank is large enough.
    """
    refuse_others(source)
    rule = parse_rank(source.options.rank)
    whole = whole_modules(source.ensemble)
    return [_write_member(source, folder / f"lora-{m}", m, rule, whole) for m in source.members]


def refuse_others(source: Source) -> None:
    """Refuse ensembles that LoRA adapters cannot hold.

    Raises:
        NotExportable: saying why.
    """
    ensemble, backbone = source.ensemble, source.ensemble.backbone
    if any(group.role == "backbone" for group in ensemble.groups):
        raise NotExportable(
            "The members are whole networks, and a LoRA adapter holds a change of a few directions.", "Use --to merged."
        )
    if locate(backbone.spec).file is not None:
        raise NotExportable(
            "The checkpoint is a bare weight file, which nothing loads as the base of an adapter.", "Use --to merged."
        )
    if not isinstance(backbone, (*TASK_TYPES, TimmBackbone)):
        raise NotExportable(f"peft is not known to adapt a checkpoint of '{backbone.spec.name}' here.", "Use --to merged.")
    for linear in ensemble.member_linears():
        module = linear.view.module
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and module.dilation == (1, 1)
        if linear.view.kind == "conv2d" and not plain:
            raise NotExportable(f"peft has no LoRA layer for '{linear.view.name}' ({type(module).__name__}).", "Use --to merged.")


def whole_modules(ensemble: Ensemble) -> Whole:
    """What cannot be a low-rank update: the head, member norms, and modules that the checkpoint lacks."""
    backbone = ensemble.backbone
    norms = {name.rpartition(".")[0] for group in ensemble.groups if group.role == "norm" for name in group.parameters}
    if isinstance(backbone, SequenceClassifier):
        inner = getattr(backbone.network, "base_model_prefix", "")
        outside = {n for n, child in backbone.network.named_children() if n != inner and any(True for _ in child.parameters())}
        made_up = {n.rpartition(".")[0] for n in backbone.absent if n.startswith(inner + ".")}
        top = backbone.head_name.split(".")[0]
        norms = {n for n in norms if n.split(".")[0] not in {*outside, top}}
        return Whole(tuple(sorted({*outside, top, *made_up, *norms})), backbone.head_name)
    if isinstance(backbone, TimmBackbone):
        own = backbone.own_classifier(backbone.network)
        head = next((n for n, module in backbone.network.named_modules() if module is own[0]), None)
        if len(own) != 1 or head is None:
            raise NotExportable("This network has no single linear classifier that peft could replace.", "Use --to merged.")
        return Whole(tuple(sorted({head, *norms})), head)
    return Whole(tuple(sorted(norms)), None)


def _write_member(source: Source, place: Path, m: int, rule: RankRule, whole: Whole) -> Artifact:
    ensemble, backbone = source.ensemble, source.ensemble.backbone
    place.mkdir(parents=True, exist_ok=True)
    inside = tuple(f"{name}." for name in whole.modules)
    every = member_directions(ensemble, m)
    adapted = {name: d for name, d in every.items() if not name.startswith(inside) and name not in whole.modules}
    inputs = None
    if rule.by == "fidelity":
        inputs = source.prepared.get("lora") or (source.example() if source.example else None)
    ranks = choose_ranks(ensemble, m, adapted, rule, source.options.serving_ranks, inputs)
    low_rank = {name: _pad(*d.cut(ranks.kept[name]), ranks) for name, d in adapted.items()}
    biases = _biases(ensemble, m, set(adapted))
    head = _head_update(ensemble, m)
    names = {name: d.view for name, d in adapted.items()}
    if head is not None:
        low_rank[head[0]], biases = _pad(*head[1], ranks), biases | head[2]
    tensors = _whole_tensors(ensemble, m, whole)
    for name, (left_OK, right_KI) in low_rank.items():
        shapes = _native(names.get(name), left_OK, right_KI)
        tensors |= {f"{name}.lora_A.weight": shapes[1], f"{name}.lora_B.weight": shapes[0]}
        if biases:
            tensors[f"{name}.lora_B.bias"] = biases.get(name, torch.zeros(len(left_OK)))
    save_file(
        {PREFIX + k: v.detach().cpu().float().contiguous().clone() for k, v in tensors.items()}, place / ADAPTER, {"format": "pt"}
    )
    _write_config(source, place, low_rank, names, ranks, whole, bool(biases))
    backbone.save_config(place, ensemble.classes)
    if isinstance(backbone, PooledEncoder):
        backbone.save_head(place, ensemble.heads.head(m, ensemble.classes))
    full = {name: len(d.size_R) for name, d in every.items()}
    one_rank = len({len(right) for _, right in low_rank.values()}) == 1
    facts = _facts(source, place, adapted, ranks, whole, bool(biases), one_rank) | {"ranks": {**full, **ranks.kept}}
    artifact = Artifact("lora", place, m, loads_with(backbone), "member_cut", "lora", versus=("member",), facts=facts)
    write_card(source, artifact, what_it_is(m, ensemble.n_members, facts), usage(backbone))
    return artifact


def _pad(left_OK: Tensor, right_KI: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Zero directions up to the one rank of all layers, where there is one."""
    more = max(ranks.r - len(right_KI), 0) if ranks.uniform else 0
    return nn.functional.pad(left_OK, (0, more)), nn.functional.pad(right_KI, (0, 0, 0, more))


def _native(view: LinearView | None, left_OK: Tensor, right_KI: Tensor) -> tuple[Tensor, Tensor]:
    """(lora_B, lora_A) as peft stores them: a convolution's A is a convolution, its B one of 1 x 1."""
    if view is None or view.kind != "conv2d":
        return left_OK, right_KI
    return left_OK[:, :, None, None], right_KI.reshape(len(right_KI), *view.native_weight.shape[1:])


def _biases(ensemble: Ensemble, m: int, layers: set[str]) -> dict[str, Tensor]:
    """Layer -> b_m - b (O,), where biases train; one (1, O) that all members share is every member's."""
    own = {name.removesuffix(".bias_MO"): p for g in ensemble.groups if g.role == "bias" for name, p in g.parameters.items()}
    views = {linear.view.name: linear.view for linear in ensemble.member_linears()}
    found = {}
    for name, bias_MO in own.items():
        bias_O = views[name].bias
        if name in layers and bias_O is not None:
            found[name] = bias_MO[m % len(bias_MO)].detach().double() - bias_O.double()
    return found


def _head_update(ensemble: Ensemble, m: int) -> tuple[str, tuple[Tensor, Tensor], dict[str, Tensor]] | None:
    """A language model's head: (layer, exact update, its bias), of rank C, as only the letters' rows of the LM head change.

    None where there is no LM head, or the member keeps the checkpoint's.
    """
    backbone = ensemble.backbone
    if not isinstance(backbone, CausalLM) or not ensemble.heads.trainable:
        return None
    assert backbone.letter_ids is not None, "the task set the letters"
    output: Any = backbone.network.get_output_embeddings()  # type: ignore[operator]
    name = next(n for n, module in backbone.network.named_modules() if module is output)
    head = ensemble.heads.head(m, ensemble.classes)
    right_CF = head.weight_CF - output.weight.detach()[backbone.letter_ids].float()
    left_VC = torch.zeros(len(output.weight), len(right_CF))
    left_VC[backbone.letter_ids, torch.arange(len(right_CF))] = 1
    biases = {}
    if head.bias_C is not None:
        bias_V = torch.zeros(len(output.weight))
        bias_V[backbone.letter_ids] = head.bias_C - output.bias.detach()[backbone.letter_ids].float()
        biases[name] = bias_V
    return name, (left_VC, right_CF), biases


def _whole_tensors(ensemble: Ensemble, m: int, whole: Whole) -> dict[str, Tensor]:
    """The member's own weights of the modules that are kept in full."""
    network, linears = ensemble.backbone.network, {linear.view.name: linear for linear in ensemble.member_linears()}
    found: dict[str, Tensor] = {}
    for name in whole.modules:
        if name != whole.head:
            found |= {f"{name}.{k}": v for k, v in network.get_submodule(name).state_dict().items()}
    for name, linear in linears.items():
        if f"{name}.weight" in found:
            weight_OI, bias_O = linear.merged(m)
            found[f"{name}.weight"] = linear.view.to_native(weight_OI)
            if bias_O is not None:
                found[f"{name}.bias"] = bias_O
    for group in ensemble.groups:
        if group.role == "norm":
            for key, parameter in group.parameters.items():
                if (plain := key.removesuffix("_MD")) in found:
                    found[plain] = parameter[m]
    if whole.head is not None:
        head = ensemble.heads.head(m, ensemble.classes)
        found[f"{whole.head}.weight"] = head.weight_CF
        needs_bias = isinstance(ensemble.backbone, TimmBackbone)  # its classifier always has one
        if head.bias_C is not None or needs_bias:
            found[f"{whole.head}.bias"] = head.bias_C if head.bias_C is not None else torch.zeros(len(head.weight_CF))
    return found


def _write_config(
    source: Source,
    place: Path,
    low_rank: Mapping[str, tuple[Tensor, Tensor]],
    views: Mapping[str, LinearView],
    ranks: Ranks,
    whole: Whole,
    lora_bias: bool,
) -> None:
    from peft import LoraConfig

    backbone = source.ensemble.backbone
    differing = {re.escape(n): len(right) for n, (_, right) in low_rank.items() if len(right) != ranks.r}
    config = LoraConfig(
        r=ranks.r,
        lora_alpha=ranks.r,
        target_modules=short_names(backbone, set(low_rank)),
        rank_pattern=differing,
        alpha_pattern=dict(differing),
        lora_dropout=0.0,
        bias="none",
        lora_bias=lora_bias,
        fan_in_fan_out=any(view.kind == "conv1d" for view in views.values()),
        use_rslora=False,
        modules_to_save=list(whole.modules) or None,
        task_type=next((t for kind, t in TASK_TYPES.items() if isinstance(backbone, kind)), None),
        base_model_name_or_path=base_name(backbone.spec.name),
        revision=backbone.spec.revision,
        inference_mode=True,
    )
    config.save_pretrained(str(place))
    written = json.loads((place / CONFIG).read_text(encoding="utf-8"))  # peft keeps sets, whose order differs from time to time
    written |= {key: sorted(written[key]) for key in ("target_modules", "modules_to_save") if isinstance(written[key], list)}
    (place / CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def short_names(backbone: Backbone, layers: set[str]) -> list[str]:
    """The layers' last names, as servers expect them, where those mean exactly these layers; their full names otherwise."""
    last = {name.rpartition(".")[2] for name in layers}
    meant = {n for n, _ in backbone.network.named_modules() if n.rpartition(".")[2] in last}
    return sorted(last if meant == layers else layers)


def _facts(
    source: Source,
    place: Path,
    adapted: Mapping[str, Directions],
    ranks: Ranks,
    whole: Whole,
    lora_bias: bool,
    one_rank: bool,
) -> dict[str, Any]:
    energy = [d.energy(ranks.kept[name]) for name, d in adapted.items()]
    return {
        "rank": ranks.r,
        "rank_rule": source.options.rank,
        "serving_ranks": source.options.serving_ranks,
        "one_rank": one_rank,
        "captured_energy": {"least": min(energy), "mean": sum(energy) / len(energy)},
        "lora_bias": lora_bias,
        "modules_to_save": list(whole.modules),
        "bytes": (place / ADAPTER).stat().st_size,
        "base": {"name": base_name(source.ensemble.backbone.spec.name), "digest": source.lock["checkpoint"]},
    }


def check(folder: Path, text: bool) -> None:
    """Refuse an export that lacks a file, or holds a pickled one; see `require_files`."""
    refuse_pickled(folder)
    wanted = [CONFIG, ADAPTER, "config.json", *(["tokenizer_config.json"] if text else [])]
    wanted += ["1_Pooling/config.json", "2_Dense/model.safetensors"] if (folder / "modules.json").is_file() else []
    require_files(folder, wanted)


def _names(members: Sequence[int], options: Options) -> list[str]:
    require_packages("lora", "lora", "peft")
    parse_rank(options.rank)
    return [f"lora-{m}" for m in members]


FLOAT32 = "peft and servers cast an adapter to the type of its checkpoint when they open it."
TARGET = Target(_names, export_lora, check, per_member=True, float32_because=FLOAT32, entry=CONFIG)
