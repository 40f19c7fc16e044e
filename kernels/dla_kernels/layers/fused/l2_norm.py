"""Rows of length one: `y = x r`, `r = 1 / sqrt(sum(x^2) + eps)`, `dx = r (dy - y sum(dy y))`.

A program has BR whole rows of N channels, so the backward can compute r again, and only the input is kept for it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dla_kernels.layers.fused.rows import block_of, load_rows, rows_of, store_rows
from dla_kernels.operators import operator


@operator("dla::l2_norm")
def unit_rows(x: Tensor, eps: float) -> Tensor:
    """y in the shape of x, contiguous; arguments as in `l2_normalize`."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, block = rows_of(x), block_of(x.shape[-1])
    rows = x.shape[0] * x.shape[1]
    l2_norm_kernel[(-(-rows // block["BR"]),)](
        x, y, eps, rows, x.shape[1], x.stride(0), x.stride(1), **block, num_warps=4
    )
    return y


@unit_rows.register_fake
def _(x, eps):
    return x.new_empty(x.shape)


@operator("dla::l2_norm_backward", is_gradient=True)
def unit_rows_backward(dy: Tensor, x: Tensor, eps: float) -> Tensor:
    """dx in the shape of x, contiguous."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dy, x, block = rows_of(dy), rows_of(x), block_of(x.shape[-1])
    rows = x.shape[0] * x.shape[1]
    l2_norm_backward_kernel[(-(-rows // block["BR"]),)](
        dy, x, dx, eps, rows, x.shape[1], dy.stride(0), dy.stride(1), x.stride(0), x.stride(1), **block, num_warps=4
    )
    return dx


@unit_rows_backward.register_fake
def _(dy, x, eps):
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
    return unit_rows_backward(dy, *ctx.saved_tensors, ctx.eps), None


unit_rows.register_autograd(_backward, setup_context=_setup)


@triton.jit
def l2_norm_kernel(
    x_ptr, y_ptr, eps, rows, inner, x_outer, x_inner, N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BN)
    x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, channel < N)
    y = x * tl.rsqrt(tl.sum(x * x, 1) + eps)[:, None]
    store_rows(y_ptr, y, row, rows, N, channel, channel < N)


@triton.jit
def l2_norm_backward_kernel(
    dy_ptr, x_ptr, dx_ptr, eps, rows, inner, dy_outer, dy_inner, x_outer, x_inner,
    N: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BN)
    dy = load_rows(dy_ptr, row, rows, inner, dy_outer, dy_inner, channel, channel < N)
    x = load_rows(x_ptr, row, rows, inner, x_outer, x_inner, channel, channel < N)
    r = tl.rsqrt(tl.sum(x * x, 1) + eps)[:, None]
    y = x * r
    dx = r * (dy - y * tl.sum(dy * y, 1)[:, None])
    store_rows(dx_ptr, dx, row, rows, N, channel, channel < N)
