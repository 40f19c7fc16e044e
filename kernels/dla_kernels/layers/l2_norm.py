"""`l2_normalize`: queries and keys of the delta rule have length one."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dla_kernels.arguments import FLOATS, torch_or_triton
from dla_kernels.layers.gated_norm import WIDEST
from dla_kernels.layers.precision import at_least_float32


def l2_normalize(x: Tensor, eps: float = 1e-6, *, backend: Literal["auto", "torch", "triton"] = "auto") -> Tensor:
    """`y = x / sqrt(sum(x^2) + eps)` over the last dimension; zero stays zero. Computed in float32 or wider.

    Args:
        x: `[..., N]`; rows may lie apart, as in a slice of a wider projection.
        eps: added to the squared length before the square root, as in the code of Gated DeltaNet's authors.
        backend: "torch" (any device), "triton" (one launch each way, on a GPU, N up to 4,096), or "auto".
    Returns:
        y `[..., N]` in the type of x.
    Raises:
        ValueError: a type that does not fit, or more than the kernels take.
    """
    if x.dtype not in FLOATS or x.ndim < 1:
        raise ValueError(f"x has shape {tuple(x.shape)} and type {x.dtype}; it must be floating point numbers")
    too_wide = f"rows have {x.shape[-1]} channels; it takes up to {WIDEST}" if x.shape[-1] > WIDEST else None
    if torch_or_triton(backend, "x", x, too_wide) == "torch":
        wide = at_least_float32(x)
        return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + eps)).to(x.dtype)
    from dla_kernels.layers.fused.l2_norm import unit_rows  # imports triton, which only some platforms have

    return unit_rows(x, eps)
