"""`gated_rms_norm`: what stands between linear attention and its output projection."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from dla_kernels.arguments import FLOATS, torch_or_triton
from dla_kernels.autocast import without_autocast
from dla_kernels.layers.precision import at_least_float32

WIDEST = 4096
"""The most channels of a row that the Triton kernels take: a program holds a whole row."""


@without_autocast
def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    weight: Tensor,
    eps: float,
    *,
    gate_first: bool,
    groups: int = 1,
    backend: Literal["auto", "torch", "triton"] = "auto",
) -> Tensor:
    """RMSNorm over the last dimension and a SiLU gate, in one of the two orders that are in use.

    With `gate_first` (Mamba-2) `y = weight * u / sqrt(mean(u^2) + eps)`, `u = x silu(gate)`; otherwise (Gated DeltaNet)
    `y = weight * x / sqrt(mean(x^2) + eps) * silu(gate)`. Everything is computed in float32 (float64 for float64
    inputs), and only the result is rounded. Differentiable with respect to x, gate and weight.

    Args:
        x, gate: `[..., N]`; rows may lie apart, as in a slice of a wider projection.
        weight: `[N]`.
        eps: added to the mean square.
        gate_first: whether the gate comes before the norm.
        groups: the mean square is taken over each of this many equal parts of N.
        backend: "torch" (any device), "triton" (one launch, on a GPU, up to 4,096 channels a part), or "auto".
    Returns:
        y `[..., N]` in the type of x.
    Raises:
        ValueError: shapes, types or devices that do not fit; the message names the argument.
    """
    _check(x, gate, weight, groups)
    width = weight.shape[0] // groups
    too_wide = f"rows have {width} channels; it takes up to {WIDEST}" if width > WIDEST else None
    if torch_or_triton(backend, "x", x, too_wide) == "torch":
        return _in_torch(x, gate, weight, eps, gate_first, groups)
    from dla_kernels.layers.fused.gated_norm import gated_norm  # imports triton, which only some platforms have

    return gated_norm(x, gate, weight, eps, gate_first, groups)


def _in_torch(x: Tensor, gate: Tensor, weight: Tensor, eps: float, gate_first: bool, groups: int) -> Tensor:
    wide, opening = at_least_float32(x), F.silu(at_least_float32(gate))
    if gate_first:
        wide = wide * opening
    if groups == 1:
        # 16-bit weights are widened, too: torch's fused kernel needs input and weight of the same type; otherwise it
        # warns and computes the norm in many steps.
        y = F.rms_norm(wide, weight.shape, at_least_float32(weight), eps)
    else:
        parts = wide.unflatten(-1, (groups, -1))
        y = F.rms_norm(parts, parts.shape[-1:], eps=eps).flatten(-2) * at_least_float32(weight)
    return (y if gate_first else y * opening).to(x.dtype)


def _check(x: Tensor, gate: Tensor, weight: Tensor, groups: int) -> None:
    for name, given in (("x", x), ("gate", gate), ("weight", weight)):
        if given.dtype not in FLOATS or given.ndim < 1:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} and type {given.dtype}; it must be floating point numbers"
            )
        if given.device != x.device:
            raise ValueError(f"{name} is on {given.device} and x on {x.device}; they must be on one device")
    if gate.shape != x.shape:
        raise ValueError(f"gate has shape {tuple(gate.shape)}; it must be that of x, {tuple(x.shape)}")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be the last size of x, ({x.shape[-1]},)")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups is {groups}; it must divide the last size of x, {weight.shape[0]}")
