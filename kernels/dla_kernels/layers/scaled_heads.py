"""Mamba-2's two products by head: what a token writes, `dt x`, and what it passes on beside the op, `D x`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dla_kernels.arguments import FLOATS, torch_or_triton
from dla_kernels.layers.gated_norm import WIDEST


def scale_heads(x: Tensor, scale: Tensor, *, backend: Literal["auto", "torch", "triton"] = "auto") -> Tensor:
    """`y[..., h, :] = scale[..., h] x[..., h, :]`: a factor for each token and head, as the time step `dt` of Mamba-2
    (arXiv 2405.21060). Computed in float32 or wider, and rounded once.

    Args:
        x: `[..., H, V]`; rows may lie apart, as in a slice of a wider projection.
        scale: `[..., H]`.
        backend: "torch" (any device), "triton" (one launch each way, on a GPU, V up to 4,096), or "auto".
    Returns:
        y `[..., H, V]` in the type of x.
    Raises:
        ValueError: types or shapes that do not fit, or more than the kernels take.
    """
    _check(x, "scale", scale, x.shape[:-1])
    if torch_or_triton(backend, "x", x, _too_wide(x)) == "torch":
        return (x * scale[..., None]).to(x.dtype)
    from dla_kernels.layers.fused.scaled_heads import scaled_heads  # imports triton, which only some platforms have

    return scaled_heads(x, scale)


def add_skip(y: Tensor, x: Tensor, weight: Tensor, *, backend: Literal["auto", "torch", "triton"] = "auto") -> Tensor:
    """`y[..., h, :] + weight[h] x[..., h, :]`: the skip connection `D` of Mamba-2 around the op (arXiv 2405.21060).
    Computed in float32 or wider, and rounded once.

    Args:
        y, x: `[..., H, V]`, of one type; rows may lie apart.
        weight: `[H]`.
        backend: "torch" (any device), "triton" (one launch each way, on a GPU, V up to 4,096), or "auto".
    Returns:
        `[..., H, V]` in the type of x.
    Raises:
        ValueError: types or shapes that do not fit, or more than the kernels take.
    """
    _check(x, "weight", weight, x.shape[-2:-1])
    if y.shape != x.shape or y.dtype != x.dtype or y.device != x.device:
        raise ValueError(
            f"y has shape {tuple(y.shape)} and type {y.dtype} on {y.device}; it must be as x is, {tuple(x.shape)} and "
            f"{x.dtype} on {x.device}"
        )
    if torch_or_triton(backend, "x", x, _too_wide(x)) == "torch":
        return torch.addcmul(y, x, weight[:, None]).to(x.dtype)
    from dla_kernels.layers.fused.scaled_heads import skip  # imports triton, which only some platforms have

    return skip(y, x, weight)


def _check(x: Tensor, name: str, factor: Tensor, expected: torch.Size) -> None:
    if x.dtype not in FLOATS or x.ndim < 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and type {x.dtype}; it must be floating point numbers [..., H, V]"
        )
    if factor.shape != expected or factor.dtype not in FLOATS:
        raise ValueError(
            f"{name} has shape {tuple(factor.shape)} and type {factor.dtype}; it must be floating point numbers "
            f"{tuple(expected)}, as x is {tuple(x.shape)}"
        )
    if factor.device != x.device:
        raise ValueError(f"{name} is on {factor.device} and x on {x.device}; they must be on one device")


def _too_wide(x: Tensor) -> str | None:
    return f"heads have {x.shape[-1]} channels; it takes up to {WIDEST}" if x.shape[-1] > WIDEST else None
