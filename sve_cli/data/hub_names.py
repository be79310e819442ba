"""Short names of well-known data sets: where the hub keeps them, and what their columns and splits are called there.

A folder $SVE_DATA_DIR/<name> comes first; this table only serves names that were not found on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class HubSet:
    """`columns`: hub column -> column here. `splits`: split here -> hub split; empty: as on the hub."""

    repo: str
    config: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)


HUB_SETS: dict[str, HubSet] = {
    "cifar10": HubSet("uoft-cs/cifar10", columns={"img": "image"}),
    "cifar100": HubSet("uoft-cs/cifar100", columns={"img": "image", "fine_label": "label"}),
    "flowers102": HubSet("nelorth/oxford-flowers"),
    "pets": HubSet("timm/oxford-iiit-pet"),
    "dtd": HubSet("tanganke/dtd"),
    # The hub's SST-2 test labels are withheld: its validation split is the test set here, and validation is held out of train.
    "sst2": HubSet("stanfordnlp/sst2", columns={"sentence": "text"}, splits={"train": "train", "test": "validation"}),
    "emotion": HubSet("dair-ai/emotion", config="split"),
    "arc_easy": HubSet("allenai/ai2_arc", config="ARC-Easy", columns={"answerKey": "label"}),
    "arc_challenge": HubSet("allenai/ai2_arc", config="ARC-Challenge", columns={"answerKey": "label"}),
}
