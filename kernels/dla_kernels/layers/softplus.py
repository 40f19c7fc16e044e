"""`shifted_softplus`: from a projection to the weights of slots."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from dla_kernels.arguments import FLOATS, torch_or_triton
from dla_kernels.layers.precision import at_least_float32


def shifted_softplus(x: Tensor, shift: float, *, backend: Literal["auto", "torch", "triton"] = "auto") -> Tensor:
    """`y = log(1 + exp(x + shift))` in float32 (float64 for float64 inputs), whatever the type of x.

    Backend "triton" keeps only y for the backward, `dx = dy (1 - exp(-y))`, which readers of the weights keep anyway;
    "torch" keeps `x + shift` beside it.

    Args:
        x: any shape. shift: added to it.
        backend: "torch" (any device), "triton" (one launch each way, on a GPU), or "auto".
    Returns:
        y in the shape of x.
    Raises:
        ValueError: a type that does not fit.
    """
    if x.dtype not in FLOATS:
        raise ValueError(f"x has type {x.dtype}; it must be floating point numbers")
    if torch_or_triton(backend, "x", x) == "torch":
        return F.softplus(at_least_float32(x) + shift)
    from dla_kernels.layers.fused.softplus import softplus  # imports triton, which only some platforms have

    return softplus(x, shift)
