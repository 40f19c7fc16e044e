"""`swiglu`: what stands between the two products of a channel mixer."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from dla_kernels.arguments import FLOATS, torch_or_triton


def swiglu(x: Tensor, *, backend: Literal["auto", "torch", "triton"] = "auto") -> Tensor:
    """`y = silu(a) * b` for the two halves a, b of the last dimension of `x` (arXiv 2002.05202).

    Backend "triton" computes in float32, rounds once and keeps only x for the backward; "torch" also rounds the silu,
    and keeps it.

    Args:
        x: `[..., 2 N]`.
        backend: "torch" (any device), "triton" (one launch each way, on a GPU), or "auto".
    Returns:
        y `[..., N]` in the type of x.
    Raises:
        ValueError: a type or a last size that does not fit.
    """
    if x.dtype not in FLOATS or x.ndim < 1 or x.shape[-1] % 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and type {x.dtype}; it must be floating point numbers, its last size even"
        )
    if torch_or_triton(backend, "x", x) == "torch":
        a, b = x.chunk(2, -1)
        return F.silu(a) * b
    from dla_kernels.layers.fused.gated_activation import gated_halves  # imports triton, which only some platforms have

    return gated_halves(x)
