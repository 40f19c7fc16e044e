"""`rms_norm`: what stands between the residual stream and the products that read it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dla_kernels.arguments import FLOATS, torch_or_triton
from dla_kernels.layers.gated_norm import WIDEST
from dla_kernels.layers.precision import at_least_float32


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
    backend: Literal["auto", "torch", "triton"] = "auto",
) -> Tensor:
    """RMSNorm (arXiv 1910.07467): `y = weight * x / sqrt(mean(x^2) + eps)` over the last dimension, in a wanted type.

    Everything is computed in float32 (float64 for float64 inputs), and only the result is rounded. Backend "triton"
    keeps only x and weight for the backward, which reads the gradient of y in y's type. Differentiable with respect to
    x and weight.

    Args:
        x: `[..., N]`; rows may lie apart, as in a slice of a wider projection.
        weight: `[N]`.
        eps: added to the mean square.
        dtype: the type of y, that of x if None.
        backend: "torch" (any device), "triton" (one launch each way, on a GPU, N up to 4,096), or "auto".
    Returns:
        y `[..., N]`.
    Raises:
        ValueError: shapes, types or devices that do not fit; the message names the argument.
    """
    dtype = x.dtype if dtype is None else dtype
    _check(x, weight, dtype)
    too_wide = f"rows have {x.shape[-1]} channels; it takes up to {WIDEST}" if x.shape[-1] > WIDEST else None
    if torch_or_triton(backend, "x", x, too_wide) == "torch":
        # 16-bit weights are widened, too: torch's fused kernel needs input and weight of the same type; otherwise it
        # warns and computes the norm in many steps.
        return F.rms_norm(at_least_float32(x), weight.shape, at_least_float32(weight), eps).to(dtype)
    from dla_kernels.layers.fused.rms_norm import normed_rows  # imports triton, which only some platforms have

    return normed_rows(x, weight, eps, dtype)


def _check(x: Tensor, weight: Tensor, dtype: torch.dtype) -> None:
    for name, given in (("x", x), ("weight", weight)):
        if given.dtype not in FLOATS or given.ndim < 1:
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} and type {given.dtype}; it must be floating point numbers"
            )
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device} and x on {x.device}; they must be on one device")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be the last size of x, ({x.shape[-1]},)")
    if dtype not in FLOATS:
        raise ValueError(f"dtype is {dtype}; it must be float64, float32, bfloat16 or float16")
