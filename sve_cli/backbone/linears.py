"""One view of every layer that is a matrix: `Linear`, GPT-2's `Conv1D`, plain `Conv2d`.

Shapes: B batch, M members, N rows (tokens or patches), O out, I in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sve_cli.errors import CheckpointError

Kind = Literal["linear", "conv1d", "conv2d"]


@dataclass(frozen=True)
class LinearView:
    """How a layer reads as a matrix W (O, I), and how the matrix is put back."""

    name: str
    kind: Kind
    module: nn.Module

    @property
    def native_weight(self) -> Tensor:
        return cast(Tensor, self.module.weight)

    @property
    def bias(self) -> Tensor | None:
        return cast("Tensor | None", getattr(self.module, "bias", None))

    @property
    def weight_OI(self) -> Tensor:
        """The matrix, float32, contiguous."""
        return canonical(self.native_weight.detach(), self.kind)

    def to_native(self, weight_OI: Tensor) -> Tensor:
        """The matrix in the layer's own layout."""
        native = weight_OI.t() if self.kind == "conv1d" else weight_OI
        return native.reshape(self.native_weight.shape).contiguous()

    def apply_native(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer as the library computes it, with another weight (native layout)."""
        if self.kind == "linear":
            return F.linear(x, weight, bias)
        if self.kind == "conv1d":
            y = x @ weight
            return y if bias is None else y + bias
        conv = cast(nn.Conv2d, self.module)
        return F.conv2d(_pad(x, conv), weight, bias, conv.stride, _zero_padding(conv), conv.dilation)

    def rows(self, x: Tensor, n_members: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Unfold a member-major batch (M·B, …) to rows (M, N, I), with the function that folds (M, N, O) back."""
        if self.kind != "conv2d":
            lead = x.shape[:-1]
            return x.reshape(n_members, -1, x.shape[-1]), lambda y: y.reshape(*lead, y.shape[-1])
        conv = cast(nn.Conv2d, self.module)
        padded = _pad(x, conv)
        kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
        padding = cast("tuple[int, int]", _zero_padding(conv))
        size = [(padded.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2)]
        columns = F.unfold(padded, cast("tuple[int, int]", kernel), dilation, padding, stride)  # (M·B, I, L)
        batch = x.shape[0]

        def fold(y: Tensor) -> Tensor:
            return y.reshape(batch, size[0] * size[1], -1).transpose(1, 2).reshape(batch, -1, size[0], size[1])

        return columns.transpose(1, 2).reshape(n_members, -1, columns.shape[1]), fold


def canonical(weight: Tensor, kind: Kind) -> Tensor:
    """A native weight as a float32 matrix (O, I)."""
    matrix = weight.t() if kind == "conv1d" else weight.flatten(1)
    return matrix.to(torch.float32).contiguous()


def _zero_padding(conv: nn.Conv2d) -> tuple[int, ...] | str:
    # Same-padding and non-zero padding are applied by _pad; the product then needs none.
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros" or _is_same_conv(conv):
        return (0, 0)
    return cast("tuple[int, int]", conv.padding)


def _is_same_conv(conv: nn.Conv2d) -> bool:
    return type(conv).__name__ == "Conv2dSame"


def _pad(x: Tensor, conv: nn.Conv2d) -> Tensor:
    if _is_same_conv(conv):  # timm's TensorFlow-style padding, which depends on the input size
        sides: list[int] = []
        geometry = zip(x.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], conv.dilation[::-1], strict=True)
        for size, kernel, stride, dilation in geometry:
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            sides += [total // 2, total - total // 2]
        return F.pad(x, sides)
    if isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    return x


def unsupported_reason(module: nn.Module) -> str | None:
    """Why a layer with a weight matrix cannot be a target; None when it can (or is no matrix at all)."""
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return "a depthwise convolution" if module.groups == module.in_channels else "a grouped convolution"
    if isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward and not _is_same_conv(module):
        return f"a {type(module).__name__}, which computes something else than a plain convolution"
    if isinstance(module, (nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d, nn.Bilinear)):
        return f"a {type(module).__name__}"
    if isinstance(module, nn.Linear) and not module.weight.is_floating_point():
        return "a quantised layer"
    origin = type(module).__module__.split(".")[0]
    if origin in ("bitsandbytes", "auto_gptq", "gptqmodel", "awq", "hqq", "quanto", "optimum", "torchao"):
        return "a quantised layer"
    return None


def view_of(name: str, module: nn.Module) -> LinearView | None:
    """The matrix view of a layer, None when it is not a supported matrix."""
    if unsupported_reason(module) is not None:
        return None
    if isinstance(module, nn.Linear):
        return LinearView(name, "linear", module)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return LinearView(name, "conv1d", module)
    if isinstance(module, nn.Conv2d):
        return LinearView(name, "conv2d", module)
    return None


def require_view(name: str, module: nn.Module) -> LinearView:
    """Like `view_of`.

    Raises:
        CheckpointError: the layer is not supported; the message says what it is.
    """
    view = view_of(name, module)
    if view is None:
        reason = unsupported_reason(module) or f"a {type(module).__name__}, which has no weight matrix"
        raise CheckpointError(
            f"The target '{name}' is {reason}.", "Leave it out with method.exclude, or choose other method.targets."
        )
    return view
