"""Lines of Python that open a graph and predict, without this tool."""

from __future__ import annotations

from typing import Literal

from sve_cli.backbone import Backbone
from sve_cli.backbone.causal_lm import CausalLM
from sve_cli.export.graph import Graph


def usage(backbone: Backbone, found: Graph, kind: Literal["onnx", "torch_export"]) -> str:
    """The card's code."""
    opened = 'import json\ngraph = json.load(open("FOLDER/graph.json"))\n'
    if backbone.library == "timm":
        opened += """import timm
from PIL import Image
config = json.load(open("FOLDER/config.json"))["pretrained_cfg"]
transform = timm.data.create_transform(**timm.data.resolve_data_config(config), is_training=False)
inputs = {"image": transform(Image.open("image.png").convert("RGB")).unsqueeze(0)}
"""
    else:
        given = "[prompt]" if isinstance(backbone, CausalLM) else '["a text"]'
        opened += f"""from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
inputs = tokenizer({given}, truncation=True, padding=True, return_tensors="pt")
"""
    if kind == "onnx":
        opened += """import onnxruntime
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
outputs = session.run(graph["outputs"], {name: inputs[name].numpy() for name in graph["inputs"]})
"""
    else:
        opened += """import torch
network = torch.export.load("FOLDER/model.pt2").module()
with torch.inference_mode():
    outputs = network(*(inputs[name] for name in graph["inputs"]))
"""
    opened += 'found = dict(zip(graph["outputs"], outputs))\n'
    if found.outputs == ("logits",):
        return opened + 'print(dict(zip(graph["classes"], found["logits"][0])))  # compare those letters that are options'
    shown = '"entropy", "mutual_information"' if "mutual_information" in found.outputs else '"entropy"'
    return (
        opened
        + f"""print(graph["classes"][int(found["probabilities"][0].argmax())], *(float(found[name][0]) for name in ({shown},)))"""
    )
