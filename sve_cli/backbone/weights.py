"""Weight files written one tensor at a time, so that a network never has to be in memory as a whole a second time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL",
}  # fmt: skip

Late = dict[int, Callable[[], Tensor]]  # id of a parameter on the meta device -> its values


@dataclass(frozen=True)
class Writing:
    """How weights are written.

    Attributes:
        late: values of parameters that are made when they are written (see `Ensemble.late`).
        shard_size: largest size of a file in bytes (a larger tensor gets a file of its own); None: one file.
        dtype: what parameters are rounded to (buffers, such as running statistics, are not); None: they stay as they are.
    """

    late: Late = field(default_factory=dict)
    shard_size: int | None = None
    dtype: torch.dtype | None = None

    def dtype_of(self, tensor: Tensor) -> torch.dtype:
        """What a tensor is written as."""
        rounded = self.dtype is not None and isinstance(tensor, nn.Parameter) and tensor.is_floating_point()
        return self.dtype if rounded and self.dtype is not None else tensor.dtype

    def size(self, tensor: Tensor) -> int:
        """Bytes of a tensor in a file."""
        return tensor.numel() * self.dtype_of(tensor).itemsize

    def value(self, tensor: Tensor) -> Tensor:
        """A tensor's values as they are written, on the CPU."""
        made = self.late[id(tensor)]() if id(tensor) in self.late else tensor
        return made.detach().to("cpu", self.dtype_of(tensor)).contiguous()


def write_weights(folder: Path, tensors: Mapping[str, Tensor], writing: Writing) -> None:
    """Write `model.safetensors`, or numbered shards with an index where they would exceed `shard_size`."""
    groups = _shards(tensors, writing)
    if len(groups) == 1:
        _write_file(folder / WEIGHTS, groups[0], writing)
        return
    places: dict[str, str] = {}
    for i, group in enumerate(groups):
        name = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        _write_file(folder / name, group, writing)
        places |= dict.fromkeys(group, name)
    total = sum(writing.size(t) for t in tensors.values())
    metadata = {"total_parameters": sum(t.numel() for t in tensors.values()), "total_size": total}
    document = {"metadata": metadata, "weight_map": dict(sorted(places.items()))}
    (folder / INDEX).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], writing: Writing) -> list[dict[str, Tensor]]:
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if writing.shard_size is not None and groups[-1] and size + writing.size(tensor) > writing.shard_size:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += writing.size(tensor)
    return groups


def _write_file(path: Path, tensors: Mapping[str, Tensor], writing: Writing) -> None:
    """The safetensors format: length of the header, header, then the tensors' bytes without gaps, wide types first."""
    dtypes = {name: writing.dtype_of(tensor) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, list(DTYPES).index(dtypes[name])))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + writing.size(tensor)
        header[name] = {"dtype": DTYPES[dtypes[name]], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            value = writing.value(tensors[name])
            assert value.shape == tensors[name].shape, name
            if value.numel():
                file.write(value.reshape(-1).view(torch.uint8).numpy().data)


def save_transformers(model: Any, folder: Path, writing: Writing) -> None:
    """`model.save_pretrained(folder)`, with the weights written one at a time.

    The library itself says how tensors are called in its files and which tied ones are left out: it saves one number in place of
    each tensor first. A model whose files hold converted tensors (merged experts, say) is completed and saved as a whole.
    """
    tensors = model.state_dict(keep_vars=True)
    if any(type(c).__name__ == "WeightConverter" for c in getattr(model, "_weight_conversions", None) or []):
        complete(model, writing)
        if writing.dtype is not None:
            round_parameters(model, writing.dtype)
        model.save_pretrained(folder, max_shard_size=writing.shard_size or "1000GB")
        return
    numbers: dict[int, Tensor] = {}
    for tensor in tensors.values():
        numbers.setdefault(id(tensor), torch.tensor([len(numbers)], dtype=torch.int64))
    by_number = {int(numbers[id(t)]): t for t in tensors.values()}
    model.save_pretrained(folder, state_dict={name: numbers[id(t)] for name, t in tensors.items()})
    found = {name: int(number) for name, number in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    if writing.dtype is not None:  # the library names that of the network in memory
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = json.dumps({**config, "dtype": str(writing.dtype).removeprefix("torch.")}, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    order = sorted(found, key=lambda name: found[name])  # the network's order, so that a shard holds neighbours
    write_weights(folder, {name: by_number[found[name]] for name in order}, writing)


def complete(model: nn.Module, writing: Writing) -> None:
    """Put every late weight in its place."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in writing.late:
                setattr(module, name, nn.Parameter(writing.late[id(parameter)](), requires_grad=False))


def round_parameters(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`network` with parameters of this type in place of its own, which stay as they are; buffers are kept. Tied ones stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_floating_point():
                made.setdefault(id(parameter), nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
                setattr(module, name, made[id(parameter)])
    return network
